"""Sidecar: what a workload is called on, and where its program listens."""

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import DownstreamTlsContext
from google.protobuf.message import Message

from golden.objects import mesh_of, obj, vips_of
from hostmesh_api import wire
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, build, update
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.xds.messages import message_of

AT = "10.0.0.1"


def objects() -> list[ApiObject]:
    def service(name: str, *ports: dict[str, Any]) -> ApiObject:
        return obj("Service", name, {"selector": {"app": name}, "ports": list(ports)})

    return [
        obj("Host", "one", {"addresses": [AT]}),
        obj("WorkloadEntry", "shop", {"address": AT, "labels": {"app": "shop"}}),
        obj("WorkloadEntry", "db", {"address": AT, "labels": {"app": "db"}}),
        service("shop", {"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 81}),
        service("db", {"name": "tcp", "port": 3306}),
    ]


def sidecar(*ingress: dict[str, Any], app: str = "shop", name: str = "s", **more: Any) -> ApiObject:
    selector = {"workloadSelector": {"labels": {"app": app}}} if app else {}
    return obj("Sidecar", name, {**selector, **({"ingress": list(ingress)} if ingress else {}), **more})


def ingress(number: int, protocol: str = "HTTP", **more: Any) -> dict[str, Any]:
    return {"port": {"number": number, "protocol": protocol, "name": "own"}, **more}


def the_mesh(*more: ApiObject) -> Mesh:
    return mesh_of([*objects(), *more])


def message(mesh: Mesh, type_url: str, name: str) -> Message:
    found = xds.resource(mesh, "one", type_url, name)
    assert found is not None
    made = message_of(found)
    assert made is not None
    return made


def cluster(mesh: Mesh, name: str) -> Cluster:
    found = message(mesh, wire.CLUSTER_TYPE, name)
    assert isinstance(found, Cluster)
    return found


def listener(mesh: Mesh, name: str = "virtualInbound") -> Listener:
    found = message(mesh, wire.LISTENER_TYPE, name)
    assert isinstance(found, Listener)
    return found


def captured(mesh: Mesh) -> list[int]:
    found = message(mesh, wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    assert isinstance(found, HostConfig)
    return list(found.capture.inbound_ports)


def inbound_names(mesh: Mesh) -> set[str]:
    return {name for name in xds.wildcard(mesh, "one", wire.CLUSTER_TYPE) if name.startswith("inbound|")}


def test_only_what_the_ingress_lists_is_served_and_only_for_the_workloads_that_it_selects() -> None:
    assert captured(the_mesh()) == [81, 3306, 8080]
    assert captured(the_mesh(sidecar(ingress(9080)))) == [3306, 9080]
    assert inbound_names(the_mesh(sidecar(ingress(9080)))) == {"inbound|3306||", "inbound|9080||"}
    # For all of the namespace; the one with a selector goes before it.
    assert captured(the_mesh(sidecar(ingress(9080), app=""), sidecar(ingress(7000), name="own"))) == [7000, 9080]
    assert captured(the_mesh(sidecar(ingress(9080), app=""), sidecar(name="own", egress=[{"hosts": ["*/*"]}]))) == [
        81,
        8080,
        9080,
    ]


@pytest.mark.parametrize(
    ("endpoint", "expected", "from_own_address"),
    [
        ("127.0.0.1:9081", "127.0.0.1:9081", False),
        ("0.0.0.0:9081", f"{AT}:9081", True),
        ("[::1]:9081", "::1:9081", False),
        ("unix:///run/shop.sock", "/run/shop.sock", False),
    ],
)
def test_the_default_endpoint_is_where_the_program_listens(
    endpoint: str, expected: str, from_own_address: bool
) -> None:
    found = cluster(the_mesh(sidecar(ingress(9080, defaultEndpoint=endpoint))), "inbound|9080||")
    assert found.type == Cluster.STATIC
    address = found.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address
    at = address.pipe.path or f"{address.socket_address.address}:{address.socket_address.port_value}"
    assert at == expected
    assert found.HasField("upstream_bind_config") is from_own_address


def test_without_a_default_endpoint_the_program_is_where_the_caller_dialled_or_where_the_mesh_says() -> None:
    found = cluster(the_mesh(sidecar(ingress(9080))), "inbound|9080||")
    assert found.type == Cluster.ORIGINAL_DST
    local = obj("MeshConfig", "default", {"inboundTrafficPolicy": {"mode": "LOCALHOST"}})
    found = cluster(the_mesh(local), "inbound|8080||")
    address = found.load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address
    assert (found.type, address.address, address.port_value) == (Cluster.STATIC, "127.0.0.1", 8080)


def test_connections_to_the_program_are_bounded_by_the_listener_or_else_by_the_sidecar() -> None:
    mesh = the_mesh(
        sidecar(
            ingress(9080, connectionPool={"tcp": {"maxConnections": 3}}),
            ingress(9090, "TCP"),
            inboundConnectionPool={"tcp": {"maxConnections": 7, "connectTimeout": "1s"}},
        )
    )
    bounds = [cluster(mesh, f"inbound|{port}||") for port in (9080, 9090)]
    assert [each.circuit_breakers.thresholds[0].max_connections.value for each in bounds] == [3, 7]
    assert [each.connect_timeout.seconds for each in bounds] == [10, 1]
    alone = the_mesh(sidecar(inboundConnectionPool={"http": {"http2MaxRequests": 5}}))
    assert captured(alone) == [81, 3306, 8080]
    assert cluster(alone, "inbound|8080||").circuit_breakers.thresholds[0].max_requests.value == 5
    assert cluster(alone, "inbound|3306||").circuit_breakers.thresholds[0].max_requests.value > 1000


def test_capture_mode_none_is_a_listener_of_envoys_own() -> None:
    mesh = the_mesh(
        sidecar(
            ingress(9080, captureMode="NONE", defaultEndpoint="127.0.0.1:9081"),
            ingress(9090, captureMode="NONE", bind="127.0.0.1"),
        )
    )
    assert captured(mesh) == [3306]
    names = xds.wildcard(mesh, "one", wire.LISTENER_TYPE)
    assert {f"{AT}_9080", "127.0.0.1_9090"} <= set(names)
    found = listener(mesh, f"{AT}_9080")
    assert (found.address.socket_address.address, found.address.socket_address.port_value) == (AT, 9080)
    assert {chain.name for chain in found.filter_chains} == {
        "0.0.0.0_9080|mtls",
        "0.0.0.0_9080|plaintext",
        "0.0.0.0_9080|own-tls",
    }
    assert not any("9080" in chain.name for chain in listener(mesh).filter_chains)


def test_tls_of_an_ingress_comes_from_files_where_mutual_tls_is_off_and_counts_for_nothing_where_it_is_on() -> None:
    tls = {
        "mode": "MUTUAL",
        "serverCertificate": "/etc/shop/cert.pem",
        "privateKey": "/etc/shop/key.pem",
        "caCertificates": "/etc/shop/ca.pem",
    }
    own = sidecar(ingress(9443, "HTTPS", tls=tls))
    off = obj("PeerAuthentication", "off", {"mtls": {"mode": "DISABLE"}})
    [chain] = [each for each in listener(the_mesh(own, off)).filter_chains if "9443" in each.name]
    context = DownstreamTlsContext()
    chain.transport_socket.typed_config.Unpack(context)
    assert context.require_client_certificate.value
    names = [each.name for each in context.common_tls_context.tls_certificate_sds_secret_configs]
    assert names == ["file-cert:/etc/shop/cert.pem~/etc/shop/key.pem"]
    assert chain.filters[-1].name == "envoy.filters.network.http_connection_manager"
    kinds = [each.name.partition("|")[2] for each in listener(the_mesh(own)).filter_chains if "9443" in each.name]
    assert kinds == ["mtls", "plaintext", "own-tls"]


def test_two_programs_on_one_number_each_have_their_own_endpoint() -> None:
    other = "10.0.0.2"
    mesh = the_mesh(
        obj("Host", "one", {"addresses": [AT, other]}),
        obj("WorkloadEntry", "more", {"address": other, "labels": {"app": "more"}}),
        sidecar(ingress(9080, defaultEndpoint="127.0.0.1:1")),
        sidecar(ingress(9080, defaultEndpoint="127.0.0.1:2"), app="more", name="t"),
    )
    assert {f"inbound|9080|{AT}|", f"inbound|9080|{other}|"} <= inbound_names(mesh)
    found = cluster(mesh, f"inbound|9080|{other}|").load_assignment.endpoints[0].lb_endpoints[0].endpoint
    assert found.address.socket_address.port_value == 2


def test_callers_meet_mutual_tls_on_the_listed_ports_alone() -> None:
    def tls(mesh: Mesh) -> list[bool]:
        service = next(each for each in mesh.services.values() if each.id.hostname.startswith("shop."))
        members = mesh.endpoints_of(service).members.values()
        return [endpoint.tls for member in members for _, endpoint in sorted(member.endpoints.items())]

    assert tls(the_mesh()) == [True, True]
    assert tls(the_mesh(sidecar(ingress(8080)))) == [True, False]
    bound = sidecar(ingress(8080, captureMode="NONE", defaultEndpoint="127.0.0.1:8081"))
    runtime = {"one": HostRuntime(True, frozenset({("default", "shop")}), captured=frozenset())}
    assert tls(mesh_of([*objects(), bound], runtime)) == [True, False]


def test_a_changed_ingress_gives_what_a_new_build_gives_and_touches_its_hosts_and_callers() -> None:
    before = the_mesh(sidecar(ingress(8080)))
    for changed in (
        {ObjectKey("Sidecar", "default", "s"): sidecar(ingress(81, "TCP"))},
        {ObjectKey("Sidecar", "default", "s"): None},
        {ObjectKey("Sidecar", "default", "t"): sidecar(ingress(9999), name="a")},
        {ObjectKey("Host", "", "one"): obj("Host", "one", {"addresses": [AT]}, labels={"app": "x"})},
        {ObjectKey("WorkloadEntry", "default", "shop"): obj("WorkloadEntry", "shop", {"address": AT})},
    ):
        changes = {item.key if item else key: item for key, item in changed.items()}
        after, touched = update(before, changes, before.vips, before.runtime)
        everything = [item for item in {**before.objects, **changes}.values() if item is not None]
        built = build(before.settings, everything, before.vips, before.runtime)
        assert after == built
        assert captured(after) == captured(built)
        if captured(after) != captured(before):
            assert "one" in touched.hosts
            assert "shop.default.svc.cluster.local" in touched.endpoints
    assert vips_of(objects())


def test_the_statistics_of_a_port_have_the_name_that_the_mesh_gives() -> None:
    named = obj("MeshConfig", "default", {"inboundClusterStatName": "in_%SERVICE%_%TARGET_PORT%_%SERVICE_PORT_NAME%"})
    assert cluster(the_mesh(named), "inbound|8080||").alt_stat_name == "in_shop.default_8080_http"
