"""Do VirtualServices name what is there?"""

from collections.abc import Iterator
from typing import Final

from hostmesh_controller.checks.finding import NOT_FOUND, Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import Reference, destinations, exported_to, port_numbers
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.names import canonical_address, wildcards
from hostmesh_controller.suggest import did_you_mean

_HUNDRED: Final = 100


def check_virtual_service(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    """Yield destinations that are not there or not said clearly, and hosts that another VirtualService routes too."""
    for reference in destinations(spec):
        yield from _check_destination(item, spec, reference, world)
    yield from _check_weights(spec)
    if spec.for_mesh:
        yield from _check_hosts(item, spec, world)


def _scopes(item: ApiObject, spec: VirtualServiceSpec) -> frozenset[str]:
    """The namespaces from which a destination must be seen: Istio asks those the routes are exported to."""
    if not spec.export_to:
        return frozenset({item.key.namespace})
    return frozenset(item.key.namespace if each == "." else each for each in spec.export_to if each != "*")


def _check_destination(
    item: ApiObject, spec: VirtualServiceSpec, reference: Reference, world: World
) -> Iterator[Finding]:
    destination, path = reference.destination, reference.path
    if canonical_address(destination.host):
        return
    host = world.full(destination.host, item)
    services = world.services_named(host, _scopes(item, spec))
    if not services:
        yield Finding((*path, "host"), _unknown(host, world), "unknown-host", istio_code=NOT_FOUND)
        return
    ports = sorted({port for service in services for port in port_numbers(service)})
    number = destination.port.number if destination.port else None
    listed = ", ".join(map(str, ports))
    if number is not None and ports and number not in ports:
        message = f"{host!r} has no port {number}, only {listed}"
        yield Finding((*path, "port", "number"), message, "unknown-port", istio_code=NOT_FOUND)
    if number is None and len(ports) > 1:
        message = f"{host!r} has several ports ({listed}); say with port.number which one is meant"
        yield Finding((*path, "host"), message, "port-required", istio_code="IST0112")
    if destination.subset:
        yield from _check_subset((*path, "subset"), host, destination.subset, world)


def _unknown(host: str, world: World) -> str:
    hidden = world.services_named(host)
    if hidden:
        seen = ", ".join(sorted(exported_to(hidden[0]))) or "nobody"
        return f"{hidden[0].key} defines {host!r} and is exported to {seen} only; add this namespace to its exportTo"
    return f"no Service or ServiceEntry defines {host!r}{world.near(host)}"


def _check_subset(path: Path, host: str, subset: str, world: World) -> Iterator[Finding]:
    known = [
        defined.name
        for rule in world.rules_for(host)
        if isinstance(rule.spec, DestinationRuleSpec)
        for defined in rule.spec.subsets
    ]
    if subset not in known:
        message = f"no DestinationRule for {host!r} defines the subset {subset!r}{did_you_mean(subset, known)}"
        yield Finding(path, message, "unknown-subset", istio_code=NOT_FOUND)


def _check_weights(spec: VirtualServiceSpec) -> Iterator[Finding]:
    weights: list[tuple[Path, list[int]]] = []
    for index, http in enumerate(spec.http):
        weights.append((("spec", "http", index), [each.weight or 0 for each in http.route]))
    for protocol, rules in (("tls", spec.tls), ("tcp", spec.tcp)):
        for index, rule in enumerate(rules):
            weights.append((("spec", protocol, index), [each.weight or 0 for each in rule.route]))
    for path, found in weights:
        total = sum(found)
        if len(found) > 1 and total != _HUNDRED:
            message = f"the weights sum to {total}, not to 100: each counts as its share of {total}"
            yield Finding((*path, "route"), message, "weights")


def _check_hosts(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    for index, text in enumerate(spec.hosts):
        host = world.full(text, item)
        path: Path = ("spec", "hosts", index)
        same = next((each for each in world.others_at(Relation.ROUTE, host, item) if _meets(item, each)), None)
        if same is not None:
            message = (
                f"{same.key} has routes for {text!r} too; where both match, the older one wins. Merge them into one "
                "VirtualService"
            )
            yield Finding(path, message, "duplicate-host", istio_code="IST0109")
            continue
        near = next((each for each in _overlapping(item, host, world) if _meets(item, each)), None)
        if near is not None:
            message = f"{near.key} has routes for hosts that {text!r} overlaps; for each name the nearest host holds"
            yield Finding(path, message, "overlapping-host", "info", "IST0109")


def _overlapping(item: ApiObject, host: str, world: World) -> Iterator[ApiObject]:
    """Yield what Istio takes for a conflict: a wildcard that all see, over a host that only some see."""
    if "*" in exported_to(item):
        if host.startswith("*"):
            yield from world.others_at(Relation.KEPT_ROUTE, host, item)
        return
    for wildcard in wildcards(host):
        yield from (each for each in world.others_at(Relation.ROUTE, wildcard, item) if "*" in exported_to(each))


def _meets(item: ApiObject, other: ApiObject) -> bool:
    """Tell whether hosts of the mesh see both."""
    assert isinstance(other.spec, VirtualServiceSpec)
    mine, theirs = exported_to(item), exported_to(other)
    return other.spec.for_mesh and ("*" in mine or "*" in theirs or bool(mine & theirs))
