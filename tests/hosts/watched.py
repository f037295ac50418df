"""Run a command, and tell what its programs wrote to any file, also to those that are gone when it ends.

    unshare --mount … python watched.py REPORT PATTERN -- COMMAND …

The kernel tells of each file that is closed after it was written to (fanotify), with a descriptor of it. The report is
JSON: how many there were, and those that hold a match of PATTERN. Standard library only.
"""

import ctypes
import json
import os
import re
import select
import struct
import subprocess
import sys
from pathlib import Path

FAN_CLOSE_WRITE = 0x8
FAN_CLOEXEC, FAN_NONBLOCK = 0x1, 0x2
FAN_MARK_ADD, FAN_MARK_MOUNT = 0x1, 0x10
AT_FDCWD = -100
EVENT = struct.Struct("=IBBHQii")
MOUNTS = ("/", "/dev/shm", "/run", "/tmp", "/var/tmp")
"""Where files may be; those that are no mounts of their own are in the first."""


def main() -> int:
    report, pattern = sys.argv[1], re.compile(sys.argv[2].encode())
    libc = ctypes.CDLL(None, use_errno=True)
    events = libc.fanotify_init(FAN_CLOEXEC | FAN_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC)
    if events < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    for place in MOUNTS:
        mask, flags = ctypes.c_uint64(FAN_CLOSE_WRITE), FAN_MARK_ADD | FAN_MARK_MOUNT
        if libc.fanotify_mark(events, flags, mask, AT_FDCWD, place.encode()) < 0:
            raise OSError(ctypes.get_errno(), f"fanotify_mark {place}")
    found: dict[str, object] = {"written": 0, "holding": []}
    command = subprocess.Popen(sys.argv[sys.argv.index("--") + 1 :])
    while command.poll() is None:
        select.select([events], [], [], 0.1)
        read_events(events, pattern, found)
    read_events(events, pattern, found)
    Path(report).write_text(json.dumps(found))
    return command.returncode


def read_events(events: int, pattern: "re.Pattern[bytes]", found: dict[str, object]) -> None:
    while True:
        try:
            data = os.read(events, 65536)
        except BlockingIOError:
            return
        while data:
            size, _, _, _, _, descriptor, _ = EVENT.unpack_from(data)
            data = data[size:]
            with os.fdopen(descriptor, "rb") as file:
                found["written"] = int(str(found["written"])) + 1
                if pattern.search(file.read()):
                    holding = found["holding"]
                    assert isinstance(holding, list)
                    holding.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))


if __name__ == "__main__":
    sys.exit(main())
