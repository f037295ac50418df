"""Endpoints of hosts that seem dead, and weights by cores: what callers are sent."""

from typing import Any

import pytest
from envoy.config.endpoint.v3.endpoint_pb2 import ClusterLoadAssignment
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import SETTINGS, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, Touched, build, update
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.workload_annotations import CAPACITY

NAME = "web.default.svc.cluster.local"
CLUSTER = f"outbound|80||{NAME}"
FIRST, SECOND, OUTSIDE = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def entry(name: str, address: str, annotations: dict[str, str] | None = None, **more: Any) -> ApiObject:
    spec = {"address": address, "labels": {"app": "web", "version": name}, **more}
    return obj("WorkloadEntry", name, spec, annotations=annotations or {})


def web(first: HostRuntime, second: HostRuntime, *entries: ApiObject) -> Mesh:
    objects = [
        obj("Host", "h1", {"addresses": [FIRST]}),
        obj("Host", "h2", {"addresses": [SECOND]}),
        obj("Host", "caller", {"addresses": ["10.0.0.9"]}),
        obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"port": 80, "name": "http"}]}),
        *(entries or (entry("v1", FIRST), entry("v2", SECOND))),
        obj(
            "DestinationRule",
            "web",
            {"host": "web", "subsets": [{"name": each, "labels": {"version": each}} for each in ("v1", "v2")]},
        ),
    ]
    return build(SETTINGS, objects, {NAME: 1}, runtimes(first, second))


def runtimes(first: HostRuntime, second: HostRuntime) -> dict[str, HostRuntime]:
    return {"h1": first, "h2": second, "caller": HostRuntime(True)}


def weights(mesh: Mesh, subset: str = "") -> dict[str, int]:
    """Return the weight of each endpoint that the caller is sent."""
    resource = xds.resource(mesh, "caller", wire.ENDPOINT_TYPE, f"outbound|80|{subset}|{NAME}")
    assert resource is not None
    assert resource.body is not None
    found = ClusterLoadAssignment()
    assert Resource.FromString(resource.body).resource.Unpack(found)
    return {
        each.endpoint.address.socket_address.address: each.load_balancing_weight.value or 1
        for group in found.endpoints
        for each in group.lb_endpoints
    }


READY = frozenset([("default", "v1"), ("default", "v2")])
WELL = HostRuntime(True, READY, captured=frozenset({80}))
SILENT = HostRuntime(True, READY, captured=frozenset({80}), silent=True)
STALLED = HostRuntime(True, READY, captured=frozenset({80}), stalled=True)


@pytest.mark.parametrize("away", [SILENT, STALLED])
def test_where_nobody_answers_nobody_is_sent_and_nothing_but_endpoints_changes(away: HostRuntime) -> None:
    before = web(WELL, WELL)
    assert weights(before) == {FIRST: 1, SECOND: 1}
    after, touched = update(before, {}, before.vips, runtimes(away, WELL))
    assert weights(after) == {SECOND: 1}
    assert touched == Touched(endpoints=frozenset({NAME}))


def test_the_last_endpoints_stay_of_a_service_and_of_a_subset() -> None:
    mesh = web(SILENT, WELL)
    assert weights(mesh, "v1") == {FIRST: 1}
    assert weights(mesh, "v2") == {SECOND: 1}
    assert weights(web(SILENT, SILENT)) == {FIRST: 1, SECOND: 1}
    assert weights(web(SILENT, STALLED)) == {FIRST: 1, SECOND: 1}


def test_what_is_not_captured_does_not_need_an_envoy() -> None:
    aside = HostRuntime(True, captured=frozenset({443}), stalled=True)
    assert weights(web(aside, WELL)) == {FIRST: 1, SECOND: 1}


def test_an_unhealthy_workload_does_not_stand_in_for_a_silent_one() -> None:
    group = obj("WorkloadGroup", "web", {"template": {}, "probe": {"tcpSocket": {"port": 80}}})
    probed = entry("v2", SECOND, {"istio.io/autoRegistrationGroup": "web"})
    assert weights(web(SILENT, WELL, entry("v1", FIRST), probed, group)) == {FIRST: 1}


def test_cores_are_the_weight_where_that_is_asked_for_and_a_weight_is_not_given() -> None:
    asked = {CAPACITY: "cores"}
    eight, two = (HostRuntime(True, READY, captured=frozenset({80}), cpus=cpus) for cpus in (8, 2))
    entries = entry("v1", FIRST, asked), entry("v2", SECOND, asked), entry("v3", OUTSIDE, asked)
    assert weights(web(eight, two, *entries)) == {FIRST: 8, SECOND: 2, OUTSIDE: 1}
    assert weights(web(eight, two, entry("v1", FIRST, asked, weight=3), entry("v2", SECOND))) == {FIRST: 3, SECOND: 1}
    assert weights(web(WELL, two, *entries)) == {FIRST: 1, SECOND: 2, OUTSIDE: 1}


def test_a_machine_that_grows_changes_the_endpoints_of_those_who_ask_for_it_alone() -> None:
    before = web(WELL, WELL, entry("v1", FIRST, {CAPACITY: "cores"}))
    grown = HostRuntime(True, READY, captured=frozenset({80}), cpus=4)
    after, touched = update(before, {}, before.vips, runtimes(grown, grown))
    assert weights(after) == {FIRST: 4}
    assert touched == Touched(endpoints=frozenset({NAME}))
    plain = web(WELL, WELL)
    assert update(plain, {}, plain.vips, runtimes(grown, WELL))[1] == Touched()
