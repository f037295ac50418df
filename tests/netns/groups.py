"""Units as systemd makes them: real cgroups below a slice of the test's own, and programs in them."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hostmesh_agent import cgroup

# Answers come as `ask` gives them; what is written to it first says where to call.
_CALL: Final = """
import socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as group:
    group.write("0")
for line in sys.stdin:
    address, port = line.split()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        client.settimeout(5)
        try:
            client.connect((address, int(port)))
            print(b"".join(iter(lambda: client.recv(4096), b"")).decode(), flush=True)
        except ConnectionRefusedError:
            print("refused", flush=True)
        except OSError as error:
            print(f"unreachable: {error}", flush=True)
"""


class Unit:
    """One that runs: a cgroup and a program in it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self._program = subprocess.Popen(
            [sys.executable, "-I", "-c", _CALL, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 10
        while str(self.pid) not in (directory / "cgroup.procs").read_text().split():
            assert time.monotonic() < deadline, f"no program in {directory}"
            time.sleep(0.005)

    @property
    def pid(self) -> int:
        return self._program.pid

    def ask(self, address: str, port: int) -> str:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.write(f"{address} {port}\n")
        self._program.stdin.flush()
        return self._program.stdout.readline().strip()

    def stop(self) -> None:
        """End the program and remove the cgroup; nothing, where that was done."""
        if self._program.returncode is not None:
            return
        self._program.communicate(timeout=10)
        deadline = time.monotonic() + 10
        while True:
            # The kernel takes a process out of its cgroup a moment after it was waited for.
            with contextlib.suppress(OSError):
                self.directory.rmdir()
                return
            assert time.monotonic() < deadline, f"{self.directory} is not empty"


@contextmanager
def slice_of_the_test() -> Iterator[Path]:
    """Return a slice of this machine's, removed afterwards with all that is in it."""
    top = cgroup.root()
    assert top is not None, "no cgroups of version 2"
    directory = top / f"hostmeshtest{os.getpid()}.slice"
    directory.mkdir()
    try:
        yield directory
    finally:
        for each in sorted(directory.rglob("*"), reverse=True):
            if each.is_dir():
                each.rmdir()
        directory.rmdir()
