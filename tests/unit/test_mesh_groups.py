"""Members of groups in the mesh: their probes go to their agents, and their health decides about their endpoints."""

from dataclasses import replace
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import SETTINGS, obj
from hostmesh_api import wire
from hostmesh_api.v1 import hostmesh_pb2 as pb
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, Touched, build, update
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.workloads import GROUP_ANNOTATION

WEB = ("default", "web-h1")
CLUSTER = "outbound|80||web.default.svc.cluster.local"
NAME = "web.default.svc.cluster.local"
HTTP = {"httpGet": {"port": 8080, "path": "/live", "httpHeaders": [{"name": "A", "value": "b"}]}}


def group(probe: dict[str, Any] | None = None) -> ApiObject:
    spec: dict[str, Any] = {"template": {"serviceAccount": "web"}}
    return obj("WorkloadGroup", "web", spec | ({} if probe is None else {"probe": probe}))


def objects(probe: dict[str, Any] | None) -> list[ApiObject]:
    workload = {"address": "10.0.0.1", "labels": {"app": "web"}, "serviceAccount": "web"}
    return [
        obj("Host", "h1", {"addresses": ["10.0.0.1"]}),
        obj("Host", "caller", {"addresses": ["10.0.0.9"]}),
        obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"port": 80, "name": "http"}]}),
        obj("WorkloadEntry", "web-h1", workload, annotations={GROUP_ANNOTATION: "web"}),
        group(probe),
    ]


def mesh(probe: dict[str, Any] | None, *, leased: bool = True, healthy: bool = True) -> Mesh:
    return build(SETTINGS, objects(probe), {NAME: 1}, runtime(leased=leased, healthy=healthy))


def runtime(*, leased: bool = True, healthy: bool = True) -> dict[str, HostRuntime]:
    seen = frozenset([WEB])
    here = HostRuntime(True, seen if leased else frozenset(), healthy=seen if leased and healthy else frozenset())
    return {"h1": here, "caller": HostRuntime(True)}


def called(found: Mesh) -> bool:
    resource = xds.resource(found, "caller", wire.ENDPOINT_TYPE, CLUSTER)
    assert resource is not None
    return b"10.0.0.1" in (resource.body or b"")


def workload_config(found: Mesh) -> pb.Workload:
    resource = xds.resource(found, "h1", wire.HOST_CONFIG_TYPE, "self")
    assert resource is not None
    assert resource.body is not None
    config = pb.HostConfig()
    assert Resource.FromString(resource.body).resource.Unpack(config)
    (workload,) = config.workloads
    return workload


def test_a_member_without_a_probe_is_called_whatever_is_said_of_its_health() -> None:
    assert called(mesh(None, healthy=False))
    assert not workload_config(mesh(None)).HasField("probe")


def test_a_member_with_a_probe_is_called_once_its_agent_says_that_it_is_healthy() -> None:
    assert not called(mesh(HTTP, leased=False))
    assert not called(mesh(HTTP, healthy=False))
    assert called(mesh(HTTP))


def test_a_change_of_health_touches_endpoints_alone_and_leaves_the_cluster_as_it_was() -> None:
    before = mesh(HTTP)
    after, touched = update(before, {}, before.vips, runtime(healthy=False))
    assert touched == Touched(endpoints=frozenset({NAME}))
    assert (called(before), called(after)) == (True, False)
    assert xds.resource(before, "caller", wire.CLUSTER_TYPE, CLUSTER) == xds.resource(
        after, "caller", wire.CLUSTER_TYPE, CLUSTER
    )


@pytest.mark.parametrize("probe", [None, HTTP])
def test_nobody_calls_a_host_that_its_agent_withdraws_whatever_is_said_of_its_programs(
    probe: dict[str, Any] | None,
) -> None:
    before = mesh(probe)
    here = before.runtime["h1"]
    after, touched = update(before, {}, before.vips, {**before.runtime, "h1": replace(here, withdrawn=True)})
    assert touched == Touched(endpoints=frozenset({NAME}))
    assert (called(before), called(after)) == (True, False)
    back, _ = update(after, {}, after.vips, before.runtime)
    assert called(back)


def test_the_probe_goes_to_the_agent_with_kubernetes_defaults() -> None:
    workload = workload_config(mesh(HTTP))
    assert workload.address == "10.0.0.1"
    assert workload.probe == pb.Probe(
        http_get=pb.Probe.HttpGet(port=8080, path="/live", headers=[pb.Probe.Header(name="A", value="b")]),
        timeout_s=1,
        period_s=10,
        success_threshold=1,
        failure_threshold=3,
    )


def test_each_way_and_each_number_of_a_probe_goes_to_the_agent() -> None:
    numbers = {"initialDelaySeconds": 1, "timeoutSeconds": 2, "periodSeconds": 3}
    numbers |= {"successThreshold": 4, "failureThreshold": 5}
    ways: list[tuple[dict[str, Any], pb.Probe]] = [
        (
            {"tcpSocket": {"port": 1, "host": "localhost"}},
            pb.Probe(tcp_socket=pb.Probe.TcpSocket(port=1, host="localhost")),
        ),
        ({"exec": {"command": ["a", "b"]}}, pb.Probe(exec=pb.Probe.Exec(command=["a", "b"]))),
        ({"grpc": {"port": 2, "service": "s"}}, pb.Probe(grpc=pb.Probe.Grpc(port=2, service="s"))),
        (
            {"httpGet": {"port": 3, "scheme": "HTTPS", "host": "127.0.0.1"}},
            pb.Probe(http_get=pb.Probe.HttpGet(port=3, path="/", tls=True, host="127.0.0.1")),
        ),
    ]
    for way, wanted in ways:
        wanted.initial_delay_s, wanted.timeout_s, wanted.period_s = 1, 2, 3
        wanted.success_threshold, wanted.failure_threshold = 4, 5
        assert workload_config(mesh(way | numbers)).probe == wanted


def test_a_probe_that_changes_touches_the_members_host_and_no_other() -> None:
    before = mesh(HTTP)
    key = ObjectKey("WorkloadGroup", "default", "web")
    after, touched = update(before, {key: group({"tcpSocket": {"port": 80}})}, before.vips, before.runtime)
    assert touched.hosts == {"h1"}
    assert workload_config(after).probe.WhichOneof("way") == "tcp_socket"
    unchanged, touched = update(after, {key: group({"tcpSocket": {"port": 80}})}, before.vips, before.runtime)
    assert touched == Touched()
    gone, touched = update(mesh(HTTP, healthy=False), {key: None}, before.vips, runtime(healthy=False))
    assert NAME in touched.endpoints
    assert called(gone)
    assert called(unchanged)
