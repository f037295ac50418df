"""Tests that hold for each of the kernel's parts that can hold the rules."""

from dataclasses import replace
from typing import Final

import pytest

from hostmesh_agent.capture import HostFloor
from hostmesh_agent.capture.rules import Backend

_chosen: Final = [Backend.NFTABLES]

each_backend: Final = pytest.mark.parametrize(
    "backend", list(Backend), indirect=True, ids=[each.value for each in Backend]
)


def choose(backend: Backend) -> None:
    """Say for what `made_for` makes a floor from now on."""
    _chosen[0] = backend


def made_for(floor: HostFloor) -> HostFloor:
    """Return the floor of a host whose rules are held by the back end under test."""
    return replace(floor, backend=_chosen[0])
