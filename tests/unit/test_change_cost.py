"""A change costs the whole controller, from the API to what is sent, the same among many services as among few."""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from bench.changes import CHANGES, Change, World
from bench.endpoint import SMALL, calls
from hostmesh_api.wire import CLUSTER_TYPE, ENDPOINT_TYPE, LISTENER_TYPE, VIRTUAL_HOST_TYPE

MANY = 1_000
SENT = {
    "an endpoint's address": {ENDPOINT_TYPE},
    "a report of readiness": {ENDPOINT_TYPE},
    "a VirtualService's HTTP route": {VIRTUAL_HOST_TYPE},
    "a DestinationRule": {CLUSTER_TYPE},
    "weights of a TCP route": {LISTENER_TYPE},
    "one Service more": {LISTENER_TYPE},
}


@pytest.fixture(scope="module")
def worlds() -> Iterator[tuple[World, World]]:
    with ExitStack() as stack:
        yield stack.enter_context(World(SMALL)), stack.enter_context(World(MANY))


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.what)
def test_it_costs_the_same_and_sends_what_changed_alone(worlds: tuple[World, World], change: Change) -> None:
    for world in worlds:
        for number in (2, 3):
            sent = change.make(world, number)
        assert {type_url for type_url, _ in sent} == SENT[change.what], sent
    counts = [calls(partial(change.make, world, 4)) for world in worlds]
    assert counts[1] < counts[0] * change.most, counts


@pytest.mark.parametrize("change", CHANGES[:-1], ids=lambda change: change.what)
def test_what_is_kept_does_not_grow_with_the_changes(worlds: tuple[World, World], change: Change) -> None:
    world, _ = worlds
    kept = []
    for first in (5, 15):
        for number in range(first, first + 10):
            change.make(world, number)
        kept.append(world.kept())
    assert kept[0] == kept[1]
