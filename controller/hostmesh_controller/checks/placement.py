"""Do hosts, workloads and the identities under which they serve fit each other?"""

from collections.abc import Iterator
from typing import NamedTuple

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import (
    address_of,
    addresses_of,
    inline_workloads,
    service_ports,
    workload_ports,
)
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey, Path
from hostmesh_controller.model.adoption import Account, Standing, adopted, endpoint_ports
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.protocols import Protocol
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec
from hostmesh_controller.names import canonical_address
from hostmesh_controller.suggest import did_you_mean


def check_host(item: ApiObject, spec: HostSpec, world: World) -> Iterator[Finding]:
    """Yield addresses that another Host has, or this one twice, and an outbound identity that nothing on it has."""
    seen: set[str] = set()
    for address, path in addresses_of(item):
        if address in seen:
            yield Finding(path, f"address {address} is there twice", "duplicate-address", "error")
        seen.add(address)
        for other in world.others_at(Relation.HOST_ADDRESS, address, item):
            message = f"address {address} belongs to {other.key}; an address is on one host only"
            yield Finding(path, message, "duplicate-address", "error")
    if spec.outbound_identity is not None:
        yield from _check_outbound_identity(item, spec, spec.outbound_identity, world)


def _check_outbound_identity(item: ApiObject, spec: HostSpec, identity: str, world: World) -> Iterator[Finding]:
    here = [each for address in addresses_of(item) for each in world.at(Relation.WORKLOAD_ADDRESS, address.text)]
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
    yield from check_identity(item, spec, world)
    yield from check_agreement(item, world)
    services = sorted(world.selecting(item), key=lambda service: service.key)
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
    account: Account
    ports: frozenset[int]


def check_identity(
    item: ApiObject, spec: WorkloadEntrySpec, world: World, where: Path = ("spec",)
) -> Iterator[Finding]:
    """Yield ports of a workload on which something else on its address serves under another identity.

    Args:
        item: the WorkloadEntry, or the ServiceEntry that lists it.
        spec: the workload.
        world: the set.
        where: the path to the workload's part of the object.
    """
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
    for item in world.at(Relation.WORKLOAD_ADDRESS, address):
        assert isinstance(item.spec, WorkloadEntrySpec)
        yield _claim(item, item.spec, world)
    for item in world.at(Relation.INLINE_ADDRESS, address):
        yield from (_claim(item, spec, world) for spec in inline_workloads(item) if address_of(spec) == address)


def _claim(item: ApiObject, spec: WorkloadEntrySpec, world: World) -> _Claim:
    services = [item] if isinstance(item.spec, ServiceEntrySpec) else world.selecting(item)
    asked = {port.on(spec) for service in services for port in workload_ports(service)}
    listed = () if isinstance(item.spec, ServiceEntrySpec) else spec.ports.values()
    ports = frozenset(number for number in (*asked, *listed) if number is not None)
    return _Claim(item.key, _account(item, spec, world), ports)


def _account(item: ApiObject, spec: WorkloadEntrySpec, world: World) -> Account:
    """Return the account under which a workload serves: its own, or the one that an endpoint adopts."""
    if isinstance(item.spec, ServiceEntrySpec) and not spec.service_account:
        entries = [
            Standing(
                Account(each.key.namespace, each.spec.service_account or "default"), frozenset(each.spec.ports.values())
            )
            for each in world.at(Relation.WORKLOAD_ADDRESS, address_of(spec))
            if isinstance(each.spec, WorkloadEntrySpec)
        ]
        account = adopted(endpoint_ports(item.spec, spec), entries)
        if account is not None:
            return account
    return Account(item.key.namespace, spec.service_account or "default")


class _Served(NamedTuple):
    """What a service says of a workload's port: its own number and protocol for it."""

    service: ObjectKey
    number: int
    protocol: Protocol


def check_agreement(item: ApiObject, world: World) -> Iterator[Finding]:
    """Yield ports of a workload for which two services that select it say different things."""
    assert isinstance(item.spec, WorkloadEntrySpec)
    served: dict[int, _Served] = {}
    for service in sorted(world.selecting(item), key=lambda each: each.key):
        for port, place in zip(service_ports(service), workload_ports(service), strict=True):
            number = place.on(item.spec)
            if number is None or port.mesh_protocol is Protocol.UDP:
                continue
            mine = _Served(service.key, port.called, port.mesh_protocol)
            first = served.setdefault(number, mine)
            if first.service == mine.service:
                continue
            both = f"{first.service} and {mine.service} lead to port {number} of this workload"
            if first.protocol is not mine.protocol:
                message = f"{both} as {first.protocol.lower()} and {mine.protocol.lower()}; say the same in both"
                yield Finding(("spec", "labels"), message, "conflicting-protocol", istio_code="IST0116")
            if first.number != mine.number:
                message = f"{both} from their ports {first.number} and {mine.number}; Istio asks for one number"
                yield Finding(("spec", "labels"), message, "conflicting-port", istio_code="IST0137")


def check_peer_authentication(item: ApiObject, spec: PeerAuthenticationSpec, world: World) -> Iterator[Finding]:
    """Yield another policy for all of the same namespace."""
    if not is_wide(spec):
        return
    for other in world.others_at(Relation.POLICY, item.key.namespace, item):
        if isinstance(other.spec, PeerAuthenticationSpec) and is_wide(other.spec):
            message = (
                f"{other.key} is for all of namespace {item.key.namespace!r} too; the older one wins. Merge them, or "
                "give one of them a selector"
            )
            yield Finding(("metadata", "name"), message, "duplicate-policy")


def is_wide(spec: PeerAuthenticationSpec) -> bool:
    """Tell whether a policy is for a whole namespace."""
    return spec.selector is None or not spec.selector.match_labels
