"""A packet capture on the lab's bridge, to be searched for what must and what must not be seen."""

import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.space import Space

_START_S: Final = 10.0
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Capture:
    """Packets of the bridge as they come in; the file grows while the capture runs."""

    file: Path

    def holds(self, text: str) -> bool:
        return text.encode() in self.file.read_bytes()

    def wait_for(self, text: str, timeout_s: float) -> bool:
        """Whether a packet with the text is there within the time."""
        deadline = time.monotonic() + timeout_s
        while not self.holds(text):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True


@contextmanager
def capture(world: Space, file: Path) -> Iterator[Capture]:
    """Capture on the bridge for as long as the context lasts.

    Raises:
        LabError: tcpdump does not start.
    """
    # -Z root: as another user it could not write where the lab's files are. To a pipe of ours for the same reason.
    command = ["tcpdump", "-i", "br0", "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w", "-", "tcp"]
    with file.open("wb") as output:
        dump = world.popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.PIPE)
        try:
            _wait_until_listening(dump)
            yield Capture(file)
        finally:
            dump.terminate()
            dump.communicate(timeout=_START_S)


def _wait_until_listening(dump: subprocess.Popen[str]) -> None:
    assert dump.stderr is not None
    deadline = time.monotonic() + _START_S
    said = ""
    while "listening on" not in said:
        ready, _, _ = select.select([dump.stderr], [], [], max(0.0, deadline - time.monotonic()))
        line = dump.stderr.readline() if ready else ""
        if not line:
            raise LabError(f"tcpdump does not start: {said or 'no word from it'}")
        said += line
