"""Ports that take mutual TLS alone stay closed to plaintext while nothing of the mesh runs yet: after a boot.

The kernel forgets its rules at a reboot, and a port is captured only when Envoy serves it. Until then the program's own
port would be open. So the agent remembers which ports were captured as STRICT, and captures them again as the first
thing that it does: nobody listens where they lead, and callers are refused until Envoy is there.
"""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import standing_in, workdir
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.capture import Capture, CaptureError, CaptureRequest, Owner, kernel
from hostmesh_agent.capture import floor as kernel_floor
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.converge import in_force
from hostmesh_agent.state import StateError, read_private, write_private
from hostmesh_agent.status import capture_wanted

FILE: Final = "strict-ports.json"
SPARE: Final = "strict-ports.spare.json"

log = structlog.get_logger(__name__)


class Guard:
    """What is remembered, on disk and here."""

    def __init__(self, state_dir: Path, alarms: Alarms | None = None) -> None:
        self._path = state_dir / FILE
        self._spare = state_dir / SPARE
        self._alarms = Alarms() if alarms is None else alarms
        self._noted = False
        self.ports = self._read()

    def _read(self) -> frozenset[int]:
        problem = ""
        for path in (self._path, self._spare):
            try:
                return _ports(read_private(path))
            except FileNotFoundError:
                continue
            except (StateError, ValueError, TypeError, RecursionError) as error:
                problem = f"{path}: {error}"
                log.error("strict ports are not known", reason=problem)
        if problem:
            # Told to an agent that has no configuration yet, too: until then these ports may be open.
            self._alarms.up("guard.lost", f"{problem}: nothing is closed before Envoy serves it")
        return frozenset()

    def note(self, ports: frozenset[int]) -> None:
        """Remember these ports in place of those before. A disk that refuses costs the next boot, nothing now."""
        if ports == self.ports and self._noted:
            return
        data = _document(ports)
        try:
            # Before the other: whoever reads finds at least one of the two whole.
            write_private(self._spare, data)
            write_private(self._path, data)
        except OSError as error:
            self._alarms.up("guard.not-written", f"{self._path}: {error}: a reboot now would not close what is new")
        else:
            self.ports, self._noted = ports, True
            for code in ("guard.not-written", "guard.lost"):
                self._alarms.down(code)


def close_strict_ports(config: AgentConfig, owner: Owner, alarms: Alarms | None = None) -> frozenset[int]:
    """Capture what must not be reached in plaintext, if the kernel has no rules of ours; return the ports.

    Rules that are there are left as they are: they outlived the agent, and hold more than this. Needs no configuration
    of the controller's. Blocks for as long as the host takes to say where its SSH is.
    """
    with standing_in.for_a_while(config.state_dir):
        remembered = Guard(config.state_dir, alarms).ports
    ports = remembered | frozenset(config.floor.mtls_ports)
    if not ports or capture_wanted(config):
        return frozenset()
    try:
        if kernel.read() is not None:
            return frozenset()
        host = kernel_floor.look(
            workdir.account(config.envoy.user).uid,
            frozenset(),
            config.capture,
            mtls_only=config.floor.mtls_only,
        )
        state = Capture(owner).apply(CaptureRequest(inbound_ports=ports, dns=False, strict_ports=ports), host)
        if state.state != "on":
            raise CaptureError(state.error)
        closed = in_force(kernel.read()).inbound_ports
    except (CaptureError, workdir.WorkdirError) as error:
        if alarms is not None:
            text = f"ports {', '.join(map(str, sorted(ports)))}: {error}: they may be open until Envoy runs"
            alarms.up("guard.not-closed", text)
        return frozenset()
    log.info("strict ports are closed until envoy serves them", ports=sorted(closed))
    return closed


def _document(ports: frozenset[int]) -> bytes:
    """Return what is written: the ports and, as the last element, what they sum up to."""
    return json.dumps([*sorted(ports), _checksum(ports)]).encode() + b"\n"


def _checksum(ports: frozenset[int]) -> str:
    return blake2b(json.dumps(sorted(ports)).encode(), digest_size=16).hexdigest()


def _ports(data: bytes) -> frozenset[int]:
    """Read the ports. Raises ValueError or TypeError for what nobody wrote."""
    found = json.loads(data)
    ports = frozenset(port for port in found if isinstance(port, int) and 0 < port <= 65535)
    sums = [each for each in found if isinstance(each, str)]
    if len(ports) + len(sums) != len(found) or (sums and sums != [_checksum(ports)]):
        raise ValueError("the checksum does not match")
    return ports
