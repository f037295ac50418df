"""What becomes of policies in outbound clusters, where a golden file would not say why."""

from typing import Any

import pytest
from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.extensions.upstreams.http.v3.http_protocol_options_pb2 import HttpProtocolOptions
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import all_ready, mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, update
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.cluster_http import PROTOCOL_OPTIONS

NAME = "outbound|80||a.default.svc.cluster.local"
HOSTS = [
    obj("Host", "one", {"addresses": ["10.0.0.1"], "locality": "eu/eu-1"}),
    obj("Host", "two", {"addresses": ["10.0.0.2"], "locality": "eu/eu-1", "namespace": "other"}),
    obj("Host", "far", {"addresses": ["10.0.0.3"], "locality": "us/us-1"}),
]
SERVICE = [
    obj("Service", "a", {"selector": {"app": "a"}, "ports": [{"name": "http", "port": 80}, {"name": "x", "port": 81}]}),
    obj("WorkloadEntry", "near", {"address": "10.0.0.1", "labels": {"app": "a"}}),
    obj("WorkloadEntry", "far", {"address": "10.0.0.3", "labels": {"app": "a"}}),
]


def mesh_with(policy: dict[str, Any] | None = None, config: dict[str, Any] | None = None, *more: ApiObject) -> Mesh:
    objects = [*HOSTS, *SERVICE, *more]
    if policy is not None:
        objects.append(obj("DestinationRule", "a", {"host": "a", "trafficPolicy": policy}))
    if config is not None:
        objects.append(obj("MeshConfig", "default", config))
    return mesh_of(objects)


def cluster(mesh: Mesh, name: str = NAME, host: str = "one") -> Cluster:
    found = xds.resource(mesh, host, wire.CLUSTER_TYPE, name)
    assert found is not None
    return Cluster.FromString(Resource.FromString(found.body).resource.value)


def options(found: Cluster) -> HttpProtocolOptions:
    return HttpProtocolOptions.FromString(found.typed_extension_protocol_options[PROTOCOL_OPTIONS].value)


def test_the_interval_of_a_retry_budget_is_sent_though_the_python_messages_do_not_know_it() -> None:
    found = cluster(mesh_with({"retryBudget": {"budgetInterval": "7s"}})).circuit_breakers.thresholds[0].retry_budget
    assert found.budget_percent.value == 20
    assert found.min_retry_concurrency.value == 3
    # Field 3, a duration of 7 s.
    assert b"\x1a\x02\x08\x07" in found.SerializeToString()


def test_keep_alive_is_the_meshs_and_each_part_that_a_rule_sets_is_the_rules() -> None:
    config = {"tcpKeepalive": {"probes": 9, "time": "60s"}}
    policy = {"connectionPool": {"tcp": {"tcpKeepalive": {"time": "30s"}}}}
    found = cluster(mesh_with(policy, config)).upstream_connection_options.tcp_keepalive
    assert (found.keepalive_probes.value, found.keepalive_time.value) == (9, 30)


def test_kept_connections_are_probed_where_nobody_has_said_anything_and_those_of_raw_tcp_are_not() -> None:
    found = cluster(mesh_with()).upstream_connection_options.tcp_keepalive
    assert (found.keepalive_time.value, found.keepalive_interval.value, found.keepalive_probes.value) == (30, 10, 9)
    policy = {"connectionPool": {"tcp": {"tcpKeepalive": {"time": "300s"}}}}
    found = cluster(mesh_with(policy)).upstream_connection_options.tcp_keepalive
    assert (found.keepalive_time.value, found.keepalive_interval.value) == (300, 10)
    service = obj("Service", "b", {"selector": {"app": "a"}, "ports": [{"name": "tcp", "port": 90}]})
    raw = cluster(mesh_with(None, None, service), "outbound|90||b.default.svc.cluster.local")
    assert not raw.HasField("upstream_connection_options")


