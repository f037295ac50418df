"""Several ServiceEntries of one namespace with one host: they are one service, as in Istio.

The oldest decides on everything; the others add ports, addresses, names and endpoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from hostmesh_controller.mesh.index import NO_ENDPOINTS, Mesh
from hostmesh_controller.mesh.records import (
    Endpoints,
    Member,
    NamedEndpoint,
    Service,
    ServiceId,
    ServicePort,
    WorkloadKey,
)


def whole(mesh: Mesh, service: Service) -> Service:
    """Return the service of which an object defines a part: the same object for as long as the parts are.

    A Service is whole by itself, and goes before ServiceEntries of its name.
    """
    ids = mesh.services_by_hostname.get(service.id.hostname, frozenset())
    if len(ids) < 2 or service.short:
        return service
    found = (mesh.services[item] for item in ids if item.namespace == service.id.namespace)
    # Those that are shown to others than it are other services.
    alike = (each for each in found if not each.short and each.export_to == service.export_to)
    parts = tuple(sorted(alike, key=_age))
    if len(parts) < 2:
        return service
    return mesh.memo.get(("whole", parts[0].id, len(parts)), parts, lambda: _merged(parts))


def _age(service: Service) -> tuple[object, ServiceId]:
    return service.order, service.id


def _merged(parts: Sequence[Service]) -> Service:
    first = parts[0]
    ports: dict[int, ServicePort] = {}
    for part in parts:
        for port in part.ports:
            ports.setdefault(port.number, port)
    return replace(
        first,
        ports=tuple(ports.values()),
        addresses=tuple(dict.fromkeys(address for part in parts for address in part.addresses)),
        subject_alt_names=tuple(dict.fromkeys(name for part in parts for name in part.subject_alt_names)),
        parts=tuple(parts),
    )


def endpoints_of(mesh: Mesh, service: Service) -> Endpoints:
    """Return the workloads of a service, of all its parts; who answered for it a moment ago still may."""
    if not service.parts:
        return _with_former(mesh, service.id)
    found = tuple(_with_former(mesh, part.id) for part in service.parts)
    key = ("whole endpoints", service.id, len(found))
    return mesh.memo.get(key, (service, *found), lambda: _together(service, found))


def _with_former(mesh: Mesh, item: ServiceId) -> Endpoints:
    found, former = mesh.endpoints.get(item, NO_ENDPOINTS), mesh.former_identities.get(item)
    if not former:
        return found
    identities = tuple(sorted({*found.identities, *former}))
    return mesh.memo.get(("with former", item), (found, former), lambda: replace(found, identities=identities))


def _together(service: Service, found: Iterable[Endpoints]) -> Endpoints:
    members: dict[WorkloadKey, Member] = {}
    identities: set[str] = set()
    for part, endpoints in zip(service.parts, found, strict=True):
        numbers = _shared(service, part)
        identities.update(endpoints.identities)
        for key, member in endpoints.members.items():
            own = {number: endpoint for number, endpoint in member.endpoints.items() if number in numbers}
            before = members.get(key)
            members[key] = (
                Member({**own, **before.endpoints}, before.identities) if before else Member(own, member.identities)
            )
    return Endpoints(members, tuple(sorted(identities)))


def _shared(service: Service, part: Service) -> frozenset[int]:
    """Return the ports of which a part's word counts: its number and its name are those of the service."""
    names = {port.number: port.name for port in service.ports}
    return frozenset(port.number for port in part.ports if names.get(port.number) == port.name)


def named_endpoints(service: Service, port: ServicePort) -> tuple[NamedEndpoint, ...]:
    """Return the endpoints of a port that are found by DNS."""
    if not service.parts:
        return service.named_endpoints
    found: list[NamedEndpoint] = []
    for part in service.parts:
        if port.number in _shared(service, part):
            found += [each for each in part.named_endpoints if each not in found]
    return tuple(found)
