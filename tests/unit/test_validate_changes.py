"""What others lose by a change, and what a change costs in a large mesh."""

import sys
from types import FrameType
from typing import Any

import pytest

from checking import findings, istio, losses, read, service, workload
from golden.objects import obj
from hostmesh_controller.checks.world import World, world_of
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.validate import validate, validate_deletion

RULE = istio("DestinationRule", "rule", "host: reviews, subsets: [{name: v1}, {name: v2}]")
ROUTES = istio("VirtualService", "r", "hosts: [a.test], http: [{route: [{destination: {host: reviews, subset: v2}}]}]")
MESH = service("reviews") + workload("w", "app: reviews") + RULE + ROUTES
REVIEWS = "reviews.default.svc.cluster.local"


def test_deleting_what_others_refer_to_is_a_warning() -> None:
    assert losses([ObjectKey("Service", "default", "reviews")], MESH) == [
        f"Service default/reviews: warning: DestinationRule default/rule refers to {REVIEWS!r} (and 1 more do), which "
        "nothing defines any more"
    ]
    assert losses([ObjectKey("DestinationRule", "default", "rule")], MESH) == [
        "DestinationRule default/rule: warning: VirtualService default/r (spec.http[0].route[0].destination) routes "
        f"to the subset 'v2' of {REVIEWS!r}, which nothing defines any more: such requests fail with 503. Change the "
        "route first"
    ]
    assert losses([ObjectKey("VirtualService", "default", "r")], MESH) == []


def test_deleting_all_together_leaves_nobody_behind() -> None:
    keys = [ObjectKey("Service", "default", "reviews"), ObjectKey("DestinationRule", "default", "rule")]
    assert losses([*keys, ObjectKey("VirtualService", "default", "r")], MESH) == []
    assert losses([ObjectKey("Service", "default", "never-there")], MESH) == []


def test_a_rule_that_gives_up_a_subset_says_who_uses_it() -> None:
    assert findings(RULE.replace(", {name: v2}", ""), MESH) == [
        "f.yaml:4: warning: spec.subsets: VirtualService default/r (spec.http[0].route[0].destination) routes to the "
        f"subset 'v2' of {REVIEWS!r}, which nothing defines any more: such requests fail with 503. Change the route "
        "first"
    ]
    assert findings(RULE.replace("{name: v1}, ", ""), MESH) == []
    assert findings(RULE.replace(", {name: v2}", "") + ROUTES.replace("v2", "v1"), MESH) == []


def test_a_service_that_gives_up_a_port_says_who_calls_it() -> None:
    calls = ROUTES.replace("subset: v2", "port: {number: 80}")
    assert findings(service("reviews", "{name: http, port: 81}"), MESH + calls.replace("name: r,", "name: s,")) == [
        "f.yaml:4: warning: spec: VirtualService default/s (spec.http[0].route[0].destination) calls port 80 of "
        f"{REVIEWS!r}, which is not there any more"
    ]


def mesh_of(services: int) -> World:
    objects: list[ApiObject] = []
    for index in range(services):
        # All workloads share a label, and all services are in one namespace: no set is small by luck.
        labels = {"app": f"s{index}", "env": "prod"}
        route = {"route": [{"destination": {"host": f"s{index}"}}]}
        objects += [
            obj("Service", f"s{index}", {"selector": {"app": f"s{index}"}, "ports": [{"name": "http", "port": 80}]}),
            obj("WorkloadEntry", f"w{index}", {"address": f"10.{index // 250}.0.{index % 250 + 1}", "labels": labels}),
            obj("VirtualService", f"s{index}", {"hosts": [f"s{index}"], "http": [route]}),
        ]
    return world_of(objects)


SMALL, LARGE = 50, 5000
SERVER = "{port: {number: 80, name: h, protocol: HTTP}, hosts: [a.test]}"
CHANGES = {
    "an endpoint": workload("w7", "app: s7, env: prod, version: v2", "10.0.0.8"),
    "a new endpoint": workload("new", "app: s7, env: prod", "10.9.0.1"),
    "a service": service("s7", "{name: http, port: 81}"),
    "routes": istio("VirtualService", "s7", "hosts: [s7], http: [{route: [{destination: {host: s8}}]}]"),
    "an export": istio(
        "VirtualService", "s7", "hosts: [s7], exportTo: [none], http: [{directResponse: {status: 200}}]"
    ),
    "a gateway": istio("Gateway", "g", f"selector: {{app: s7}}, servers: [{SERVER}]"),
    "a Sidecar": istio("Sidecar", "s", "workloadSelector: {labels: {app: s7}}, egress: [{hosts: [./*]}]"),
    "a host": "apiVersion: hostmesh.io/v1\nkind: Host\nmetadata: {name: h}\nspec: {addresses: [10.0.0.8]}\n",
    "subsets": istio("DestinationRule", "s7", "host: s7, subsets: [{name: v1, labels: {env: prod}}]"),
}


def lines_run(world: World, text: str) -> int:
    """Return how many lines of Python run while a change is judged and taken."""
    [item] = read(text)
    count = 0

    def trace(_frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        validate([item], world)
        changed = world.changed({item.key: item})
        validate_deletion([item.key], changed)
    finally:
        sys.settrace(before)
    return count


@pytest.fixture(scope="module")
def worlds() -> tuple[World, World]:
    return mesh_of(SMALL), mesh_of(LARGE)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_the_same_work_in_a_large_mesh(worlds: tuple[World, World], change: str) -> None:
    small, large = (lines_run(world, CHANGES[change]) for world in worlds)
    assert 0 < large <= small + SLACK


SLACK = 100
"""A set of more than 32 objects is kept in a table: some steps more for each entry that changes."""


def test_the_last_workload_of_a_subset_does_not_go_unnoticed() -> None:
    labelled = MESH.replace("{name: v1}", "{name: v1, labels: {app: reviews}}")
    key = ObjectKey("WorkloadEntry", "default", "w")
    lost = f"the subset 'v1' of {REVIEWS!r} (DestinationRule default/rule) loses its last workload"
    assert losses([key], labelled)[0] == f"WorkloadEntry default/w: warning: {lost}"
    assert losses([key], labelled + workload("other", "app: reviews", "10.0.0.2")) == []
    moved = findings(workload("w", "app: other"), labelled)
    assert f"f.yaml:4: warning: spec: {lost}" in moved
    assert findings(workload("w", "app: reviews, version: v9"), labelled) == []
