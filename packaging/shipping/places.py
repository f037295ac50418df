"""Where things are: of the project, and below .cache/packages."""

import os
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]
PACKAGING: Final = PROJECT / "packaging"
CACHE: Final = PROJECT / ".cache" / "packages"
DIST: Final = Path(os.environ.get("DIST", PROJECT / "dist")).absolute()
