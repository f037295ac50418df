"""Whose address follows its host, whose stays, and that nobody gets another's."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hostmesh_controller.address_keeper import AddressKeeper
from hostmesh_controller.checks.world import World, world_of
from hostmesh_controller.following import (
    AT_ONCE,
    STEADY,
    WINDOW,
    Advice,
    Move,
    Pace,
    Stays,
    Whereabouts,
    judge,
    moved,
    together,
)
from hostmesh_controller.groups import (
    MEMBER_OF,
    SEEN_AT,
    WITHIN,
    Membership,
    candidate,
    derive,
    host_document,
    member_entry,
)
from hostmesh_controller.model import ApiObject, ObjectKey, read_document
from hostmesh_controller.registrar import Guard, Outcome
from hostmesh_controller.review import Documents, Review, review

NOW = datetime(2026, 6, 1, tzinfo=UTC)
GROUP = ObjectKey("WorkloadGroup", "shop", "web")


def made(kind: str, name: str, spec: dict[str, Any], namespace: str = "shop", **annotations: str) -> ApiObject:
    version = "hostmesh.io/v1" if kind == "Host" else "networking.istio.io/v1"
    metadata: dict[str, Any] = {"name": name, "annotations": annotations}
    if kind != "Host":
        metadata["namespace"] = namespace
    found, faults = read_document({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}, "default")
    assert found is not None, faults
    return found


GROUP_ITEM = made(
    "WorkloadGroup", "web", {"metadata": {"labels": {"app": "web"}}, "template": {"serviceAccount": "web"}}
)


def member(name: str, address: str, *, seen: str | None = None, within: str = "") -> tuple[ApiObject, ApiObject]:
    more = {WITHIN: within} if within else {}
    host = made("Host", name, {"addresses": [address]}, **{MEMBER_OF: "shop/web", SEEN_AT: seen or address, **more})
    return host, member_entry(GROUP_ITEM, host)


def pool(*members: tuple[ApiObject, ApiObject], more: Sequence[ApiObject] = ()) -> World:
    return world_of([GROUP_ITEM, *(each for pair in members for each in pair), *more])


def at(host: str, address: str, *others: str, had: str = "", astray: bool = False) -> Whereabouts:
    return Whereabouts(host, address, frozenset({address, *others}), frozenset({had} - {""}), astray)


def judged(where: Whereabouts, world: World, *connected: str) -> Move | Stays | None:
    return judge(where, world, lambda host: host in connected)


def why(where: Whereabouts, world: World, *connected: str) -> str:
    found = judged(where, world, *connected)
    assert isinstance(found, Stays), found
    return found.why


def test_the_address_of_a_member_follows_it_and_its_entry_follows_its_address() -> None:
    world = pool(member("a", "10.0.0.1"))
    move = judged(at("a", "10.0.0.9"), world)
    assert move == Move("a", "10.0.0.1", "10.0.0.9")
    host, faults = read_document(moved(world.objects[ObjectKey("Host", "", "a")], move), "default")
    assert host is not None, faults
    assert host.metadata.annotations == {MEMBER_OF: "shop/web", SEEN_AT: "10.0.0.9"}
    membership = Membership()
    for key, item in world.objects.items():
        membership.note(key, item)
    (entry,) = derive([host], world.objects, membership).puts
    assert entry.to_dict()["spec"]["address"] == "10.0.0.9"
    # And back.
    assert judged(at("a", "10.0.0.1"), world_of([GROUP_ITEM, host, entry])) == Move("a", "10.0.0.9", "10.0.0.1")


@pytest.mark.parametrize(
    "where",
    [
        pytest.param(at("a", "10.0.0.1"), id="it is where it was"),
        pytest.param(at("a", "10.0.0.9", "10.0.0.1"), id="it has its address still, and calls from another of its own"),
        pytest.param(Whereabouts("a", "203.0.113.1", frozenset({"192.168.0.5"})), id="it is translated on the way"),
        pytest.param(Whereabouts("a", "10.0.0.9", frozenset()), id="it does not say what it has"),
        pytest.param(at("a", "127.0.0.1"), id="nobody can call a loopback address"),
        pytest.param(at("a", "fe80::1"), id="nor one of a link"),
        pytest.param(at("a", "240.240.0.7"), id="nor a virtual one of the mesh"),
        pytest.param(at("ghost", "10.0.0.9"), id="it is not registered"),
    ],
)
def test_an_address_stays_where_nothing_proves_that_it_has_changed(where: Whereabouts) -> None:
    assert judged(where, pool(member("a", "10.0.0.1"))) is None


def test_what_an_operator_wrote_into_the_host_stays_and_the_host_is_named_with_the_cure() -> None:
    for seen in ("10.0.0.7", "none"):
        world = pool(member("a", "10.0.0.1", seen=seen))
        said = why(at("a", "10.0.0.9", had="10.0.0.1"), world)
        assert said.startswith("Host a is at 10.0.0.9 and not at 10.0.0.1 any more")
        assert "write 10.0.0.9 there, or give it 10.0.0.1 back" in said
        # After a restart of the controller the host's own alarm is what is left.
        assert why(at("a", "10.0.0.9", astray=True), world) == said
        # An address that the host never had is translated on the way: it works, and nobody is alarmed.
        assert judged(at("a", "10.0.0.9"), world) is None


@pytest.mark.parametrize(
    "named",
    [
        made("WorkloadEntry", "db", {"address": "10.0.0.1"}),
        made(
            "ServiceEntry",
            "db",
            {
                "hosts": ["db.example"],
                "location": "MESH_INTERNAL",
                "resolution": "STATIC",
                "ports": [{"number": 80, "name": "http"}],
                "endpoints": [{"address": "10.0.0.1"}],
            },
        ),
    ],
    ids=lambda item: item.key.kind,
)
def test_an_address_that_an_operator_gave_to_a_workload_there_stays_and_the_object_is_named(named: ApiObject) -> None:
    said = why(at("a", "10.0.0.9"), pool(member("a", "10.0.0.1"), more=[named]))
    assert f"{named.key} has 10.0.0.1 from an operator: write 10.0.0.9 there and in Host a" in said


def test_a_host_gets_no_identity_by_moving_to_where_a_workload_is_expected() -> None:
    entry = made("WorkloadEntry", "vault", {"address": "10.0.0.9", "serviceAccount": "vault"})
    said = why(at("a", "10.0.0.9"), pool(member("a", "10.0.0.1"), more=[entry]))
    assert f"{entry.key} is at 10.0.0.9" in said
    service = made(
        "ServiceEntry",
        "out",
        {"hosts": ["out.example"], "addresses": ["10.0.0.9"], "ports": [{"number": 80, "name": "tcp"}]},
    )
    assert "is at 10.0.0.9" in why(at("a", "10.0.0.9"), pool(member("a", "10.0.0.1"), more=[service]))


def test_a_host_does_not_take_the_address_of_another_and_is_told_whose_it_is() -> None:
    world = pool(member("a", "10.0.0.1"), member("b", "10.0.0.2"))
    found = judged(at("a", "10.0.0.2"), world, "b")
    assert isinstance(found, Stays)
    assert "10.0.0.2 is the address of Host b, which is connected too: two hosts have one address" in found.why
    assert found.blocked == Move("a", "10.0.0.1", "10.0.0.2")
    assert together({"a": found.blocked}, world) == ()
    assert "remove it (hostmesh host remove b)" in why(at("a", "10.0.0.2"), world)


def test_an_address_stays_within_the_blocks_by_which_the_host_joined() -> None:
    world = pool(member("a", "10.0.0.1", within="10.0.0.0/24,10.0.9.0/24"))
    assert judged(at("a", "10.0.9.9"), world) == Move("a", "10.0.0.1", "10.0.9.9")
    assert "10.0.0.0/24, 10.0.9.0/24 alone" in why(at("a", "10.0.1.9"), world)


def test_hosts_that_exchange_their_addresses_do_so_at_once_and_a_row_of_them_too() -> None:
    world = pool(*(member(name, f"10.0.0.{number}") for number, name in enumerate("abc", 1)))
    a_to_b, b_to_a = Move("a", "10.0.0.1", "10.0.0.2"), Move("b", "10.0.0.2", "10.0.0.1")
    assert together({"a": a_to_b}, world) == ()
    assert together({"a": a_to_b, "b": b_to_a}, world) == (a_to_b, b_to_a)
    b_away, c_to_b = Move("b", "10.0.0.2", "10.0.0.7"), Move("c", "10.0.0.3", "10.0.0.2")
    assert together({"a": a_to_b, "b": b_away}, world) == (a_to_b, b_away)
    # Of two that want one address the first gets it.
    assert together({"a": a_to_b, "c": c_to_b, "b": b_away}, world) == (a_to_b, b_away)


def test_an_address_that_changes_too_often_must_stay_before_it_is_followed() -> None:
    pace, now = Pace(), NOW
    for number in range(AT_ONCE):
        now += timedelta(seconds=5)
        pace = pace.wants(f"10.0.0.{number}", now)
        assert not pace.wait(now)
        pace = pace.followed(now)
    pace = pace.wants("10.0.0.9", now)
    assert pace.wait(now) == STEADY
    assert pace.wants("10.0.0.9", now + STEADY).wait(now + STEADY) == timedelta()
    # Another one begins anew, and so does everything after a while, or by a clock that was set back.
    assert pace.wants("10.0.0.8", now + STEADY).wait(now + STEADY) == STEADY
    late = now + WINDOW + STEADY
    assert not pace.wants("10.0.0.8", late).wait(late)
    assert not pace.wants("10.0.0.9", NOW - WINDOW).wait(NOW - WINDOW)


@pytest.mark.parametrize(
    ("address", "own", "follows"),
    [("", ["10.0.0.1"], True), ("10.0.0.1", ["10.0.0.1"], False), ("", ["192.168.0.5"], False), ("", [], False)],
)
def test_the_address_of_a_new_member_follows_where_it_was_seen_and_not_said(
    address: str, own: list[str], follows: bool
) -> None:
    joined = host_document(candidate(GROUP, "a", "a", address, "10.0.0.1", own, ["10.0.0.0/8"]))
    found = joined["metadata"]["annotations"]
    assert (found.get(SEEN_AT), found.get(WITHIN)) == (("10.0.0.1", "10.0.0.0/8") if follows else (None, None))


class Registry:
    """Reviews and keeps objects as the registrar does, in memory."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.actors: list[str] = []

    async def apply(self, documents: Documents, *, actor: str, guard: Guard | None = None) -> Outcome:
        assert guard is not None
        guard((), self.world)
        verdict: Review = review(documents, self.world)
        if not verdict.errors:
            self.actors.append(actor)
            self.world = self.world.changed({each.key: each for each in documents.objects})
        return Outcome(verdict, (), 1)

    def address(self, host: str) -> str:
        return str(self.world.objects[ObjectKey("Host", "", host)].to_dict()["spec"]["addresses"][0])


