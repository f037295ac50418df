"""One endpoint changes in a large mesh: what is sent, and that it costs what it costs in a small one."""

from collections.abc import Callable

import pytest

from bench.endpoint import LARGE, NAME, SMALL, World, calls
from hostmesh_api.wire import ENDPOINT_TYPE
from hostmesh_controller.mesh import HostRuntime
from hostmesh_controller.mesh.table import Table

MORE_CALLS = 1.2
"""A shard of a table is larger in a large mesh, and is compared entry by entry."""


@pytest.fixture(scope="module")
def large() -> World:
    return World(LARGE)


@pytest.fixture(scope="module")
def small() -> World:
    return World(SMALL)


@pytest.mark.parametrize("change", [World.move, World.ready])
def test_the_endpoints_of_its_service_are_sent_and_nothing_else(
    large: World, change: Callable[[World, int], list[tuple[str, str]]]
) -> None:
    change(large, 2)
    assert change(large, 3) == [(ENDPOINT_TYPE, NAME)]


@pytest.mark.parametrize("change", [World.move, World.ready])
def test_it_costs_the_same_among_5000_services_as_among_50(
    large: World, small: World, change: Callable[[World, int], list[tuple[str, str]]]
) -> None:
    for world in (large, small):
        change(world, 4)
    counts = [calls(lambda world=world: change(world, 5)) for world in (small, large)]  # type: ignore[misc] # bound early
    assert counts[1] < counts[0] * MORE_CALLS, counts


def test_only_hosts_of_which_something_else_is_true_are_looked_at() -> None:
    facts = HostRuntime(joined=True)
    before = Table[str, HostRuntime]().changed({f"h{index}": facts for index in range(1000)})
    after = before.changed({"h7": HostRuntime(), "h8": None, "new": facts})
    assert after.differing(before) == before.differing(after) == {"h7", "h8", "new"}
    assert before.differing(before) == set()
