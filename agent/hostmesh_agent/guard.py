"""Ports that take mutual TLS alone stay closed to plaintext while nothing of the mesh runs yet: after a boot.

The kernel forgets its rules at a reboot, and a port is captured only when Envoy serves it. Until then the program's own
port would be open. So the agent remembers which ports were captured as STRICT, and captures them again as the first
thing that it does: nobody listens where they lead, and callers are refused until Envoy is there.
"""

import json
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import workdir
from hostmesh_agent.capture import Capture, CaptureError, CaptureRequest, Owner, kernel
from hostmesh_agent.capture import floor as kernel_floor
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.converge import in_force
from hostmesh_agent.state import StateError, read_private, write_private
from hostmesh_agent.status import capture_wanted

FILE: Final = "strict-ports.json"

log = structlog.get_logger(__name__)


class Guard:
    """What is remembered, on disk and here."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self.ports = _read(self._path)

    def note(self, ports: frozenset[int]) -> None:
        """Remember these ports in place of those before. A disk that refuses costs the next boot, nothing now."""
        if ports == self.ports:
            return
        try:
            write_private(self._path, json.dumps(sorted(ports)).encode() + b"\n")
        except OSError as error:
            log.error("strict ports cannot be remembered", path=str(self._path), reason=str(error))
        else:
            self.ports = ports


def close_strict_ports(config: AgentConfig, owner: Owner) -> frozenset[int]:
    """Capture what must not be reached in plaintext, if the kernel has no rules of ours; return the ports.

    Rules that are there are left as they are: they outlived the agent, and hold more than this. Needs no configuration
    of the controller's. Blocks for as long as the host takes to say where its SSH is.
    """
    ports = Guard(config.state_dir).ports | frozenset(config.floor.mtls_ports)
    if not ports or capture_wanted(config):
        return frozenset()
    try:
        if kernel.read() is not None:
            return frozenset()
        host = kernel_floor.look(
            workdir.account(config.envoy.user).uid,
            (),
            config.capture,
            mtls_only=config.floor.mtls_only,
        )
        state = Capture(owner).apply(CaptureRequest(inbound_ports=ports, dns=False), host)
        if state.state != "on":
            raise CaptureError(state.error)
        closed = in_force(kernel.read()).inbound_ports
    except (CaptureError, workdir.WorkdirError) as error:
        log.error("strict ports cannot be closed", ports=sorted(ports), reason=str(error))
        return frozenset()
    log.info("strict ports are closed until envoy serves them", ports=sorted(closed))
    return closed


def _read(path: Path) -> frozenset[int]:
    try:
        found = json.loads(read_private(path))
        return frozenset(port for port in found if isinstance(port, int) and 0 < port <= 65535)
    except FileNotFoundError:
        return frozenset()
    except (StateError, ValueError, TypeError, RecursionError) as error:
        log.error("strict ports are not known", reason=str(error))
        return frozenset()
