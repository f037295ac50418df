"""Gateways: the hosts they are for, their ports and credentials, and other gateways beside them."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import NOT_FOUND, Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import (
    NEVER_CAPTURED,
    credentials_of,
    label_texts,
    labels_of,
    selector_text,
    workload_ports,
)
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.model.gateway import GatewaySpec, Server
from hostmesh_controller.model.secret import SecretSpec
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.workloads import WorkloadEntrySpec


def check_gateway(item: ApiObject, spec: GatewaySpec, world: World) -> Iterator[Finding]:
    """Yield a selector that chooses nobody, ports and credentials that are not there, and conflicts with others."""
    members = sorted(world.selected(spec.selector), key=lambda each: each.key)
    if not members:
        yield _nobody(spec)
    else:
        yield from _check_ports(spec, members, world)
        yield from _check_credentials(spec, {each.key.namespace for each in members}, world)
    for index, server in enumerate(spec.servers):
        whose = NEVER_CAPTURED.get(server.port.number)
        if whose:
            message = f"port {server.port.number} is used by {whose} on many hosts: Envoy cannot listen there too"
            yield Finding(("spec", "servers", index, "port", "number"), message, "reserved-port")
    yield from _check_others(item, spec, world)


def _nobody(spec: GatewaySpec) -> Finding:
    if not spec.selector:
        message = "without a selector it is on no host; select the labels of the workloads that are gateways"
        return Finding(("spec",), message, "unknown-selector", istio_code=NOT_FOUND)
    message = f"no workload has the labels {selector_text(spec.selector)} (yet?): this gateway is on no host"
    return Finding(("spec", "selector"), message, "unknown-selector", istio_code=NOT_FOUND)


def _check_ports(spec: GatewaySpec, members: list[ApiObject], world: World) -> Iterator[Finding]:
    """Where Services lead to the gateway's workloads, one of them should lead to each port.

    Callers may also come by the host's own address, without any Service: then there is nothing to compare.
    """
    there: set[int] = set()
    services = {service.key: (service, each) for each in members for service in world.selecting(each)}
    for service, member in services.values():
        if isinstance(service.spec, ServiceSpec) and isinstance(member.spec, WorkloadEntrySpec):
            there.update(number for port in workload_ports(service) if (number := port.on(member.spec)) is not None)
        if isinstance(service.spec, ServiceSpec):
            there.update(port.port for port in service.spec.ports)
    for index, server in enumerate(spec.servers if there else ()):
        if server.port.number not in there:
            listed = ", ".join(str(key) for key in sorted(services))
            message = f"no port of {listed} leads to port {server.port.number}: it is not reached through them"
            path = ("spec", "servers", index, "port", "number")
            yield Finding(path, message, "unknown-port", istio_code="IST0162")


def _check_credentials(spec: GatewaySpec, namespaces: set[str], world: World) -> Iterator[Finding]:
    for path, name in credentials_of(spec):
        field = str(path[-1])
        found = [
            secret.spec
            for namespace in sorted(namespaces)
            if (secret := world.objects.get(ObjectKey("Secret", namespace, name))) is not None
        ]
        if not found:
            where = " or ".join(sorted(namespaces))
            message = f"there is no Secret {name!r} in the namespace of the gateway's workloads, {where} (yet?)"
            yield Finding(path, message, "unknown-credential", istio_code=NOT_FOUND)
        elif field != "caCertCredentialName" and not all(_is_whole(each) for each in found):
            message = f"the Secret {name!r} has no certificate with its key; add tls.crt and tls.key"
            yield Finding(path, message, "bad-credential", istio_code="IST0161")


def _is_whole(spec: object) -> bool:
    return isinstance(spec, SecretSpec) and bool(spec.certificate and spec.key)


def _check_others(item: ApiObject, spec: GatewaySpec, world: World) -> Iterator[Finding]:
    for other in _beside(item, spec, world):
        assert isinstance(other.spec, GatewaySpec)
        conflicts = [(index, server) for index, server in enumerate(spec.servers) if _taken(server, other.spec.servers)]
        for index, server in conflicts:
            hosts = ", ".join(sorted(_taken(server, other.spec.servers)))
            message = (
                f"{other.key} has port {server.port.number} for {hosts} on the same hosts "
                f"({selector_text(spec.selector)}); the older one wins. Merge the two"
            )
            yield Finding(("spec", "servers", index, "hosts"), message, "conflicting-gateway", istio_code="IST0145")
        if spec.selector.items() <= other.spec.selector.items():
            yield from _check_certificates(spec, other, other.spec)


def _beside(item: ApiObject, spec: GatewaySpec, world: World) -> list[ApiObject]:
    """Return the other gateways that are on one of the same hosts."""
    found = {
        other.key: other
        for label in label_texts(spec.selector)
        for other in world.others_at(Relation.GATEWAY_LABEL, label, item)
    }
    return [other for _, other in sorted(found.items()) if _meet(spec, other, world)]


def _meet(spec: GatewaySpec, other: ApiObject, world: World) -> bool:
    assert isinstance(other.spec, GatewaySpec)
    mine, theirs = spec.selector, other.spec.selector
    if mine == theirs:
        return True
    if any(mine[name] != theirs[name] for name in mine.keys() & theirs.keys()):
        return False
    return any(theirs.items() <= labels_of(each).items() for each in world.selected({**mine, **theirs}))


def _taken(server: Server, others: tuple[Server, ...]) -> set[str]:
    return {
        host
        for other in others
        if (other.port.number, other.bind) == (server.port.number, server.bind)
        for host in set(other.hosts) & set(server.hosts)
    }


def _check_certificates(spec: GatewaySpec, other: ApiObject, theirs: GatewaySpec) -> Iterator[Finding]:
    names = {name for _, name in credentials_of(theirs)}
    for path, name in credentials_of(spec):
        if name in names and path[-1] != "caCertCredentialName":
            message = (
                f"{other.key} shows the certificate {name!r} too: browsers that keep an HTTP/2 connection use it for "
                "hosts of both, and get 404 for one. Put their servers into one Gateway"
            )
            yield Finding(path, message, "shared-certificate", istio_code="IST0138")
            return