class Kept:
    def __init__(self, world: World) -> None:
        self.registry, self.now = Registry(world), NOW
        self.keeper = AddressKeeper(self.registry, lambda _: True, lambda: self.now)

    async def heard(self, where: Whereabouts) -> Advice:
        return await self.keeper.heard(where)


def hosts_alone(*names: str) -> World:
    return world_of(
        made("Host", name, {"addresses": [f"10.0.0.{number}"]}, **{SEEN_AT: f"10.0.0.{number}"})
        for number, name in enumerate(names, 1)
    )


async def test_a_host_that_waits_for_anothers_address_gets_it_when_the_other_has_moved() -> None:
    kept = Kept(hosts_alone("a", "b", "c"))
    told = await kept.heard(at("a", "10.0.0.2"))
    assert "10.0.0.2 is the address of Host b" in told.problem
    assert told.again_s > 0
    assert await kept.heard(at("b", "10.0.0.1")) == Advice()
    assert [kept.registry.address(each) for each in "abc"] == ["10.0.0.2", "10.0.0.1", "10.0.0.3"]
    assert kept.registry.actors == ["host:b"]
    # c waits for what b leaves without needing what anybody has.
    assert (await kept.heard(at("c", "10.0.0.1"))).problem
    assert await kept.heard(at("b", "10.0.0.7")) == Advice()
    assert [kept.registry.address(each) for each in "abc"] == ["10.0.0.2", "10.0.0.7", "10.0.0.1"]


