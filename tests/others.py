"""What tests need that have a part done as another user."""

import tempfile
from pathlib import Path


def let_in(directory: Path) -> None:
    """Let every user go through to a directory of pytest's, which is closed to all but who runs the tests."""
    top = Path(tempfile.gettempdir())
    for each in (directory, *directory.parents):
        if each == top:
            return
        each.chmod(0o711)
    raise ValueError(f"{directory} is not under {top}: say where pytest's directories go with TMPDIR, not --basetemp")
