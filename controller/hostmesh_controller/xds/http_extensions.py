"""What is put into a proxy's filter chains beside its own filters: expulsions, tokens, plugins, limits and policies."""

from collections.abc import Callable
from dataclasses import fields
from typing import Final

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.xds.authorization import authorization_of
from hostmesh_controller.xds.expelled import expelled_of
from hostmesh_controller.xds.extension_types import NONE, Direction, Extensions, Traffic
from hostmesh_controller.xds.jwt import authentication_of
from hostmesh_controller.xds.rate_limits import limits_of
from hostmesh_controller.xds.wasm import plugins_of

__all__ = ["NONE", "Direction", "Extensions", "Traffic", "extensions"]

_SOURCES: Final[tuple[Callable[[Mesh, Host, Traffic], Extensions], ...]] = (
    expelled_of,
    authentication_of,
    plugins_of,
    limits_of,
    authorization_of,
)
"""In the order in which their filters stand at one place."""


def extensions(mesh: Mesh, host: Host, traffic: Traffic) -> Extensions:
    """Return what a host's filter chains of one kind of traffic hold besides the proxy's own filters."""
    result = NONE
    for source in _SOURCES:
        result = _both(result, source(mesh, host, traffic))
    return result


def _both(first: Extensions, second: Extensions) -> Extensions:
    if first is NONE or second is NONE:
        return second if first is NONE else first
    joined = {each.name: (*getattr(first, each.name), *getattr(second, each.name)) for each in fields(Extensions)}
    return Extensions(**joined)