async def test_a_host_that_waits_costs_no_look_at_all_others_that_wait() -> None:
    """A thousand that moved on by one, while who has the last address is away, report each ten seconds."""
    count, looks = 60, [0]
    kept = Kept(hosts_alone(*(f"h{number}" for number in range(count + 1))))

    def connected(_: str) -> bool:
        looks[0] += 1
        return True

    kept.keeper = AddressKeeper(kept.registry, connected, lambda: kept.now)
    for number in range(count):
        assert (await kept.heard(at(f"h{number}", f"10.0.0.{number + 2}"))).again_s
    looks[0] = 0
    await kept.heard(at("h0", "10.0.0.2"))
    assert looks[0] == 1
    # And all of them move once the last one says where it is.
    assert await kept.heard(at(f"h{count}", "10.0.9.9")) == Advice()
    assert [kept.registry.address(f"h{number}") for number in (0, count - 1)] == ["10.0.0.2", f"10.0.0.{count + 1}"]


async def test_the_word_of_a_host_that_is_silent_for_long_moves_nobody() -> None:
    kept = Kept(hosts_alone("a", "b"))
    await kept.heard(at("b", "10.0.0.1"))
    kept.now += timedelta(hours=1)
    assert (await kept.heard(at("a", "10.0.0.2"))).problem
    assert [kept.registry.address(each) for each in "ab"] == ["10.0.0.1", "10.0.0.2"]


