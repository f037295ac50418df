"""Which glibc a tree's binaries ask for: the promise that it runs on old distributions is checked, not believed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from shipping.running import BuildError, run

FLOOR: Final = (2, 30)
"""Debian 11 has 2.31, Ubuntu 20.04 has 2.31, RHEL 9 has 2.34."""
_MAGIC: Final = b"\x7fELF"
_SYMBOL: Final = re.compile(r"\bGLIBC_(\d+)\.(\d+)")


def binaries(top: Path) -> Iterator[Path]:
    for each in sorted(top.rglob("*")):
        if each.is_file() and not each.is_symlink():
            with each.open("rb") as file:
                if file.read(4) == _MAGIC:
                    yield each


def newest_glibc(top: Path) -> tuple[int, int]:
    """Return the newest version of glibc that anything in the tree asks for. Raises BuildError above the floor."""
    newest = (0, 0)
    for each in binaries(top):
        asked = asked_for(run(["objdump", "-T", str(each)]))
        if asked > FLOOR:
            raise BuildError(f"{each}: asks for glibc {asked[0]}.{asked[1]}, promised is {FLOOR[0]}.{FLOOR[1]}")
        newest = max(newest, asked)
    return newest


def asked_for(symbols: str) -> tuple[int, int]:
    """Return the newest version among objdump's dynamic symbols; (0, 0) for none."""
    return max(((int(major), int(minor)) for major, minor in _SYMBOL.findall(symbols)), default=(0, 0))
