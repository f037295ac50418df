"""The agent's own resource: its host's workloads, identities, and what to capture."""

from hostmesh_api.identity import HostIdentity
from hostmesh_api.v1 import hostmesh_pb2 as pb
from hostmesh_controller.mesh.inbound import inbound_ports, ports_of, strict_ports
from hostmesh_controller.mesh.index import NO_HOST, Mesh
from hostmesh_controller.mesh.proxy_config import concurrency_of
from hostmesh_controller.mesh.records import Host, Workload
from hostmesh_controller.mesh.selection import identity_of
from hostmesh_controller.model.probes import NamedProbe, Probe
from hostmesh_controller.names import DNS_LISTENER, VIRTUAL_INBOUND, VIRTUAL_OUTBOUND
from hostmesh_controller.xds.capture import capture, served_ports
from hostmesh_controller.xds.outbound import Plan
from hostmesh_controller.xds.outbound_identities import outbound_identities
from hostmesh_controller.xds.patch_bootstrap import bootstrap_patch


def host_config(mesh: Mesh, host: Host, plan: Plan, inbound_version: str) -> pb.HostConfig:
    """Return what the agent of a host has to do.

    `inbound_version` is the version of the host's inbound listener that serves the ports to capture.
    """
    settings = mesh.settings
    workloads = mesh.workloads_of(host.name)
    served = frozenset(served_ports(mesh, host))
    return pb.HostConfig(
        host=host.name,
        trust_domain=settings.trust_domain,
        workloads=[_workload(mesh, workload, served) for workload in workloads],
        outbound_spiffe_id=outbound_identity(mesh, host),
        outbound_identities=outbound_identities(mesh, host),
        capture=capture(mesh, host, plan),
        bundle_pem=settings.trust.bundle_pem,
        tainted_roots=settings.trust.tainted,
        renew_within_ms=int(settings.trust.renew_within_s * 1000),
        envoy=_envoy(mesh, host),
        listeners={DNS_LISTENER: "", VIRTUAL_INBOUND: inbound_version, VIRTUAL_OUTBOUND: ""},
        bootstrap_patch=bootstrap_patch(mesh, mesh.viewer_of(host.name)),
        expelled_addresses=mesh.expulsions.addresses,
        refused_enrolments=sorted(mesh.denied.get(host.name, ())),
        strict_ports=strict_ports(mesh, host.name),
        updates=_updates(mesh, host),
        agents_endpoints=settings.agents_endpoints,
        join_endpoints=settings.join_endpoints,
    )


def _updates(mesh: Mesh, host: Host) -> list[pb.WantedUpdate]:
    return [
        pb.WantedUpdate(
            component=each.component,
            version=each.version,
            manifest=each.manifest,
            signature=each.signature,
            rollout=each.rollout,
            attempt=each.attempt,
            back=each.back,
            settled=each.settled,
            source=each.source,
        )
        for each in mesh.runtime.get(host.name, NO_HOST).updates
    ]


def _envoy(mesh: Mesh, host: Host) -> pb.EnvoySettings:
    defaults = mesh.config.default_config
    return pb.EnvoySettings(
        concurrency=concurrency_of(mesh, host),
        drain_s=int(defaults.drain_duration.total_seconds()),
        termination_drain_ms=int(defaults.termination_drain_duration.total_seconds() * 1000),
    )


def outbound_identity(mesh: Mesh, host: Host) -> str:
    """Return the SPIFFE ID under which the host's programs call others.

    That of its workloads if they share one, and do not call under their own each; where they do not, the one that the
    Host names; or else the host's own. A name that fits no workload of the host counts as none: a host is never given
    another's identity.
    """
    workloads = mesh.workloads_of(host.name)
    identities = {identity_of(workload, mesh.settings.trust_domain).uri for workload in workloads}
    if host.outbound_identity is not None:
        named = {
            identity_of(workload, mesh.settings.trust_domain).uri
            for workload in workloads
            if host.outbound_identity in _spellings(mesh, host, workload)
        }
        if len(named) == 1:
            return named.pop()
    elif len(identities) == 1 and not host.per_workload_identity:
        return identities.pop()
    return HostIdentity(mesh.settings.trust_domain, host.name).uri


def _spellings(mesh: Mesh, host: Host, workload: Workload) -> set[str]:
    """Return how a Host may name a workload: by SPIFFE ID, or by name or service account, with or without namespace."""
    namespace = workload.key.namespace
    own = {workload.key.name, workload.service_account} if namespace == mesh.viewer_of(host.name).namespace else set()
    full = {f"{namespace}/{workload.key.name}", f"{namespace}/{workload.service_account}"}
    return own | full | {identity_of(workload, mesh.settings.trust_domain).uri}


def _workload(mesh: Mesh, workload: Workload, served: frozenset[int]) -> pb.Workload:
    identity = identity_of(workload, mesh.settings.trust_domain)
    probe = mesh.probe_of(workload)
    found = inbound_ports(mesh, workload.host or "")
    mine = {port.number for port in found if port.workload.key == workload.key and not port.bind}
    return pb.Workload(
        namespace=workload.key.namespace,
        name=workload.key.name,
        service_account=workload.service_account,
        spiffe_id=identity.uri,
        ports=sorted(number for number in ports_of(mesh, workload) if number in mine & served),
        probe=None if probe is None else _probe(probe),
        address=workload.address if mesh.has_probes(workload) else "",
        more_probes=[pb.NamedProbe(name=each.name or "probe", probe=_probe(each)) for each in workload.probes],
        weighed_by_load=workload.by_load,
    )


def _probe(probe: Probe) -> pb.Probe:
    """Return a probe with Kubernetes' defaults, which are those that Istio's API promises."""
    made = pb.Probe(
        initial_delay_s=probe.initial_delay_seconds or 0,
        timeout_s=probe.timeout_seconds or 1,
        period_s=probe.period_seconds or 10,
        success_threshold=probe.success_threshold or 1,
        failure_threshold=probe.failure_threshold or 3,
    )
    if probe.http_get is not None:
        get = probe.http_get
        headers = [pb.Probe.Header(name=each.name, value=each.value) for each in get.http_headers]
        tls = get.scheme == "HTTPS"
        made.http_get.CopyFrom(
            pb.Probe.HttpGet(host=get.host or "", port=get.port, path=get.path or "/", tls=tls, headers=headers)
        )
    elif probe.tcp_socket is not None:
        made.tcp_socket.CopyFrom(pb.Probe.TcpSocket(host=probe.tcp_socket.host or "", port=probe.tcp_socket.port))
    elif probe.exec is not None:
        made.exec.CopyFrom(pb.Probe.Exec(command=probe.exec.command))
    elif probe.grpc is not None:
        made.grpc.CopyFrom(pb.Probe.Grpc(port=probe.grpc.port, service=probe.grpc.service))
    elif isinstance(probe, NamedProbe) and probe.systemd is not None:
        made.systemd.CopyFrom(pb.Probe.Systemd(unit=probe.systemd.unit))
    return made
