"""Do hosts, workloads and the services in front of them fit each other?"""

from collections.abc import Iterator
from typing import NamedTuple

from hostmesh_controller.checks.world import Finding, World, address_of, addresses_of, inline_workloads, workload_ports
from hostmesh_controller.model import ApiObject, ObjectKey, Path
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec
from hostmesh_controller.names import canonical_address
from hostmesh_controller.suggest import did_you_mean


def check_host(item: ApiObject, spec: HostSpec, world: World) -> Iterator[Finding]:
    """Yield addresses that another Host has, or this one twice, and an outbound identity that nothing on it has."""
    seen: set[str] = set()
    for _, address, path in addresses_of(item):
        if address in seen:
            yield Finding(path, f"address {address} is there twice", "duplicate-address", "error")
        seen.add(address)
        for other in world.hosts[address]:
            if other.key != item.key:
                message = f"address {address} belongs to {other.key}; an address is on one host only"
                yield Finding(path, message, "duplicate-address", "error")
    if spec.outbound_identity is not None:
        yield from _check_outbound_identity(item, spec, spec.outbound_identity, world)


def _check_outbound_identity(item: ApiObject, spec: HostSpec, identity: str, world: World) -> Iterator[Finding]:
    here = [workload for address in addresses_of(item) for workload in world.workloads.get(address.text, ())]
    names = {f"{w.key.namespace}/{name}" for w in here for name in (w.key.name, _service_account(w))}
    if identity.startswith("spiffe://"):
        _, _, namespace, _, name = identity.removeprefix("spiffe://").split("/")
        wanted, known = f"{namespace}/{name}", {f"{w.key.namespace}/{_service_account(w)}" for w in here}
    elif "/" in identity:
        wanted, known = identity, names
    elif spec.namespace is not None:
        wanted, known = f"{spec.namespace}/{identity}", names
    else:
        wanted, known = identity, {name.partition("/")[2] for name in names}
    if wanted not in known:
        message = f"no workload on this host has the identity {wanted!r} (yet?){did_you_mean(wanted, known)}"
        yield Finding(("spec", "outboundIdentity"), message, "unknown-identity")


def _service_account(workload: ApiObject) -> str:
    assert isinstance(workload.spec, WorkloadEntrySpec)
    return workload.spec.service_account or "default"


def check_workload(item: ApiObject, spec: WorkloadEntrySpec, world: World) -> Iterator[Finding]:
    """Yield another identity on the same address and port, and port names that no service asks for."""
    yield from _check_identity(item, spec, world)
    services = world.selecting(item)
    if not services:
        return
    asked = {name for service in services for port in workload_ports(service) for name in port.names if name}
    for name in spec.ports:
        if name not in asked:
            chosen_by = ", ".join(str(service.key) for service in services)
            message = f"no port of {chosen_by} is called {name!r}{did_you_mean(name, asked)}"
            yield Finding(("spec", "ports", name), message, "unused-port")


class _Claim(NamedTuple):
    """The ports of one address on which an object wants to serve, and its namespace and service account."""

    owner: ObjectKey
    account: tuple[str, str]
    ports: frozenset[int]


def _check_identity(
    item: ApiObject, spec: WorkloadEntrySpec, world: World, where: Path = ("spec",)
) -> Iterator[Finding]:
    address = canonical_address(spec.address or "")
    if address is None:
        return
    mine = _claim(item, spec, world)
    for other in _claims(address, world):
        if other.owner == mine.owner or other.account == mine.account:
            continue
        for port in sorted(mine.ports & other.ports):
            message = (
                f"{other.owner} is on {address} port {port} as service account {'/'.join(other.account)}, this one as "
                f"{'/'.join(mine.account)}; a port is served under one identity"
            )
            name = next((name for name, number in spec.ports.items() if number == port), None)
            path = (*where, "ports", name) if name else (*where, "address")
            yield Finding(path, message, "identity-conflict", "error")


def _claims(address: str, world: World) -> Iterator[_Claim]:
    for item in world.workloads.get(address, ()):
        assert isinstance(item.spec, WorkloadEntrySpec)
        yield _claim(item, item.spec, world)
    for item in world.inline.get(address, ()):
        yield from (_claim(item, spec, world) for spec in inline_workloads(item) if address_of(spec) == address)


def _claim(item: ApiObject, spec: WorkloadEntrySpec, world: World) -> _Claim:
    services = [item] if isinstance(item.spec, ServiceEntrySpec) else world.selecting(item)
    asked = {port.on(spec) for service in services for port in workload_ports(service)}
    listed = () if isinstance(item.spec, ServiceEntrySpec) else spec.ports.values()
    ports = frozenset(number for number in (*asked, *listed) if number is not None)
    return _Claim(item.key, (item.key.namespace, spec.service_account or "default"), ports)


def check_service(item: ApiObject, world: World) -> Iterator[Finding]:
    """Yield what does not fit a Service or ServiceEntry.

    Host names that another object defines, endpoints under another identity than their port's, and target ports that no
    chosen workload maps.
    """
    for index, name in enumerate(world.service_names(item)):
        others = [other for other in world.services[name] if other.key != item.key]
        if others:
            path = ("spec", "hosts", index) if isinstance(item.spec, ServiceEntrySpec) else ("metadata", "name")
            yield Finding(path, f"{others[0].key} defines {name!r} too; the older one wins", "duplicate-host")
    for index, spec in enumerate(inline_workloads(item)):
        yield from _check_identity(item, spec, world, ("spec", "endpoints", index))
    specs = world.selected_by(item)
    for index, port in enumerate(workload_ports(item)):
        if specs and all(port.on(spec) is None for spec in specs):
            message = f"no workload of this service has a port called {port.names[-1]!r}"
            yield Finding(("spec", "ports", index, "targetPort"), message, "unknown-port")


def check_peer_authentication(item: ApiObject, spec: PeerAuthenticationSpec, world: World) -> Iterator[Finding]:
    """Yield another policy for all of the same namespace."""
    if not _is_wide(spec):
        return
    for key, other in _policies(world, item.key):
        if isinstance(other.spec, PeerAuthenticationSpec) and _is_wide(other.spec):
            message = f"{key} is for all of namespace {key.namespace!r} too; the older one wins"
            yield Finding(("metadata", "name"), message, "duplicate-policy")


def _is_wide(spec: PeerAuthenticationSpec) -> bool:
    return spec.selector is None or not spec.selector.match_labels


def _policies(world: World, key: ObjectKey) -> Iterator[tuple[ObjectKey, ApiObject]]:
    for other, item in world.objects.items():
        if other.kind == "PeerAuthentication" and other.namespace == key.namespace and other != key:
            yield other, item
