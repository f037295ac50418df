"""The Wasm plugin of the tests, as bytes. `header.wat` says what it does."""

import base64
import hashlib
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
MODULE: Final = base64.b64decode((HERE / "header.wasm.b64").read_text())
SHA256: Final = hashlib.sha256(MODULE).hexdigest()
HEADER: Final = "x-wasm"
