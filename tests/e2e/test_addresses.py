"""A host's address changes, as by DHCP: a member of a group is followed, and what an operator wrote stays."""

import json
import time
from functools import partial

from e2e.driver import Lab, eventually
from e2e.test_groups import MEMBERS, answering, entry, members
from e2e.test_under_load import WORKERS, load

__all__ = ["members"]


def move(lab: Lab, host: str, address: str) -> str:
    """Give a host another address, as a lease of DHCP would; return the one that it had."""
    said = json.loads(lab.exec(host, "ip", "-j", "-4", "addr", "show", "dev", "eth0").stdout)
    (old,) = (each["local"] for each in said[0]["addr_info"])
    gateway = json.loads(lab.exec(host, "ip", "-j", "-4", "route", "show", "default").stdout)[0]["gateway"]
    lab.exec(host, "ip", "addr", "del", f"{old}/24", "dev", "eth0")
    lab.exec(host, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
    lab.exec(host, "ip", "route", "replace", "default", "via", gateway)
    return str(old)


def is_at(lab: Lab, host: str, address: str) -> bool:
    return bool(entry(lab, host)["spec"]["address"] == address)


def elsewhere(lab: Lab, last: int) -> str:
    return f"{lab.ip('m2').rpartition('.')[0]}.{last}"


def test_a_member_whose_address_changes_is_called_at_the_new_one_within_seconds_and_back(members: Lab) -> None:
    with load(members, "client", "http://reviews/") as tally:
        for address in (elsewhere(members, 200), members.ip("m2")):
            old = move(members, "m2", address)
            began_s = time.monotonic()
            eventually(partial(is_at, members, "m2", address), f"m2 is at {address}", timeout_s=10)
            followed_s = time.monotonic() - began_s
            eventually(lambda: answering(members) == set(MEMBERS), "every member serves", timeout_s=10)
            called_s = time.monotonic() - began_s
            print(f"{old} to {address}: followed after {followed_s:.1f} s, called after {called_s:.1f} s")
    # What is under way to an address that vanishes is lost: at most one call of each worker, and no later one.
    assert tally["failed"] <= 2 * WORKERS, tally
    assert {each.partition(" ")[2] for each in tally["errors"]} <= {"TimeoutError: timed out"}, tally
    with load(members, "client", "http://reviews/") as after:
        # Eight calls leave one of three out now and then.
        eventually(lambda: answering(members) == set(MEMBERS), "every member serves")
    assert after["sent"] > 100
    assert after["failed"] == 0, after


def test_an_address_that_changes_while_agent_and_controller_are_away_is_followed_when_they_are_back(
    members: Lab,
) -> None:
    members.verb("kill", "agent/m2")
    members.verb("stop", "controller")
    move(members, "m2", elsewhere(members, 201))
    members.verb("start", "controller")
    members.verb("start", "agent/m2")
    eventually(partial(is_at, members, "m2", elsewhere(members, 201)), "m2 is followed", timeout_s=20)
    eventually(lambda: answering(members) == set(MEMBERS), "every member serves", timeout_s=20)
    move(members, "m2", members.ip("m2"))
    eventually(partial(is_at, members, "m2", members.ip("m2")), "m2 is followed back", timeout_s=10)
    eventually(lambda: answering(members) == set(MEMBERS), "every member serves", timeout_s=10)


def test_an_address_that_an_operator_wrote_stays_and_the_host_says_who_must_do_what(members: Lab) -> None:
    found = json.loads(members.hostmesh("get", "host", "m1", "-o", "json").stdout)
    annotations = found["metadata"]["annotations"]
    assert annotations.pop("hostmesh.io/address-seen") == members.ip("m1")
    members.apply(json.dumps(found))
    old = move(members, "m1", elsewhere(members, 202))
    said = eventually(lambda: alarm(members, "m1"), "the alarm is up", timeout_s=10)
    assert f"Host m1 is at {elsewhere(members, 202)} and not at {old} any more" in said
    assert entry(members, "m1")["spec"]["address"] == old
    eventually(lambda: f"address.not-followed: {said}" in problems(members, "m1"), "the controller knows it too")
    # The cure that it names.
    found["spec"]["addresses"] = [elsewhere(members, 202)]
    members.apply(json.dumps(found))
    eventually(lambda: not alarm(members, "m1"), "the alarm is over", timeout_s=20)
    eventually(lambda: answering(members) == set(MEMBERS), "every member serves", timeout_s=10)


def problems(lab: Lab, host: str) -> list[str]:
    told = json.loads(lab.hostmesh("proxy", "status", "-o", "json").stdout)
    return next(list(each["problems"]) for each in told if each["host"] == host)


def alarm(lab: Lab, host: str) -> str:
    return next((each["text"] for each in lab.agent(host)["alarms"] if each["code"] == "address.not-followed"), "")
