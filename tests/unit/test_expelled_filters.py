"""Where the filter of expelled hosts stands, and what an expulsion costs."""

from collections.abc import Iterator
from dataclasses import replace

from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import all_ready, mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import update
from hostmesh_controller.xds import expelled

HCM = "envoy.filters.network.http_connection_manager"
OBJECTS = [
    *(obj("Host", name, {"addresses": [at]}) for name, at in (("h1", "10.0.0.1"), ("h2", "10.0.0.2"))),
    *(
        obj("WorkloadEntry", name, {"address": at, "labels": {"app": name}})
        for name, at in (("h1", "10.0.0.1"), ("h2", "10.0.0.2"))
    ),
    obj(
        "Service",
        "h1",
        {
            "selector": {"app": "h1"},
            "ports": [
                {"name": name, "port": port} for name, port in (("http", 80), ("tcp", 81), ("any", 82), ("grpc", 83))
            ],
        },
    ),
    obj(
        "Gateway",
        "edge",
        {
            "selector": {"app": "h1"},
            "servers": [
                {
                    "port": {"number": number, "name": f"p{number}", "protocol": protocol},
                    "hosts": [f"p{number}.example.com"],
                    "tls": {"mode": "ISTIO_MUTUAL"},
                }
                for number, protocol in ((443, "HTTPS"), (444, "TLS"))
            ],
        },
    ),
    obj(
        "VirtualService",
        "edge",
        {
            "hosts": ["p443.example.com", "p444.example.com"],
            "gateways": ["edge"],
            "http": [{"route": [{"destination": {"host": "h1", "port": {"number": 80}}}]}],
            "tcp": [{"match": [{"port": 444}], "route": [{"destination": {"host": "h1", "port": {"number": 81}}}]}],
        },
    ),
]


def chains() -> Iterator[FilterChain]:
    """Yield the chains of the host in which callers show a certificate of the mesh."""
    mesh = mesh_of(OBJECTS)
    for name in xds.wildcard(mesh, "h1", wire.LISTENER_TYPE):
        found = xds.resource(mesh, "h1", wire.LISTENER_TYPE, name)
        assert found is not None
        for chain in Listener.FromString(Resource.FromString(found.body).resource.value).filter_chains:
            context = DownstreamTlsContext.FromString(chain.transport_socket.typed_config.value)
            if context.require_client_certificate.value:
                yield chain


def test_every_chain_with_mutual_tls_looks_first_whether_its_caller_was_expelled() -> None:
    seen = []
    for chain in chains():
        first = chain.filters[0]
        if first.name == HCM:
            first_of_http = HttpConnectionManager.FromString(first.typed_config.value).http_filters
            # At a gateway the route is found first, as everywhere that Envoy calls on.
            names = [each.name for each in first_of_http if each.name != "envoy.filters.http.on_demand"]
            assert names[0] == expelled.HTTP, chain.name
            seen.append("http")
        else:
            assert first.name == expelled.NETWORK, chain.name
            seen.append("tcp")
    # HTTP, gRPC and the two chains of a port of any protocol; and a gateway's.
    assert (seen.count("http"), seen.count("tcp")) == (4, 3)


def test_an_expulsion_touches_who_was_expelled_and_the_endpoints_of_that_host_and_no_listener() -> None:
    mesh, runtime = mesh_of(OBJECTS), all_ready(OBJECTS)
    runtime |= {"h2": replace(runtime["h2"], expelled=True, denied=frozenset({"e"}))}
    after, touched = update(mesh, {}, mesh.vips, runtime)
    assert (touched.hosts, touched.callers, touched.everything) == (frozenset(), frozenset(), False)
    assert touched.services == {"expulsions"}
    for name in xds.wildcard(mesh, "h1", wire.LISTENER_TYPE):
        assert xds.resource(mesh, "h1", wire.LISTENER_TYPE, name) == xds.resource(after, "h1", wire.LISTENER_TYPE, name)
