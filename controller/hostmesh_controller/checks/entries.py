"""Under which entries of the index each object is found."""

from collections.abc import Iterator

from hostmesh_controller.checks.index import Entry, Relation
from hostmesh_controller.checks.relations import (
    address_of,
    addresses_of,
    credentials_of,
    delegate_name,
    destinations,
    exported_to,
    full,
    inline_workloads,
    label_texts,
    labels_of,
    selector_of,
    service_addresses,
    service_names,
)
from hostmesh_controller.model import ApiObject
from hostmesh_controller.model.authorization_policy import AuthorizationPolicySpec
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.request_authentication import RequestAuthenticationSpec
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.sidecar import SidecarSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec, WorkloadGroupSpec
from hostmesh_controller.names import MESH, gateway_name, wildcards


def entries_of(item: ApiObject, domain: str) -> Iterator[Entry]:
    """Yield all under which an object is found, maybe some twice."""
    if item.key.namespace:
        yield Entry(Relation.MEMBER, item.key.namespace)
    match item.spec:
        case ServiceSpec() | ServiceEntrySpec():
            yield from _service_entries(item, domain)
        case DestinationRuleSpec(host=host):
            yield Entry(Relation.RULE, full(host, item, domain))
            yield Entry(Relation.CALLER, full(host, item, domain))
        case VirtualServiceSpec() as spec:
            yield from _route_entries(item, spec, domain)
        case HostSpec() as host_spec:
            yield from _host_entries(item, host_spec)
        case WorkloadEntrySpec() | WorkloadGroupSpec():
            yield from _workload_entries(item)
        case PeerAuthenticationSpec():
            yield Entry(Relation.POLICY, item.key.namespace)
        case RequestAuthenticationSpec():
            yield Entry(Relation.AUTHENTICATION, item.key.namespace)
        case AuthorizationPolicySpec():
            yield Entry(Relation.AUTHORIZATION, item.key.namespace)
        case SidecarSpec():
            yield Entry(Relation.SIDECAR, item.key.namespace)
        case GatewaySpec() as gateway:
            yield from (Entry(Relation.GATEWAY_LABEL, label) for label in label_texts(gateway.selector))
            yield from (Entry(Relation.CREDENTIAL_USER, name) for _, name in credentials_of(gateway))


def _host_entries(item: ApiObject, spec: HostSpec) -> Iterator[Entry]:
    if spec.namespace:
        yield Entry(Relation.MEMBER, spec.namespace)
    for address in addresses_of(item):
        yield Entry(Relation.HOST_ADDRESS, address.text)


def _workload_entries(item: ApiObject) -> Iterator[Entry]:
    if isinstance(item.spec, WorkloadEntrySpec) and item.spec.address:
        yield Entry(Relation.WORKLOAD_ADDRESS, address_of(item.spec))
    for label in label_texts(labels_of(item)):
        yield Entry(Relation.LABEL, label, item.key.namespace)
        yield Entry(Relation.LABEL, label)


def _service_entries(item: ApiObject, domain: str) -> Iterator[Entry]:
    for name in service_names(item, domain):
        yield Entry(Relation.SERVICE, name)
        yield Entry(Relation.SIBLING, name.partition(".")[2])
    for address in service_addresses(item):
        yield Entry(Relation.SERVICE_ADDRESS, address.text)
    for workload in inline_workloads(item):
        yield Entry(Relation.INLINE_ADDRESS, address_of(workload))
    for label in label_texts(selector_of(item))[:1]:
        yield Entry(Relation.SELECTOR, label, item.key.namespace)


def _route_entries(item: ApiObject, spec: VirtualServiceSpec, domain: str) -> Iterator[Entry]:
    everybody = "*" in exported_to(item)
    for host in spec.hosts:
        name = full(host, item, domain)
        yield Entry(Relation.ROUTE, name)
        if not everybody:
            yield from (Entry(Relation.KEPT_ROUTE, wildcard) for wildcard in wildcards(name))
    for reference in destinations(spec):
        yield Entry(Relation.CALLER, full(reference.destination.host, item, domain))
    for name in spec.gateways:
        if name != MESH:
            yield Entry(Relation.GATEWAY_USER, gateway_name(name, item.key.namespace))
    for http in spec.http:
        if http.delegate is not None:
            yield Entry(Relation.DELEGATOR, delegate_name(item, http.delegate))
    if spec.is_delegate:
        yield Entry(Relation.DELEGATE, item.key.namespace)
