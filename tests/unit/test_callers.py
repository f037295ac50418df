"""Who calls as whom: addresses that stand for identities, cgroups of units, and what the owner is told."""

import os
from pathlib import Path

import pytest

from hostmesh_agent import cgroup
from hostmesh_agent.capture import Caller, CaptureRequest, HostFloor, plan
from hostmesh_agent.capture.callers import envoy_in
from hostmesh_agent.capture.who import Cgroup, Match, Present
from hostmesh_agent.cgroup import CgroupError, EnvoyGroup
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_agent.entitlements import WorkloadAccess
from hostmesh_agent.own_callers import OwnCallers
from hostmesh_agent.units import Units
from hostmesh_api import wire
from hostmesh_api.callers import CALLERS_V6, caller_addresses, distinct

A, B = "spiffe://td/ns/shop/sa/a", "spiffe://td/ns/shop/sa/b"
HERE = "35 24 0:30 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw"


def test_addresses_that_stand_for_identities_are_on_loopback_and_never_change() -> None:
    v4, v6 = caller_addresses(A)
    assert (str(v4), str(v6)) == ("127.152.153.166", "fd00:f0f1::cc:594d:b36a:c988")
    assert v4.is_loopback
    assert v6 in CALLERS_V6
    taken = {wire.DNS_ADDRESS, wire.INBOUND_SOURCE_V4, "127.0.0.1"}
    many = [caller_addresses(f"spiffe://td/ns/n/sa/{index}") for index in range(2000)]
    assert not taken & {str(each) for each, _ in many}
    assert len({v6 for _, v6 in many}) == 2000


def test_identities_that_share_an_address_have_none() -> None:
    assert distinct((B, A, A)) == (A, B)
    by_address: dict[object, str] = {}
    for index in range(20_000):
        one = f"spiffe://td/ns/n/sa/{index}"
        other = by_address.setdefault(caller_addresses(one)[0], one)
        if other != one:
            break
    assert other != one
    assert distinct((one, A, other)) == (A,)


@pytest.mark.parametrize(
    ("mountinfo", "expected"),
    [
        (HERE, "/sys/fs/cgroup/unified"),
        ("31 23 0:27 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup rw,nsdelegate", "/sys/fs/cgroup"),
        ("31 23 0:27 / /mnt/a\\040b rw - cgroup2 cgroup rw", "/mnt/a b"),
        ("31 23 0:27 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw", None),
        ("31 23 0:27 /../.. /sys/fs/cgroup ro - cgroup2 cgroup rw", None),
        ("31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory", None),
        ("", None),
    ],
)
def test_cgroup_v2_is_where_all_of_it_is_mounted(mountinfo: str, expected: str | None) -> None:
    assert cgroup.mount_point(mountinfo) == (None if expected is None else Path(expected))


def test_a_part_of_cgroup_v2_is_where_to_go_only_for_who_asks_for_any() -> None:
    part = "31 23 0:27 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup rw"
    assert cgroup.mount_point(part, whole=False) == Path("/sys/fs/cgroup")
    assert cgroup.mount_point(f"{part}\n{HERE}", whole=False) == Path("/sys/fs/cgroup/unified")


@pytest.mark.parametrize(
    ("release", "namespace", "lacks"),
    [
        ("5.13.0-1-generic", "cgroup:[4026531835]", ""),
        ("6.18.1", "cgroup:[4026532999]", ""),
        ("5.10.0-28-amd64", "cgroup:[4026531835]", "before Linux 5.13"),
        ("6.8.0", "cgroup:[4026532999]", "before Linux 6.11"),
        ("strange", "cgroup:[4026531835]", "before Linux 5.13"),
    ],
)
def test_older_kernels_know_no_cgroups_in_rules(release: str, namespace: str, lacks: str) -> None:
    found = cgroup.kernel_lacks(release, namespace)
    assert lacks in found
    assert bool(lacks) == bool(found)


async def test_units_are_the_first_below_the_slices_that_root_owns(tmp_path: Path) -> None:
    for each in (
        "system.slice/shop.service/shop.service",
        "system.slice/system-db.slice/db@1.service",
        "user.slice/user-1.slice/user@1.service/app.slice/evil.service",
        "shop.service",
    ):
        (tmp_path / each).mkdir(parents=True)
    found = Units(lambda: None, tmp_path)
    names = frozenset({"shop.service", "db@1.service", "evil.service", "system-db.slice"})
    expected = {("shop.service", 1), ("shop.service", 2), ("db@1.service", 3), ("system-db.slice", 2)}
    if os.geteuid() != 0:
        expected = set()  # what somebody else owns was handed to him
    assert {(each.unit, each.level) for each in found.look(names)} == expected
    found.close()
    nowhere = Units(lambda: None, None)
    assert nowhere.look(names) == frozenset()


