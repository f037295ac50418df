"""The lab's controller: its config, its process in the world, and the few calls the lab itself makes to it."""

import json
import signal
import time
from typing import Final

from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab import machine, world
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import LabFacts, Layout
from hostmesh_controller.lab.process import alive, end
from hostmesh_controller.lab.space import tail
from hostmesh_controller.lab.subnet import GATEWAY

_READY_S: Final = 30.0
_STOP_S: Final = 30.0
_POLL_S: Final = 0.05


def config_text(layout: Layout, lab: LabFacts) -> str:
    """Text of controller.toml; JSON's strings and lists are TOML's too."""
    address = lab.net.address(GATEWAY)
    addresses = [address, *([lab.net.address6(GATEWAY)] if lab.ipv6 else [])]
    return (
        "# written by hostmesh lab, once: what you change here holds from the controller's next start\n"
        f"state_dir = {json.dumps(str(layout.controller_state))}\n"
        f"addresses = {json.dumps(addresses)}\n\n"
        "[listen]\n"
        # Hosts call at one address, so that one rule cuts them off.
        'agents = "0.0.0.0:15012"\njoin = "0.0.0.0:15013"\n'
        f'admin = "{address}:15014"\n'
        f"admin_socket = {json.dumps(str(layout.admin_socket))}\n"
    )


def start(layout: Layout, lab: LabFacts) -> None:
    """Start the controller if it does not run; ready when this returns.

    Raises:
        LabError: with the last lines of its log.
    """
    record = disk.read_process(layout.controller_process)
    if not alive(record):
        layout.controller.mkdir(exist_ok=True)
        # Whoever tries another setting in the lab keeps it.
        if not layout.controller_config.exists():
            layout.controller_config.write_text(config_text(layout, lab))
        program = machine.own_program("hostmesh-controller")
        space = world.space_of(layout, lab)
        record = space.start([str(program), "run", "--config", str(layout.controller_config)], layout.controller_log)
        disk.write_process(layout.controller_process, record)
    deadline = time.monotonic() + _READY_S
    while not _answers(layout):
        if not alive(record):
            raise LabError(f"the controller ended at once; the end of its log:\n{tail(layout.controller_log, 15)}")
        if time.monotonic() > deadline:
            raise LabError(
                f"the controller is not ready after {_READY_S:.0f} s; the end of its log:\n"
                f"{tail(layout.controller_log, 15)}"
            )
        time.sleep(_POLL_S)


def _answers(layout: Layout) -> bool:
    if not layout.admin_socket.exists():
        return False
    import httpx

    try:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(layout.admin_socket)), trust_env=False) as client:
            return client.get("http://hostmesh/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


def stop(layout: Layout, number: signal.Signals) -> None:
    """End the controller; nothing happens when it does not run."""
    end(disk.read_process(layout.controller_process), number, _STOP_S)


def address(layout: Layout) -> str:
    """What HOSTMESH_ADDRESS must be to talk to it."""
    return f"unix://{layout.admin_socket}"


def register(layout: Layout, lab: LabFacts, name: str, index: int) -> str:
    """Make the Host object and return its join string.

    Raises:
        LabError: the controller refuses, in its words.
    """
    from hostmesh_controller.cli.connection import Connection
    from hostmesh_controller.cli.failure import CliError

    addresses = [lab.net.address(index), *([lab.net.address6(index)] if lab.ipv6 else [])]
    try:
        answer = Connection(address(layout)).post("/v1/register", {"host": name, "addresses": addresses})
    except CliError as error:
        raise LabError(f"host {name}: the controller does not register it: {error}") from None
    return str(answer["join_string"])
