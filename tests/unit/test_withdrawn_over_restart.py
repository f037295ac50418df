"""A host that is withdrawn stays so over a restart of the controller, with a real store; nobody else is touched."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

import pki
from hostmesh_controller.enrolments import Enrolments
from hostmesh_controller.host_runtimes import FORMERLY, HostRuntimes
from hostmesh_controller.lease_keeper import LeaseKeeper
from hostmesh_controller.leases import LEASE_S, MISSES
from hostmesh_controller.reports import HostStates
from hostmesh_controller.store import Store
from hostmesh_controller.store.sqlite import open_store

HOSTS = ("h1", "h2", "h3")


class Life:
    """What one controller process knows of hosts."""

    def __init__(self, store: Store) -> None:
        self.states = HostStates(store, lambda _: None, pki.now)
        self.keeper = LeaseKeeper(lambda _: None, lambda host: (host,), _nobody_is_asked)
        enrolments = Enrolments(store, lambda _: None, pki.now)
        self.at = pki.now()
        self.runtimes = HostRuntimes(self.states, enrolments, lambda _: True, self.keeper, now=lambda: self.at)
        self.runtimes.open(store.host_states())

    def silent(self) -> dict[str, bool]:
        return {host: self.runtimes.table[host].silent for host in HOSTS}

    async def look(self) -> None:
        await self.runtimes.look(HOSTS)
        await self.runtimes.keep(HOSTS)


async def _nobody_is_asked(_: Sequence[str]) -> bool | None:
    raise AssertionError


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = open_store(tmp_path / "store.sqlite")
    yield made
    made.close()


async def test_the_identity_that_a_workload_had_counts_for_a_minute(store: Store) -> None:
    life = Life(store)
    await life.states.joined("h1")
    former = (("shop", "cart"), "spiffe://t/ns/shop/sa/old")
    life.runtimes.note_former("h1", *former)
    await life.look()
    assert life.runtimes.table["h1"].presented == {former}
    life.at += FORMERLY
    await life.look()
    assert life.runtimes.table["h1"].presented == frozenset()


async def test_a_withdrawn_host_is_out_from_the_start_of_the_next_process_until_it_is_back(store: Store) -> None:
    first = Life(store)
    for host in HOSTS:
        await first.states.joined(host)
        first.keeper.leases.connected(host, 0.0)
    first.keeper.leases.ended("h1", 10.0)
    for _ in range(MISSES):
        first.keeper.leases.knocked("h1", answered=False, now=11.0)
    first.keeper.leases.todo(10.0 + LEASE_S)
    await first.look()
    assert first.silent() == {"h1": True, "h2": False, "h3": False}

    second = Life(store)
    assert second.silent() == {"h1": True, "h2": False, "h3": False}
    assert second.keeper.leases.is_out("h1")
    second.keeper.connected("h1")
    second.keeper.reported("h1", "live")
    now = second.keeper.leases.next_at(0.0)
    assert now is not None
    second.keeper.leases.todo(now + 1e9)
    await second.look()

    third = Life(store)
    assert not any(third.silent().values())
    assert not third.keeper.leases.is_out("h1")
