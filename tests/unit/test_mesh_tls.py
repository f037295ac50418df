"""Mutual TLS as mesh-wide settings want it: versions, aliases of the trust domain, and whose certificates are asked."""

from typing import Any

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import TlsParameters
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import (
    CommonTlsContext,
    DownstreamTlsContext,
    UpstreamTlsContext,
)

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.xds.messages import message_of

NAME = "outbound|80||shop.default.svc.cluster.local"
OUTSIDE = "outbound|443||api.example.com"


def the_mesh(**config: Any) -> Mesh:
    return mesh_of(
        [
            obj("Host", "one", {"addresses": ["10.0.0.1"]}),
            obj("WorkloadEntry", "shop", {"address": "10.0.0.1", "labels": {"app": "shop"}, "serviceAccount": "shop"}),
            obj("Service", "shop", {"selector": {"app": "shop"}, "ports": [{"name": "http", "port": 80}]}),
            obj(
                "ServiceEntry",
                "api",
                {
                    "hosts": ["api.example.com"],
                    "ports": [{"number": 443, "name": "http", "protocol": "HTTP"}],
                    "resolution": "DNS",
                    "location": "MESH_EXTERNAL",
                },
            ),
            obj("DestinationRule", "api", {"host": "api.example.com", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}),
            obj("MeshConfig", "default", config),
        ]
    )


def cluster(mesh: Mesh, name: str = NAME) -> Cluster:
    found = xds.resource(mesh, "one", wire.CLUSTER_TYPE, name)
    assert found is not None
    message = message_of(found)
    assert isinstance(message, Cluster)
    return message


def upstream(mesh: Mesh, name: str = NAME) -> CommonTlsContext:
    context = UpstreamTlsContext()
    cluster(mesh, name).transport_socket.typed_config.Unpack(context)
    return context.common_tls_context


def downstream(mesh: Mesh) -> CommonTlsContext:
    found = xds.resource(mesh, "one", wire.LISTENER_TYPE, "virtualInbound")
    assert found is not None
    listener = message_of(found)
    assert isinstance(listener, Listener)
    chain = next(each for each in listener.filter_chains if each.name.endswith("|mtls"))
    context = DownstreamTlsContext()
    chain.transport_socket.typed_config.Unpack(context)
    return context.common_tls_context


def names(context: CommonTlsContext) -> list[str]:
    found = context.combined_validation_context.default_validation_context.match_typed_subject_alt_names
    return [each.matcher.exact or each.matcher.prefix for each in found]


def test_identities_of_the_aliases_of_the_trust_domain_are_let_in_and_called() -> None:
    plain, aliased = the_mesh(), the_mesh(trustDomainAliases=["old.org", "cluster.local"])
    assert names(downstream(plain)) == ["spiffe://cluster.local/"]
    assert names(downstream(aliased)) == ["spiffe://cluster.local/", "spiffe://old.org/"]
    assert names(upstream(plain)) == ["spiffe://cluster.local/ns/default/sa/shop"]
    assert names(upstream(aliased)) == [
        "spiffe://cluster.local/ns/default/sa/shop",
        "spiffe://old.org/ns/default/sa/shop",
    ]


def test_the_least_tls_version_is_demanded_of_callers() -> None:
    assert downstream(the_mesh()).tls_params.tls_minimum_protocol_version == TlsParameters.TLSv1_2
    newest = the_mesh(meshMTLS={"minProtocolVersion": "TLSV1_3"})
    assert downstream(newest).tls_params.tls_minimum_protocol_version == TlsParameters.TLSv1_3
    assert upstream(newest).tls_params.tls_maximum_protocol_version == TlsParameters.TLSv1_3


def test_certificates_of_others_are_looked_at_unless_the_mesh_does_not_want_it() -> None:
    checked, unchecked = the_mesh(), the_mesh(verifyCertificateAtClient=False)
    assert upstream(checked, OUTSIDE).HasField("combined_validation_context")
    assert not upstream(unchecked, OUTSIDE).HasField("combined_validation_context")
    assert upstream(unchecked).HasField("combined_validation_context"), "the mesh's own is always checked"


def test_without_automatic_mutual_tls_nothing_is_encrypted_that_no_rule_asks_for() -> None:
    assert cluster(the_mesh()).HasField("transport_socket")
    assert not cluster(the_mesh(enableAutoMtls=False)).HasField("transport_socket")
