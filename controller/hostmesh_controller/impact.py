"""What a change would send: the resources of connected proxies that would be others, before anything is changed.

Proxies that would get the same change of the same resource are told of together: an edit of a service that a thousand
hosts call is one line.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hostmesh_api.delta import Resource
from hostmesh_controller import xds
from hostmesh_controller.hub import Hub
from hostmesh_controller.mesh import Mesh, Touched


@dataclass(frozen=True, slots=True)
class Effect:
    """One resource that would be another for some hosts. None: it is not there before, or not after."""

    type_url: str
    name: str
    before: Resource | None
    after: Resource | None
    hosts: tuple[str, ...]


def impact(hub: Hub, then: Mesh, touched: Touched) -> tuple[Effect, ...]:
    """Return what showing another mesh would send to the proxies that are connected now, by type and name.

    Args:
        hub: who is connected, what they hold, and what they are shown now.
        then: the mesh as it would be.
        touched: what it is different in, as `mesh.update` tells.
    """
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    found: dict[tuple[str, str, str, str], tuple[Resource | None, Resource | None]] = {}
    for host, type_url, name in _concerned(hub, then, touched):
        before, after = (_there(xds.resource(mesh, host, type_url, name)) for mesh in (hub.mesh, then))
        versions = (before.version if before else "", after.version if after else "")
        if versions[0] == versions[1]:
            continue
        key = (type_url, name, *versions)
        found[key] = (before, after)
        grouped.setdefault(key, []).append(host)
    return tuple(Effect(key[0], key[1], *found[key], tuple(sorted(hosts))) for key, hosts in sorted(grouped.items()))


def _there(resource: Resource | None) -> Resource | None:
    return None if resource is None or xds.is_absent(resource) else resource


def _concerned(hub: Hub, then: Mesh, touched: Touched) -> Iterator[tuple[str, str, str]]:
    seen: set[tuple[str, str, str]] = set()
    for host, type_url, name in (*hub.concerned(touched), *_new_names(hub, then, touched)):
        if (host, type_url, name) not in seen:
            seen.add((host, type_url, name))
            yield host, type_url, name


def _new_names(hub: Hub, then: Mesh, touched: Touched) -> Iterable[tuple[str, str, str]]:
    """Yield what hosts would get by wildcard that they do not get now."""
    for host in hub.wholly_concerned(touched):
        for type_url in xds.WILDCARD_TYPES:
            yield from ((host, type_url, name) for name in xds.wildcard(then, host, type_url))