@pytest.mark.parametrize(
    ("wish", "of_the_mesh", "declared", "undeclared"),
    [
        (None, "UPGRADE", True, False),
        ("UPGRADE", "DO_NOT_UPGRADE", True, True),
        ("DO_NOT_UPGRADE", "UPGRADE", False, False),
        (None, "DO_NOT_UPGRADE", False, False),
    ],
)
def test_a_rule_upgrades_any_port_and_the_mesh_those_that_are_declared(
    wish: str | None, of_the_mesh: str, declared: bool, undeclared: bool
) -> None:
    policy = {"connectionPool": {"http": {"h2UpgradePolicy": wish}}} if wish else None
    mesh = mesh_with(policy, {"h2UpgradePolicy": of_the_mesh})
    found = [options(cluster(mesh, NAME.replace("80", port))) for port in ("80", "81")]
    upgraded = [each.explicit_http_config.HasField("http2_protocol_options") for each in found]
    assert upgraded == [declared, undeclared]


def test_mutual_tls_that_a_rule_asks_for_has_no_way_around_it() -> None:
    by_default, demanded = cluster(mesh_with()), cluster(mesh_with({"tls": {"mode": "ISTIO_MUTUAL"}}))
    assert by_default.transport_socket.name == demanded.transport_socket.name == "envoy.transport_sockets.tls"
    assert by_default.transport_socket_matches
    assert not demanded.transport_socket_matches


def test_there_is_no_mutual_tls_by_default_where_the_mesh_says_so() -> None:
    assert not cluster(mesh_with(config={"enableAutoMtls": False})).HasField("transport_socket")


def test_endpoints_that_callers_dial_themselves_have_mutual_tls_once_all_speak_it() -> None:
    mesh = mesh_with({"loadBalancer": {"simple": "PASSTHROUGH"}})
    assert cluster(mesh).type == Cluster.ORIGINAL_DST
    assert cluster(mesh).HasField("transport_socket")
    runtime = {**all_ready([*HOSTS, *SERVICE]), "far": HostRuntime()}
    after, touched = update(mesh, {}, mesh.vips, runtime)
    assert not cluster(after).HasField("transport_socket")
    assert "a.default.svc.cluster.local" in touched.services


def test_one_endpoint_can_be_left_out_of_a_few_unless_the_rule_says_how_many() -> None:
    few = cluster(mesh_with({"outlierDetection": {"consecutive5xxErrors": 1}})).outlier_detection
    assert few.always_eject_one_host.value
    assert not few.HasField("max_ejection_percent")
    said = cluster(mesh_with({"outlierDetection": {"maxEjectionPercent": 10}})).outlier_detection
    assert not said.HasField("always_eject_one_host")
    assert said.max_ejection_percent.value == 10


def test_statistics_have_the_name_that_the_mesh_gives_them() -> None:
    config = {"outboundClusterStatName": "%SERVICE%|%SERVICE_NAME%|%SERVICE_PORT%|%SERVICE_PORT_NAME%|%SUBSET_NAME%"}
    assert cluster(mesh_with(config=config)).alt_stat_name == "a.default|a|80|http|"


def test_callers_of_one_place_share_the_bytes_of_endpoints_and_others_do_not() -> None:
    mesh = mesh_with({"outlierDetection": {}})
    one, two, far = (xds.resource(mesh, host, wire.ENDPOINT_TYPE, NAME) for host in ("one", "two", "far"))
    assert one is two
    assert one != far
    plain = mesh_with()
    assert xds.resource(plain, "one", wire.ENDPOINT_TYPE, NAME) is xds.resource(plain, "far", wire.ENDPOINT_TYPE, NAME)


def test_a_rule_for_some_callers_is_not_for_others() -> None:
    rule = obj(
        "DestinationRule",
        "some",
        {
            "host": "a",
            "workloadSelector": {"matchLabels": {"app": "a"}},
            "trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": "1s"}}},
        },
    )
    more = obj("Host", "bare", {"addresses": ["10.0.0.9"]})
    mesh = mesh_with(None, None, rule, more)
    assert cluster(mesh, host="one").connect_timeout.seconds == 1
    assert cluster(mesh, host="bare").connect_timeout.seconds == 10
