"""Which DestinationRules hold for a caller, and what they make of a port and a subset."""

from dataclasses import replace
from typing import Any

import pytest

from golden.objects import SETTINGS, mesh_of, obj
from hostmesh_controller.mesh import build
from hostmesh_controller.mesh.destination_rules import destination_rules_for
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import service_named
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.policy import policy_for, subset_labels

HOST = "reviews.shop.svc.cluster.local"
ROOT = SETTINGS.root_namespace
SERVICES = [
    obj("Service", "reviews", {"ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]}, "shop"),
    obj(
        "ServiceEntry",
        "wild",
        {"hosts": ["*.api.example.com"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]},
        "shop",
    ),
]


def rule(name: str, namespace: str = "shop", host: str = HOST, *, age: int = 0, **spec: Any) -> ApiObject:
    return obj("DestinationRule", name, {"host": host, **spec}, namespace, age=age)


def chosen(rules: list[ApiObject], viewer: Viewer, hostname: str = HOST, **config: Any) -> list[str]:
    """Return the names of the rules that hold, in the order in which they win."""
    objects = [*SERVICES, *rules]
    if config:
        objects.append(obj("MeshConfig", "default", config))
    mesh = mesh_of(objects, {})
    service = service_named(mesh, hostname, Viewer("shop"))
    assert service is not None
    return [item.key.name for item in destination_rules_for(mesh, service, viewer)]


@pytest.mark.parametrize(
    ("namespaces", "winner"),
    [((ROOT, "shop", "web"), "web"), ((ROOT, "shop"), "shop"), ((ROOT,), ROOT), ((), None), (("other",), None)],
)
def test_the_callers_namespace_goes_before_the_services_and_that_before_the_root(
    namespaces: tuple[str, ...], winner: str | None
) -> None:
    found = chosen([rule(namespace, namespace) for namespace in namespaces], Viewer("web"))
    assert found == ([winner] if winner else [])


def test_a_caller_in_the_root_namespace_gets_the_services_rule_before_what_the_root_has_for_all() -> None:
    rules = [rule("for-all", ROOT, "*.local"), rule("own", "shop")]
    assert chosen(rules, Viewer(ROOT)) == ["own"]
    private = [rule("private", ROOT, exportTo=["."]), rule("own", "shop")]
    assert chosen(private, Viewer(ROOT)) == ["private"]


@pytest.mark.parametrize(
    ("export_to", "namespace", "holds"),
    [
        ([], "web", True),
        (["*"], "web", True),
        (["."], "web", False),
        (["."], "shop", True),
        (["web"], "web", True),
        (["web"], "other", False),
        (["web"], "shop", False),
        (["web", "shop"], "shop", True),
    ],
)
def test_a_rule_holds_where_it_is_exported(export_to: list[str], namespace: str, holds: bool) -> None:
    assert bool(chosen([rule("a", exportTo=export_to)], Viewer(namespace))) is holds


def test_the_mesh_decides_whether_a_rule_that_says_nothing_is_exported() -> None:
    config: dict[str, Any] = {"defaultDestinationRuleExportTo": ["."]}
    assert chosen([rule("a")], Viewer("web"), **config) == []
    assert chosen([rule("a")], Viewer("shop"), **config) == ["a"]


def test_the_nearest_host_decides_in_each_namespace() -> None:
    rules = [rule("star", host="*"), rule("far", host="*.local"), rule("near", host="*.shop.svc.cluster.local")]
    assert chosen(rules, Viewer("web")) == ["near"]
    assert chosen([*rules, rule("exact")], Viewer("web")) == ["exact"]
    assert chosen([*rules, rule("home", "web", "*")], Viewer("web")) == ["home"]


def test_a_nearest_host_that_is_for_others_hides_what_is_further_away_as_in_istio() -> None:
    rules = [rule("far", host="*.local"), rule("exact", exportTo=["other", "third"])]
    assert chosen(rules, Viewer("web")) == []


def test_a_wildcard_service_has_the_rule_of_its_pattern_or_a_wider_one() -> None:
    wide, same = rule("wide", host="*.example.com"), rule("same", host="*.api.example.com")
    assert chosen([wide, same], Viewer("web"), "*.api.example.com") == ["same"]
    assert chosen([wide], Viewer("web"), "*.api.example.com") == ["wide"]


def test_rules_of_one_host_are_one_and_the_oldest_comes_first() -> None:
    assert chosen([rule("b", age=1), rule("c", age=2), rule("a", age=3)], Viewer("web")) == ["b", "c", "a"]


def test_of_rules_of_one_age_the_name_decides() -> None:
    assert chosen([rule("b"), rule("a")], Viewer("web")) == ["a", "b"]


def test_rules_for_different_namespaces_are_not_mixed() -> None:
    rules = [rule("one", exportTo=["web"], age=1), rule("two", exportTo=["other"], age=2)]
    assert chosen(rules, Viewer("web")) == ["one"]
    assert chosen(rules, Viewer("other")) == ["two"]


def test_a_rule_that_is_exported_further_adds_to_the_one_that_is_not_and_holds_for_the_others() -> None:
    rules = [rule("few", exportTo=["web"], age=1), rule("more", exportTo=["web", "other"], age=2)]
    assert chosen(rules, Viewer("other")) == ["more"]
    assert chosen(rules, Viewer("web")) == ["few", "more"]


def test_a_rule_that_selects_the_caller_goes_before_one_for_all() -> None:
    selecting = rule("some", "web", workloadSelector={"matchLabels": {"app": "front"}}, age=9)
    rules = [rule("all", "web", age=1), selecting]
    front = Viewer("web", labels=(frozenset({("app", "front")}),))
    assert chosen(rules, front) == ["some"]
    assert chosen(rules, Viewer("web")) == ["all"]
    assert chosen([selecting], Viewer("web")) == []


def test_a_rule_that_selects_callers_is_never_for_other_namespaces() -> None:
    selecting = rule("some", workloadSelector={"matchLabels": {"app": "front"}})
    assert chosen([selecting], Viewer("web", labels=(frozenset({("app", "front")}),))) == []


def test_rules_that_select_the_same_callers_are_one() -> None:
    selector = {"matchLabels": {"app": "front"}}
    rules = [rule(name, "web", workloadSelector=selector) for name in ("one", "two")]
    other = rule("other", "web", workloadSelector={"matchLabels": {"app": "back"}})
    assert chosen([*rules, other], Viewer("web", labels=(frozenset({("app", "front")}),))) == ["one", "two"]


def test_a_private_rule_for_all_is_not_lost_beside_one_for_some() -> None:
    rules = [
        rule("some", "web", workloadSelector={"matchLabels": {"app": "front"}}),
        rule("all", "web", exportTo=["."]),
    ]
    assert chosen(rules, Viewer("web")) == ["all"]


TOP = {
    "loadBalancer": {"simple": "ROUND_ROBIN"},
    "connectionPool": {"tcp": {"maxConnections": 1}},
    "tls": {"mode": "DISABLE"},
    "proxyProtocol": {"version": "V2"},
    "portLevelSettings": [{"port": {"number": 81}, "loadBalancer": {"simple": "RANDOM"}}],
}


def simple(item: ApiObject, subset: str, port: int) -> tuple[str | None, bool, bool, bool]:
    """Return the balancer, and whether there are a pool, TLS settings and the proxy protocol."""
    found = policy_for((item,), subset, port)
    balancer = found.load_balancer.simple if found.load_balancer else None
    return balancer, found.connection_pool is not None, found.tls is not None, found.proxy_protocol is not None


def test_a_ports_settings_replace_all_of_the_services() -> None:
    item = rule("a", trafficPolicy=TOP)
    assert simple(item, "", 80) == ("ROUND_ROBIN", True, True, True)
    assert simple(item, "", 81) == ("RANDOM", False, False, False)


def test_a_subsets_parts_go_over_those_of_the_service_and_of_its_port() -> None:
    subset = {"name": "v1", "trafficPolicy": {"outlierDetection": {}, "loadBalancer": {"simple": "LEAST_REQUEST"}}}
    item = rule("a", trafficPolicy=TOP, subsets=[subset, {"name": "v2"}])
    assert simple(item, "v1", 80) == ("LEAST_REQUEST", True, True, True)
    assert simple(item, "v1", 81) == ("LEAST_REQUEST", False, False, False)
    assert simple(item, "v2", 81) == ("RANDOM", False, False, False)
    assert policy_for((item,), "v1", 80).outlier_detection is not None


def test_a_subsets_port_leaves_nothing_of_the_service_but_what_a_port_cannot_have() -> None:
    own = {"portLevelSettings": [{"port": {"number": 80}, "connectionPool": {"tcp": {"maxConnections": 2}}}]}
    item = rule("a", trafficPolicy=TOP, subsets=[{"name": "v1", "trafficPolicy": own}])
    assert simple(item, "v1", 80) == (None, True, False, True)
    assert simple(item, "v1", 81) == ("RANDOM", False, False, False)


def test_of_merged_rules_the_first_has_the_policy_and_each_subset_is_the_first_of_its_name() -> None:
    first = rule("a", subsets=[{"name": "v1", "labels": {"version": "1"}}])
    second = rule(
        "b",
        trafficPolicy={"loadBalancer": {"simple": "RANDOM"}},
        subsets=[{"name": "v1", "labels": {"version": "2"}}, {"name": "v2", "labels": {"version": "2"}}],
    )
    assert subset_labels((first, second), "v1") == {"version": "1"}
    assert subset_labels((first, second), "v2") == {"version": "2"}
    assert subset_labels((first, second), "v3") is None
    found = policy_for((first, second), "", 80).load_balancer
    assert found is not None
    assert found.simple == "RANDOM"


def test_what_the_file_of_the_mesh_says_holds_without_an_object() -> None:
    settings = MeshConfigSpec.model_validate({"defaultDestinationRuleExportTo": ["."]})
    mesh = build(replace(SETTINGS, mesh_config=settings), [*SERVICES, rule("a")], {}, {})
    service = service_named(mesh, HOST, Viewer("web"))
    assert service is not None
    assert destination_rules_for(mesh, service, Viewer("web")) == ()
