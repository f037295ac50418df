"""Which processes have which sockets open: one walk through /proc. Standard library alone, for root runs it, too."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

MOST: Final = 4096
"""For how many sockets the privileged part looks at once."""
_PROC: Final = Path("/proc")


def pids(inodes: Collection[int], proc: Path = _PROC) -> dict[int, int]:
    """Return the process of each socket, by its inode; none for a socket that is nobody's, or is closed to us."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, int] = {}
    # Lowest pid first: of a program and its workers that share a socket, the program.
    for pid in sorted(int(each.name) for each in proc.iterdir() if each.name.isdigit()):
        if len(found) == len(wanted):
            break
        # A process may end, or be closed to us, at any moment.
        with contextlib.suppress(OSError):
            here = {wanted[target] for target in _links(proc / str(pid) / "fd") if target in wanted}
            found |= dict.fromkeys(here - found.keys(), pid)
    return found


def _links(directory: Path) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                yield os.readlink(entry.path)  # noqa: PTH115 - a Path per open file of the host is too slow
