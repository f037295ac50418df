"""A host boots while the controller is down: closed from the first moment, then served as before."""

from collections.abc import Callable
from typing import Any

import pytest

from e2e.driver import eventually
from e2e.test_strict import CANARY
from hosts.machine import Machine
from hosts.mesh import VAULT, Mesh


def reboot(machine: Machine) -> None:
    machine.reboot(wait=False)


def power_cut(machine: Machine) -> None:
    machine.cut_power()
    machine.launch()


@pytest.mark.parametrize("goes_down", [reboot, power_cut])
def test_a_strict_port_is_closed_from_the_first_moment_of_a_boot_and_served_as_before_without_the_controller(
    mesh: Mesh, goes_down: Callable[[Machine], None]
) -> None:
    shop, lab = mesh.shop, mesh.lab
    assert mesh.vault() == 0
    before = captured(shop)
    assert VAULT in before["inbound_ports"]
    lab.verb("stop", "controller")
    # The vault is there before the network is: what is refused is refused by the guard, then by Envoy.
    canary = lab.popen("outside", "python3", CANARY, "call", shop.ip, str(VAULT))
    try:
        goes_down(shop)
        shop.eventually(lambda: shop.init is not None, "it boots", 30)
        shop.wait_up()
        eventually(lambda: mesh.vault() is not None, "the vault is served again", timeout_s=60)
        assert not shop.agent()["controller"]["connected"]
    finally:
        told, _ = canary.communicate("", timeout=30)
        lab.verb("start", "controller")
    assert '"answered"' not in told, told
    assert '"refused"' in told, told
    assert mesh.vault() == 0
    assert f"closed until Envoy serves them: {VAULT}" in shop.journal("hostmesh-guard.service", "-b")
    assert captured(shop) == before
    assert str(VAULT) in shop.run("nft", "list", "table", "inet", "hostmesh").stdout
    assert began(shop, "hostmesh-guard.service", "Exit") < began(shop, "systemd-networkd.service", "Start")
    eventually(lambda: shop.agent()["controller"]["connected"], "the controller is back", timeout_s=60)


def captured(machine: Machine) -> dict[str, Any]:
    """What the kernel's rules take, read back from it."""
    found = machine.agent()["capture"]
    return {name: found[name] for name in ("state", "inbound_ports", "outbound")}


def began(machine: Machine, unit: str, what: str) -> int:
    """When the unit's main process started or ended, in microseconds since the boot."""
    name = f"ExecMain{what}TimestampMonotonic"
    return int(machine.unit(unit, name)[name])