def test_envoy_does_not_start_while_the_rules_know_it_otherwise(tmp_path: Path) -> None:
    group = EnvoyGroup(tmp_path)
    assert group.why_not == ""
    assert group.prepare("blue") == str(tmp_path / "hostmesh.slice/hostmesh-envoy.slice/blue")
    group.in_force = ByCgroup(2, 1)
    with pytest.raises(CgroupError):
        group.prepare("blue")
    group.in_force = group.current()
    assert group.prepare("green").endswith("/green")
    # Rules by cgroup are left over, and there is none any more.
    none = EnvoyGroup(None)
    none.in_force = ByCgroup(2, 1)
    with pytest.raises(CgroupError):
        none.prepare()
    none.in_force = None
    assert (none.prepare(), none.why_not) == ("", "cgroup v2 is not mounted")


def test_where_no_cgroup_can_be_made_envoy_is_known_by_its_user(tmp_path: Path) -> None:
    (tmp_path / "hostmesh.slice").write_text("in the way")
    group = EnvoyGroup(tmp_path)
    assert "the cgroup cannot be made" in group.why_not
    assert group.current() is None


def test_callers_are_who_the_owner_says_among_those_whom_the_mesh_gives_an_identity() -> None:
    access = (
        WorkloadAccess("shop", "a", units=frozenset({"a.service", "gone.service"})),
        WorkloadAccess("shop", "b", users=("root", "nobody-has-this-name"), uids=frozenset({77})),
        WorkloadAccess("shop", "c", uids=frozenset({78})),
    )
    own = OwnCallers(access)
    assert own.named == Match(
        users=frozenset({"root", "nobody-has-this-name"}), units=frozenset({"a.service", "gone.service"})
    )
    cgroups = frozenset({Cgroup("a.service", 2, 7), Cgroup("of-a-policy.service", 2, 8)})
    present = Present(frozenset({("root", 0), ("of-a-policy", 5)}), cgroups)
    expected = (
        Caller(A, cgroups=frozenset({ByCgroup(2, 7)})),
        Caller(B, uids=frozenset({0, 77})),
    )
    assert own.among(present, {A, B}, "td") == expected
    assert own.among(present, {B}, "td") == expected[1:]
    assert own.among(present, {A, B}, "other") == ()
    assert list(own.problems({A, B}, "td")) == ["agent.toml: workloads: no workload of this host calls as shop/c"]
    assert list(own.problems((), "td")) == []
    blind = OwnCallers(access[:2], "cgroup v2 is not mounted")
    assert blind.named.units == frozenset()
    assert blind.among(present, {A, B}, "td") == expected[1:]
    assert list(blind.problems({A, B}, "td")) == [
        "the units of shop/a call under the host's identity: cgroup v2 is not mounted"
    ]


def test_rules_tell_by_what_they_know_envoy() -> None:
    request = CaptureRequest(mesh_prefixes=frozenset({"10.1.0.0/16"}))
    by_cgroup = plan(request, HostFloor(envoy_uid=900, envoy_cgroup=ByCgroup(2, 1 << 40))).table
    assert envoy_in(by_cgroup) == ByCgroup(2, 1 << 40)
    assert envoy_in(plan(request, HostFloor(envoy_uid=900)).table) is None
    assert envoy_in(None) is None


def test_a_host_without_callers_has_the_same_rules_as_before() -> None:
    request = CaptureRequest(mesh_prefixes=frozenset({"10.1.0.0/16"}))
    ruleset = plan(request, HostFloor(envoy_uid=900))
    assert ruleset.loopback_addresses == (wire.INBOUND_SOURCE_V6, wire.OUTBOUND_V6)
    with_caller = plan(
        CaptureRequest(mesh_prefixes=frozenset({"10.1.0.0/16"}), callers=(Caller(A, frozenset({7})),)),
        HostFloor(envoy_uid=900),
    )
    own = (wire.INBOUND_SOURCE_V6, wire.OUTBOUND_V6)
    assert with_caller.loopback_addresses == (*own, str(caller_addresses(A)[1]))
    counts = [sum(len(chain.rules) for chain in each.table.chains) for each in (ruleset, with_caller)]
    assert counts[1] - counts[0] == 4  # one for each family and kind of destination
