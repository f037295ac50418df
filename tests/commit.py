"""Which commit of the repository is tested."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"
_REPOSITORY: Final = Path(__file__).parents[1]
_WRITTEN: Final = ("FAULTS.md", "HOSTS.md", "tests/faults/results.json", "tests/hosts/results.json")
"""By the runs themselves: these files being others makes it no other tree."""


@cache
def commit(repository: Path = _REPOSITORY) -> str:
    """Return its short name, with "-dirty" if files that it has are others; UNKNOWN outside a clone of git's.

    It is that of the first call: what is tested is what was there when the run began.
    """
    name = _git(repository, "describe", "--always")
    if not name:
        return UNKNOWN
    but = [f":(exclude){each}" for each in _WRITTEN]
    changed = _git(repository, "status", "--porcelain", "--untracked-files=no", "--", ".", *but)
    return f"{name}-dirty" if changed else name


def _git(repository: Path, *words: str) -> str:
    command = ["git", "-C", str(repository), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
