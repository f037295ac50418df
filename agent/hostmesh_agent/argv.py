"""The command line of this process, which everybody on the host can read in /proc."""

import ctypes
from pathlib import Path
from typing import Final

_CMDLINE: Final = Path("/proc/self/cmdline")
_STAT: Final = Path("/proc/self/stat")
_ARG_START: Final = 47
"""Place among the fields of /proc/self/stat (proc_pid_stat(5): the 48th is arg_start)."""


def hide(text: str) -> bool:
    """Overwrite a text in this process's command line; return whether it is not to be read there any more."""
    secret = text.encode()
    shown = _CMDLINE.read_bytes()
    place = shown.find(secret)
    if not secret or place < 0:
        return True
    # The name of the program, the second field, may hold blanks and parentheses.
    stat = _STAT.read_text(encoding="utf-8", errors="replace")
    start = int(stat[stat.rindex(")") + 2 :].split()[_ARG_START - 2])
    ctypes.memset(start + place, ord("x"), len(secret))
    return secret not in _CMDLINE.read_bytes()
