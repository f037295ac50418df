"""Which workloads stand behind which services, and what a workload is to a service."""

from collections.abc import Iterable, Iterator, Mapping

from hostmesh_api.identity import WorkloadIdentity
from hostmesh_controller import load_steps
from hostmesh_controller.mesh.gateways import NO_GATEWAYS
from hostmesh_controller.mesh.index import NO_HOST, LabelKey, Mesh
from hostmesh_controller.mesh.ingress import serves_mesh_tls
from hostmesh_controller.mesh.peers import selects
from hostmesh_controller.mesh.records import (
    Endpoint,
    Member,
    Mode,
    Resolution,
    Service,
    ServiceId,
    ServicePort,
    Workload,
    WorkloadKey,
)
from hostmesh_controller.model.workloads import UNIX
from hostmesh_controller.names import canonical_address


def identity_of(workload: Workload, trust_domain: str) -> WorkloadIdentity:
    namespace = workload.account_namespace or workload.key.namespace
    return WorkloadIdentity(trust_domain, namespace, workload.service_account)


def label_keys(namespace: str, labels: Mapping[str, str]) -> Iterator[LabelKey]:
    return ((namespace, name, value) for name, value in labels.items())


def selector_key(service: Service) -> LabelKey | None:
    """Return the one label under which a selecting service is indexed, or None if it selects nothing."""
    return min(label_keys(service.id.namespace, service.selector)) if service.selector else None


def services_of(mesh: Mesh, workload: Workload) -> list[Service]:
    """Return the services that a workload stands behind, the oldest first."""
    if workload.owner is not None:
        ids: Iterable[ServiceId] = mesh.services_by_source.get(workload.owner, frozenset())
        found = [mesh.services[item] for item in ids]
    else:
        keys = label_keys(workload.key.namespace, workload.labels)
        candidates = (mesh.services[item] for key in keys for item in mesh.services_by_label.get(key, ()))
        found = [service for service in candidates if selects(service.selector or {}, workload.labels)]
    return sorted(found, key=lambda service: (service.order, service.id))


def workloads_behind(mesh: Mesh, service: Service) -> list[WorkloadKey]:
    """Return the workloads behind a service, in no order: written inside it, or selected by their labels."""
    if not service.selector:
        return list(mesh.workloads_by_owner.get(service.id.source, ()))
    keys = label_keys(service.id.namespace, service.selector)
    fewest = min((mesh.workloads_by_label.get(key, frozenset()) for key in keys), key=len)
    return [key for key in fewest if selects(service.selector, mesh.workloads[key].labels)]


def endpoint_port(port: ServicePort, ports: Mapping[str, int]) -> int | None:
    """Return where a workload listens for a service's port.

    The workload's own word for the port's name wins; then the target port; then the same number. None: the target
    port is a name that the workload does not have.
    """
    if port.name in ports:
        return ports[port.name]
    if isinstance(port.target, str):
        return ports.get(port.target)
    return port.target or port.number


def member(mesh: Mesh, service: Service, workload: Workload) -> Member:
    """Return what a workload is to a service: where each port is reached, and whether with mutual TLS.

    A workload that is not ready yet is called in plaintext where its policy allows that, and left out where not. One
    that is not healthy is left out, as in Istio, and one on a host that was expelled; its identity stays, so that
    clusters do not change with either. Where a host is dead its endpoints stay, marked: they are called if there is no
    other.
    """
    if workload.host is not None and mesh.runtime_of(workload.host).expelled:
        return Member({}, () if service.external else (identity_of(workload, mesh.settings.trust_domain).uri,))
    if workload.host is None or service.external:
        return Member(dict(_plain(mesh, service, workload)), ())
    if not mesh.is_healthy(workload):
        return Member({}, _identities(mesh, workload, workload.host))
    endpoints: dict[int, Endpoint] = {}
    runtime = mesh.runtime_of(workload.host)
    for number, endpoint in _plain(mesh, service, workload):
        gateway = mesh.gateways.get(workload.host, NO_GATEWAYS).listens(endpoint.address, endpoint.port)
        mode = mesh.mode_of(workload, endpoint.port) if gateway is None else Mode.PERMISSIVE
        tls = mode is not Mode.DISABLE and serves_mesh_tls(mesh, workload, endpoint.port)
        if gateway is not None:
            tls = gateway.demands_mesh_tls
        if tls or mode is not Mode.STRICT:
            endpoints[number] = Endpoint(
                endpoint.address,
                endpoint.port,
                endpoint.labels,
                endpoint.weight,
                endpoint.locality,
                tls,
                away=runtime.is_away(endpoint.port),
            )
    return Member(endpoints, _identities(mesh, workload, workload.host))


def _identities(mesh: Mesh, workload: Workload, host: str) -> tuple[str, ...]:
    """Return who may answer for a workload: also who does still, after its service account was changed.

    A host's word widens nothing beyond the namespace in which the workload is.
    """
    trust_domain = mesh.settings.trust_domain
    own = identity_of(workload, trust_domain)
    shown = {uri for key, uri in mesh.runtime_of(host).presented if key == workload.key} - {own.uri}
    before = (each for each in shown if each.startswith(_of_namespace(own)))
    return (own.uri, *sorted(before))


def _of_namespace(identity: WorkloadIdentity) -> str:
    return identity.uri.removesuffix(identity.service_account)


def _plain(mesh: Mesh, service: Service, workload: Workload) -> Iterator[tuple[int, Endpoint]]:
    address, locality = workload.address, workload.locality
    if service.resolution is Resolution.STATIC and not address.startswith(UNIX) and canonical_address(address) is None:
        # A name is nothing that can be called: it is for services that look their endpoints up.
        return
    weight = workload.weight
    if workload.host is not None:
        locality = locality or mesh.hosts[workload.host].locality or mesh.reported_locality(workload.host)
        weight = (workload.by_cores and mesh.runtime_of(workload.host).cpus) or weight
    if workload.by_load:
        runtime = NO_HOST if workload.host is None else mesh.runtime_of(workload.host)
        weight = load_steps.weight(runtime.cpus, runtime.free_eighths)
    for port in service.ports:
        number = endpoint_port(port, workload.ports)
        if number is not None:
            yield port.number, Endpoint(address, number, workload.labels, weight, locality, tls=False)
