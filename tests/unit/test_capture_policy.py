"""CapturePolicy: which of several holds for a host, what its agent is told, and what a change touches."""

from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import mesh_of, obj, vips_of
from hostmesh_api import wire
from hostmesh_api.v1.hostmesh_pb2 import Capture, CaptureRule, HostConfig
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, build, update
from hostmesh_controller.mesh.capture_policies import policy_of
from hostmesh_controller.model.objects import ApiObject

SERVICE = obj("Service", "shop", {"selector": {"app": "shop"}, "ports": [{"port": 80, "name": "http"}]})
ADMIN = obj("Service", "admin", {"selector": {"app": "shop"}, "ports": [{"port": 81, "name": "http"}]})
SHOP = obj("WorkloadEntry", "shop", {"address": "10.0.0.1", "labels": {"app": "shop"}})
STRICT = obj(
    "PeerAuthentication",
    "strict",
    {
        "selector": {"matchLabels": {"app": "shop"}},
        "mtls": {"mode": "PERMISSIVE"},
        "portLevelMtls": {"81": {"mode": "STRICT"}},
    },
)
OPEN = {"outbound": {"failureMode": "open"}}


def host(capture: dict[str, str] | None = None) -> ApiObject:
    more = {} if capture is None else {"capture": capture}
    return obj("Host", "h1", {"addresses": ["10.0.0.1"], **more}, labels={"rack": "a"})


def policy(name: str, spec: dict[str, Any], namespace: str = "default", age: int = 0) -> ApiObject:
    return obj("CapturePolicy", name, spec, namespace, age=age)


def for_labels(**labels: str) -> dict[str, Any]:
    return {"selector": {"matchLabels": labels}}


def mesh(*objects: ApiObject) -> Mesh:
    given = {item.key: item for item in (host(), SERVICE, ADMIN, SHOP, *objects)}
    return mesh_of(list(given.values()))


def config(of: Mesh) -> HostConfig:
    made = xds.resource(of, "h1", wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    assert made is not None
    return HostConfig.FromString(Resource.FromString(made.body).resource.value)


def holding(*policies: ApiObject) -> str:
    of = mesh(*policies)
    found = policy_of(of, of.hosts["h1"])
    return "" if found is None else f"{found.key.namespace}/{found.key.name}"


def test_labels_go_before_none_the_own_namespace_before_the_root_s_and_then_the_oldest_holds() -> None:
    everywhere = policy("a", {}, "istio-system")
    rooted = policy("b", for_labels(app="shop"), "istio-system")
    wide = policy("c", {}, age=9)
    older, younger = policy("z", for_labels(app="shop"), age=5), policy("d", for_labels(rack="a"), age=6)
    assert holding(everywhere) == "istio-system/a"
    assert holding(everywhere, wide) == "default/c"
    assert holding(everywhere, wide, rooted) == "istio-system/b"
    assert holding(everywhere, wide, rooted, younger) == "default/d"
    assert holding(everywhere, wide, rooted, younger, older) == "default/z"
    assert holding(policy("e", for_labels(app="other")), policy("f", {}, "elsewhere")) == ""


@pytest.mark.parametrize(
    ("declared", "scope", "expected"),
    [
        (None, None, Capture.MESH),
        (None, "all", Capture.ALL),
        ({"scope": "mesh"}, "all", Capture.MESH),
        ({"scope": "all"}, "mesh", Capture.ALL),
        ({}, "all", Capture.ALL),
    ],
)
def test_what_the_host_itself_says_of_the_scope_goes_before_the_policy(
    declared: dict[str, str] | None, scope: str | None, expected: "Capture.Scope.ValueType"
) -> None:
    spec = {} if scope is None else {"scope": scope}
    assert config(mesh(host(declared), policy("p", spec))).capture.scope == expected


def test_where_nothing_else_may_be_called_everything_is_captured_and_nothing_passes() -> None:
    closed = obj("MeshConfig", "default", {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})
    found = config(mesh(closed, policy("p", {"scope": "mesh", **OPEN}))).capture
    assert found.scope == Capture.ALL
    assert not found.outbound.open


def test_the_agent_is_told_the_rules_and_whose_they_are() -> None:
    rule = {
        "ports": [5432, "6000-6002"],
        "cidrs": ["10.1.0.0/16"],
        "users": ["alice", 7],
        "units": ["a.service"],
        "interfaces": ["e0"],
    }
    spec = {
        "inbound": {"include": [{"interfaces": ["eth0"]}], "failureMode": "open"},
        "outbound": {"exclude": [rule, {"users": [0]}]},
    }
    found = config(mesh(policy("p", spec))).capture
    assert found.policy == "default/p"
    assert found.inbound.open
    assert not found.outbound.open
    assert list(found.inbound.include) == [CaptureRule(interfaces=["eth0"])]
    assert list(found.outbound.exclude) == [
        CaptureRule(
            ports=[5432, 6000, 6001, 6002],
            cidrs=["10.1.0.0/16"],
            users=["alice", "7"],
            units=["a.service"],
            interfaces=["e0"],
        ),
        CaptureRule(users=["0"]),
    ]
    without = config(mesh()).capture
    assert not without.HasField("inbound")
    assert without.policy == ""


@pytest.mark.parametrize(
    ("inbound", "ports"),
    [
        ({}, [80, 81]),
        ({"exclude": [{"ports": [80, 81]}]}, []),
        ({"exclude": [{"ports": ["79-80"]}]}, [81]),
        ({"include": [{"ports": ["81-90"]}]}, [81]),
        ({"exclude": [{"ports": [80], "cidrs": ["10.0.0.0/8"]}]}, [80, 81]),
        ({"include": [{"ports": [80]}]}, [80]),
        ({"include": [{"ports": [80]}, {"interfaces": ["eth0"]}]}, [80, 81]),
    ],
)
def test_ports_that_are_wholly_left_out_are_not_served_so_that_callers_learn_of_it(
    inbound: dict[str, Any], ports: list[int]
) -> None:
    found = config(mesh(policy("p", {"inbound": inbound})))
    assert list(found.capture.inbound_ports) == ports
    assert list(found.workloads[0].ports) == ports


def test_a_port_that_takes_mutual_tls_alone_is_served_whatever_is_left_out() -> None:
    found = config(mesh(STRICT, policy("p", {"inbound": {"exclude": [{"ports": [80, 81]}]}})))
    assert list(found.capture.inbound_ports) == [81]
    assert list(found.strict_ports) == [81]
    assert list(found.workloads[0].ports) == [81]


# What may pass while there is no Envoy


def entry(name: str, address: str, location: str = "MESH_EXTERNAL") -> ApiObject:
    spec = {
        "hosts": [f"{name}.example.com"],
        "addresses": [address],
        "ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}],
        "location": location,
        "resolution": "NONE",
    }
    return obj("ServiceEntry", name, spec)


def rule_for(name: str) -> ApiObject:
    return obj("DestinationRule", "d", {"host": name, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}})


