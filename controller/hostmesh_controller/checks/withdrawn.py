"""What others lose when an object changes or goes: names that they refer to and that nothing defines any more."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import NOT_FOUND, Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import (
    Reference,
    destinations,
    labels_of,
    port_numbers,
    selector_of,
    service_names,
)
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey, Path, path_text
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.secret import SecretSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.workloads import WorkloadEntrySpec


def check_withdrawn(key: ObjectKey, before: World, after: World) -> Iterator[Finding]:
    """Yield what was defined by the object of that key before, is defined by nothing after, and is still referred to.

    The findings are of the object that changes; they name one of those that are left without.
    """
    old, new = before.objects.get(key), after.objects.get(key)
    if old is None or old is new:
        return
    if isinstance(old.spec, DestinationRuleSpec):
        yield from _subsets(old, old.spec, after)
    if isinstance(old.spec, WorkloadEntrySpec):
        yield from _members(old, before, after)
    if new is None:
        yield from _names(old, after)
    for name in service_names(old, after.domain):
        yield from _service(old, name, after)


def _names(old: ApiObject, after: World) -> Iterator[Finding]:
    """Yield who names an object that is gone."""
    name = f"{old.key.namespace}/{old.key.name}"
    match old.spec:
        case GatewaySpec():
            users, loss = after.at(Relation.GATEWAY_USER, name), "routes at this gateway, which is gone"
        case VirtualServiceSpec(is_delegate=True):
            users, loss = after.at(Relation.DELEGATOR, name), "leaves routes to it: such requests get 404"
        case SecretSpec():
            users = [each for each in after.at(Relation.CREDENTIAL_USER, old.key.name) if _uses(each, old, after)]
            loss = "shows its certificate, and loses it"
        case _:
            return
    if users:
        yield Finding((), f"{users[0].key} {loss}{_more(users)}", "still-referred", istio_code=NOT_FOUND)


def _uses(gateway: ApiObject, secret: ApiObject, world: World) -> bool:
    assert isinstance(gateway.spec, GatewaySpec)
    return any(True for _ in world.selected(gateway.spec.selector, secret.key.namespace))


def _service(old: ApiObject, host: str, after: World) -> Iterator[Finding]:
    services = after.services_named(host)
    if not services:
        callers = after.at(Relation.CALLER, host)
        if callers:
            message = f"{callers[0].key} refers to {host!r}{_more(callers)}, which nothing defines any more"
            yield Finding(_where(old, after), message, "still-referred", istio_code=NOT_FOUND)
        return
    ports = {number for service in services for number in port_numbers(service)}
    lost = set(port_numbers(old)) - ports
    for caller, reference in _references(host, after) if lost else ():
        number = reference.destination.port.number if reference.destination.port else None
        if number in lost:
            message = (
                f"{caller.key} ({path_text(reference.path)}) calls port {number} of {host!r}, which is not there any "
                "more"
            )
            yield Finding(_where(old, after), message, "still-referred", istio_code=NOT_FOUND)
            lost.discard(number)


def _subsets(old: ApiObject, spec: DestinationRuleSpec, after: World) -> Iterator[Finding]:
    host = after.full(spec.host, old)
    there = {
        subset.name
        for rule in after.rules_for(host)
        if isinstance(rule.spec, DestinationRuleSpec)
        for subset in rule.spec.subsets
    }
    lost = {subset.name for subset in spec.subsets} - there
    for caller, reference in _references(host, after) if lost else ():
        subset = reference.destination.subset
        if subset in lost:
            message = (
                f"{caller.key} ({path_text(reference.path)}) routes to the subset {subset!r} of {host!r}, which "
                "nothing defines any more: such requests fail with 503. Change the route first"
            )
            yield Finding(_where(old, after, "subsets"), message, "still-referred", istio_code=NOT_FOUND)
            lost.discard(subset)


def _members(old: ApiObject, before: World, after: World) -> Iterator[Finding]:
    """Yield the subsets of which a workload was the last member."""
    labels = labels_of(old)
    for service in sorted(before.selecting(old), key=lambda each: each.key):
        for name in service_names(service, after.domain) if service.key in after.objects else ():
            for rule in after.at(Relation.RULE, name):
                assert isinstance(rule.spec, DestinationRuleSpec)
                for subset in rule.spec.subsets:
                    wanted = {**selector_of(service), **subset.labels}
                    was = wanted.items() <= labels.items()
                    if was and not any(True for _ in after.selected(wanted, service.key.namespace)):
                        message = f"the subset {subset.name!r} of {name!r} ({rule.key}) loses its last workload"
                        yield Finding(_where(old, after), message, "empty-subset", istio_code="IST0173")


def _references(host: str, world: World) -> Iterator[tuple[ApiObject, Reference]]:
    for caller in world.at(Relation.CALLER, host):
        if isinstance(caller.spec, VirtualServiceSpec):
            for reference in destinations(caller.spec):
                if world.full(reference.destination.host, caller) == host:
                    yield caller, reference


def _where(old: ApiObject, after: World, field: str = "") -> Path:
    """The whole object where it goes; the part that loses something where it stays."""
    if old.key not in after.objects:
        return ()
    return ("spec", field) if field else ("spec",)


def _more(callers: list[ApiObject]) -> str:
    return f" (and {len(callers) - 1} more do)" if len(callers) > 1 else ""
