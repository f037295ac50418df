"""How a cluster's connections are secured: the mesh's mutual TLS, a rule's own TLS, and what goes ahead of either."""

from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.config.core.v3.proxy_protocol_pb2 import ProxyProtocolConfig
from envoy.extensions.transport_sockets.proxy_protocol.v3.upstream_proxy_protocol_pb2 import (
    ProxyProtocolUpstreamTransport,
)

from hostmesh_controller.mesh.records import Resolution
from hostmesh_controller.model.destination_rule import ProxyProtocol
from hostmesh_controller.xds import tls
from hostmesh_controller.xds.client_tls import origination
from hostmesh_controller.xds.cluster_target import Outbound
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.endpoints import DISABLED, TLS_MODE

PROXY_PROTOCOL: Final = "envoy.transport_sockets.upstream_proxy_protocol"
_VERSIONS: Final = {"V1": ProxyProtocolConfig.V1, "V2": ProxyProtocolConfig.V2}


def secure(cluster: Cluster, target: Outbound) -> None:
    """Set the transport: TLS that the rule asks for, or the mesh's mutual TLS; and what goes ahead of it."""
    client = target.policy.tls
    if client is not None and client.mode in {"SIMPLE", "MUTUAL"}:
        cluster.transport_socket.CopyFrom(origination(client, target))
    elif client is not None and client.mode == "ISTIO_MUTUAL":
        cluster.transport_socket.CopyFrom(_mutual(target))
    elif client is None and _by_default(target):
        cluster.transport_socket.CopyFrom(_mutual(target))
        if not target.is_passthrough:
            match = cluster.transport_socket_matches.add(
                name=f"{TLS_MODE}-{DISABLED}", transport_socket=tls.plaintext()
            )
            match.match.update({TLS_MODE: DISABLED})
    if target.policy.proxy_protocol is not None:
        _announce(cluster, target.policy.proxy_protocol)


def _by_default(target: Outbound) -> bool:
    """Tell whether a service's workloads are reached with the mesh's mutual TLS though no rule says so.

    Also true while it has no workload yet: then all its endpoints are marked as plaintext, and the first one that is
    not marked is never called in the clear, in whatever order the updates come. Endpoints that callers dial themselves
    carry no mark: there it is true once all of them speak it.
    """
    if target.service.external or not target.config.enable_auto_mtls:
        return False
    if target.is_passthrough:
        return target.all_tls
    return target.service.resolution is Resolution.STATIC or bool(target.identities)


def _mutual(target: Outbound) -> TransportSocket:
    client = target.policy.tls
    named = {*target.identities, *target.service.subject_alt_names}
    accepted: tuple[str, ...] = tuple(
        sorted(tls.with_aliases(named, target.trust_domain, target.config.trust_domain_aliases))
    )
    if client is not None and client.subject_alt_names:
        accepted = client.subject_alt_names
    elif not accepted and not target.service.external:
        accepted = (tls.nobody(target.trust_domain),)
    server_name = client.sni if client is not None and client.sni else target.name.server_name
    return tls.upstream(target.caller, accepted, server_name, _offer(target))


def _offer(target: Outbound) -> tuple[str, ...]:
    if not target.http:
        return tls.OFFER_TCP
    if target.is_http2:
        return tls.OFFER_HTTP2
    if target.port.protocol.is_detected or target.uses_client_protocol:
        return tls.OFFER_DETECTED
    return tls.OFFER_HTTP1


def _announce(cluster: Cluster, settings: ProxyProtocol) -> None:
    """Tell the caller's address ahead of everything, TLS too."""
    inner = cluster.transport_socket if cluster.HasField("transport_socket") else tls.plaintext()
    cluster.transport_socket.CopyFrom(_announced(inner, settings))
    for match in cluster.transport_socket_matches:
        match.transport_socket.CopyFrom(_announced(match.transport_socket, settings))


def _announced(inner: TransportSocket, settings: ProxyProtocol) -> TransportSocket:
    config = ProxyProtocolConfig(version=_VERSIONS[settings.version])
    transport = ProxyProtocolUpstreamTransport(config=config, transport_socket=inner)
    return TransportSocket(name=PROXY_PROTOCOL, typed_config=any_of(transport))
