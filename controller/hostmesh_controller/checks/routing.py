"""Do VirtualServices and DestinationRules name what is there?"""

from collections.abc import Iterator

from hostmesh_controller.checks.world import Finding, World, port_numbers
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.virtual_service import Destination, VirtualServiceSpec
from hostmesh_controller.names import canonical_address
from hostmesh_controller.suggest import did_you_mean


def check_virtual_service(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    """Yield destinations that are not there, and hosts that another VirtualService routes too."""
    for path, destination in _destinations(spec):
        yield from _check_destination(item, path, destination, world)
    for index, host in enumerate(spec.hosts):
        others = [other for other in world.routes[world.full(host, item)] if other.key != item.key]
        if others:
            message = f"{others[0].key} has routes for {host!r} too; where both match, the older one wins"
            yield Finding(("spec", "hosts", index), message, "duplicate-host")


def _destinations(spec: VirtualServiceSpec) -> Iterator[tuple[Path, Destination]]:
    for index, http in enumerate(spec.http):
        for place, route in enumerate(http.route):
            yield ("spec", "http", index, "route", place, "destination"), route.destination
    for index, tcp in enumerate(spec.tcp):
        for place, tcp_route in enumerate(tcp.route):
            yield ("spec", "tcp", index, "route", place, "destination"), tcp_route.destination


def _check_destination(item: ApiObject, path: Path, destination: Destination, world: World) -> Iterator[Finding]:
    if canonical_address(destination.host):
        return
    host = world.full(destination.host, item)
    services = world.services_named(host)
    if not services:
        near = did_you_mean(host, world.services)
        yield Finding((*path, "host"), f"no Service or ServiceEntry defines {host!r}{near}", "unknown-host")
        return
    number = destination.port.number if destination.port else None
    ports = sorted({port for service in services for port in port_numbers(service)})
    if number is not None and ports and number not in ports:
        listed = ", ".join(map(str, ports))
        yield Finding((*path, "port", "number"), f"{host!r} has no port {number}, only {listed}", "unknown-port")
    if destination.subset:
        yield from _check_subset((*path, "subset"), host, destination.subset, world)


def _check_subset(path: Path, host: str, subset: str, world: World) -> Iterator[Finding]:
    known = [
        defined.name
        for rule in world.rules_for(host)
        if isinstance(rule.spec, DestinationRuleSpec)
        for defined in rule.spec.subsets
    ]
    if subset not in known:
        message = f"no DestinationRule for {host!r} defines the subset {subset!r}{did_you_mean(subset, known)}"
        yield Finding(path, message, "unknown-subset")


def check_destination_rule(item: ApiObject, spec: DestinationRuleSpec, world: World) -> Iterator[Finding]:
    """Yield a host that is not there, and subsets whose names another rule for the host uses too."""
    host = world.full(spec.host, item)
    if not host.startswith("*") and not world.services_named(host):
        near = did_you_mean(host, world.services)
        yield Finding(("spec", "host"), f"no Service or ServiceEntry defines {host!r}{near}", "unknown-host")
    for other in world.rules[host]:
        if other.key == item.key or other.key.namespace != item.key.namespace:
            continue
        assert isinstance(other.spec, DestinationRuleSpec)
        taken = {subset.name for subset in other.spec.subsets}
        for index, subset in enumerate(spec.subsets):
            if subset.name in taken:
                message = f"{other.key} defines the subset {subset.name!r} of this host too; the older one wins"
                yield Finding(("spec", "subsets", index, "name"), message, "duplicate-subset")