def test_only_what_is_outside_of_the_mesh_and_has_no_rules_may_be_called_directly() -> None:
    db, own = entry("db", "192.0.2.1"), entry("own", "192.0.2.2", "MESH_INTERNAL")
    shared = entry("shared", "192.0.2.2")
    of = [db, own, shared, policy("p", OPEN)]
    assert list(config(mesh(*of)).capture.open_prefixes) == ["192.0.2.1/32"]
    for pattern in ("db.example.com", "*.example.com", "192.0.2.1"):
        if not pattern[0].isdigit():
            assert list(config(mesh(*of, rule_for(pattern))).capture.open_prefixes) == []
        routes = {"hosts": [pattern], "tcp": [{"route": [{"destination": {"host": "shop"}}]}]}
        assert list(config(mesh(*of, obj("VirtualService", "v", routes))).capture.open_prefixes) == []
    assert list(config(mesh(db, policy("p", {}))).capture.open_prefixes) == []


@pytest.mark.parametrize(
    "change",
    [
        rule_for("db.example.com"),
        rule_for("*.example.com"),
        obj(
            "VirtualService",
            "v",
            {"hosts": ["*.example.com"], "http": [{"route": [{"destination": {"host": "shop"}}]}]},
        ),
        obj("VirtualService", "v", {"hosts": ["192.0.2.1"], "tcp": [{"route": [{"destination": {"host": "shop"}}]}]}),
    ],
    ids=lambda item: f"{item.key.kind} {next(iter(item.spec.to_dict().values()))}",
)
def test_a_rule_that_comes_is_told_to_the_hosts_that_it_keeps_closed(change: ApiObject) -> None:
    objects = [host(), SERVICE, SHOP, entry("db", "192.0.2.1"), policy("p", OPEN)]
    before = mesh_of(objects)
    after, touched = update(before, {change.key: change}, before.vips, before.runtime)
    name = ("h1", wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    assert xds.resource(before, *name) != xds.resource(after, *name)
    called = xds.called_by(before, after, "h1")[0] if "h1" in touched.callers else frozenset()
    told = touched.services & set(xds.dependencies(before, *name))
    assert touched.everything or "h1" in touched.hosts or told or name[1:] in called


def test_a_policy_that_comes_goes_or_changes_touches_the_hosts_that_it_is_for_and_no_others() -> None:
    other = obj("Host", "h2", {"addresses": ["10.0.0.2"], "namespace": "b"})
    objects = [host(), other, SERVICE, SHOP]
    before = build(mesh().settings, objects, vips_of(objects), {"h1": HostRuntime(True), "h2": HostRuntime(True)})
    item = policy("p", for_labels(app="shop"))
    after, touched = update(before, {item.key: item}, before.vips, before.runtime)
    assert (touched.hosts, touched.everything) == (frozenset({"h1"}), False)
    changed = policy("p", {**for_labels(app="shop"), "scope": "all"})
    later, touched = update(after, {item.key: changed}, before.vips, before.runtime)
    assert (touched.hosts, touched.everything) == (frozenset({"h1"}), False)
    gone, touched = update(later, {item.key: None}, before.vips, before.runtime)
    assert touched.hosts == {"h1"}
    assert config(gone) == config(before)