async def test_a_host_that_is_back_where_it_was_does_not_leave_its_address_any_more() -> None:
    kept = Kept(hosts_alone("a", "b"))
    await kept.heard(at("b", "10.0.0.1"))
    assert await kept.heard(at("b", "10.0.0.2")) == Advice()
    assert (await kept.heard(at("a", "10.0.0.2"))).problem
    assert [kept.registry.address(each) for each in "ab"] == ["10.0.0.1", "10.0.0.2"]


async def test_a_host_that_flaps_is_followed_once_it_stays_and_reports_in_time_for_that() -> None:
    kept = Kept(hosts_alone("a"))
    for number in range(AT_ONCE):
        assert await kept.heard(at("a", f"10.0.1.{number}")) == Advice()
    told = await kept.heard(at("a", "10.0.1.77"))
    assert told.again_s == STEADY.total_seconds()
    assert "changes too often" in told.problem
    assert kept.registry.address("a") == f"10.0.1.{AT_ONCE - 1}"
    kept.now += STEADY
    assert await kept.heard(at("a", "10.0.1.77")) == Advice()
    assert kept.registry.address("a") == "10.0.1.77"


async def test_what_an_operator_writes_meanwhile_is_not_overwritten() -> None:
    kept = Kept(hosts_alone("a"))
    apply = kept.registry.apply

    async def late(documents: Documents, *, actor: str, guard: Guard | None = None) -> Outcome:
        fixed = made("Host", "a", {"addresses": ["10.0.0.50"]})
        kept.registry.world = kept.registry.world.changed({fixed.key: fixed})
        return await apply(documents, actor=actor, guard=guard)

    kept.registry.apply = late  # type: ignore[method-assign]
    told = await kept.heard(at("a", "10.0.0.9"))
    assert "another change was made meanwhile" in told.problem
    assert kept.registry.address("a") == "10.0.0.50"
