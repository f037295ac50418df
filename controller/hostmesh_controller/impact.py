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


Asked = tuple[str, str, str]
"""Host, type URL and name."""


def concerned(hub: Hub, touched: Touched) -> tuple[frozenset[Asked], tuple[str, ...]]:
    """Return what connected hosts have that a change may make another, and the hosts of which all may be another.

    To be asked where the hub lives; the rest can be done elsewhere.
    """
    return frozenset(hub.concerned(touched)), tuple(hub.wholly_concerned(touched))


def impact(now: Mesh, then: Mesh, asked: Iterable[Asked], wholly: Iterable[str]) -> tuple[Effect, ...]:
    """Return what showing another mesh would send, by type and name.

    Args:
        now: the mesh that is shown.
        then: the mesh as it would be.
        asked: what may be another, see `concerned`.
        wholly: the hosts that may also get what they do not have now.
    """
    names = {*asked, *_new_names(then, wholly)}
    grouped: dict[tuple[str, str, str, str], list[str]] = {}
    found: dict[tuple[str, str, str, str], tuple[Resource | None, Resource | None]] = {}
    for host, type_url, name in names:
        before, after = (_there(xds.resource(mesh, host, type_url, name)) for mesh in (now, then))
        versions = (before.version if before else "", after.version if after else "")
        if versions[0] == versions[1]:
            continue
        key = (type_url, name, *versions)
        found[key] = (before, after)
        grouped.setdefault(key, []).append(host)
    return tuple(Effect(key[0], key[1], *found[key], tuple(sorted(hosts))) for key, hosts in sorted(grouped.items()))


def _there(resource: Resource | None) -> Resource | None:
    return None if resource is None or xds.is_absent(resource) else resource


def _new_names(then: Mesh, wholly: Iterable[str]) -> Iterator[Asked]:
    """Yield what hosts would get by wildcard."""
    for host in wholly:
        for type_url in xds.WILDCARD_TYPES:
            yield from ((host, type_url, name) for name in xds.wildcard(then, host, type_url))
