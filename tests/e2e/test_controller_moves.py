"""A controller gets other addresses: its hosts learn them, without a hand on any of them."""

import json
from functools import partial

from e2e.driver import Lab, eventually

NAME = "mesh.example.com"


def give(lab: Lab, *addresses: str) -> None:
    """Write what agents call into the controller's file, and restart it."""
    file = lab.root / "controller" / "controller.toml"
    lines = file.read_text().splitlines()
    changed = [f"addresses = {json.dumps(addresses)}" if each.startswith("addresses") else each for each in lines]
    assert changed != lines
    file.write_text("\n".join(changed))
    lab.verb("stop", "controller")
    lab.verb("start", "controller")


def known(lab: Lab) -> list[str]:
    return [str(each) for each in lab.agent("h1")["host"]["controllers"]]


def connected(lab: Lab) -> bool:
    return bool(lab.agent("h1")["controller"]["connected"])


def test_hosts_follow_a_controller_from_its_address_to_a_name(empty_lab: Lab) -> None:
    lab = empty_lab
    lab.verb("up", "h1")
    first = known(lab)
    (address,) = (each.rpartition(":")[0] for each in first)
    both = [f"{NAME}:15012", *first]
    give(lab, NAME, address)
    eventually(lambda: known(lab) == both, "h1 knows both", timeout_s=60)
    # Nothing has that name yet: the address leads on.
    lab.verb("kill", "agent/h1")
    lab.verb("start", "agent/h1")
    eventually(partial(connected, lab), "h1 is connected again", timeout_s=60)
    assert known(lab) == both
    hosts = lab.exec("h1", "cat", "/etc/hosts").stdout
    lab.put("h1", "/etc/hosts", f"{hosts}\n{address} {NAME}\n")
    give(lab, NAME)
    eventually(lambda: connected(lab) and known(lab) == both[:1], "h1 knows the name alone", timeout_s=60)
    record = json.loads(lab.exec("h1", "cat", "/var/lib/hostmesh/host.json").stdout)
    assert (record["agents_endpoints"], record["join_endpoints"]) == ([f"{NAME}:15012"], [f"{NAME}:15013"])
    lab.verb("kill", "agent/h1")
    lab.verb("start", "agent/h1")
    eventually(partial(connected, lab), "h1 is connected by the name", timeout_s=60)
