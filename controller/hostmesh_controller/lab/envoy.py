"""The Envoys of the lab's hosts: their agents start them, the lab ends them and holds them down."""

import signal
import time
from typing import Final

from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import LabFacts, Layout
from hostmesh_controller.lab.process import ProcessRecord, end, executable, in_pid_namespace_of

HOLD: Final = "/var/lib/hostmesh/envoy/hold"
"""While this file is there the agent does not start Envoy."""
LOG: Final = "/var/lib/hostmesh/envoy/envoy.log"
_STOP_S: Final = 30.0
_START_S: Final = 30.0
_POLL_S: Final = 0.05


def processes(layout: Layout, name: str) -> list[ProcessRecord]:
    """The Envoys that run in the host; two during an upgrade."""
    init = disk.read_process(layout.host(name).init)
    if init is None:
        return []
    return [record for record in in_pid_namespace_of(init) if executable(record.pid) == "envoy"]


def kill(layout: Layout, name: str) -> None:
    """End Envoy as a crash would: its agent starts another one."""
    for record in processes(layout, name):
        end(record, signal.SIGKILL, _STOP_S)


def stop(layout: Layout, lab: LabFacts, name: str) -> None:
    """End Envoy and keep it down until `start`."""
    done = hosts.space_of(layout, lab, name).run(["touch", HOLD])
    if done.returncode != 0:
        raise LabError(f"host {name}: cannot hold Envoy down: {done.stderr.strip()} (has the host joined?)")
    for record in processes(layout, name):
        end(record, signal.SIGTERM, _STOP_S)


def release(layout: Layout, lab: LabFacts, name: str) -> None:
    """Let the agent start Envoy again."""
    hosts.space_of(layout, lab, name).run(["rm", "-f", HOLD])


def wait_running(layout: Layout, name: str) -> None:
    """Return when an Envoy runs.

    Raises:
        LabError: none came up.
    """
    deadline = time.monotonic() + _START_S
    while not processes(layout, name):
        if time.monotonic() > deadline:
            raise LabError(f"host {name}: no Envoy came up within {_START_S:.0f} s: hostmesh lab logs agent/{name}")
        time.sleep(_POLL_S)
