"""AuthorizationPolicies that would allow the calls that were seen."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from golden.objects import mesh_of, obj
from hostmesh_controller.checks.world import world_of
from hostmesh_controller.cli.output import yaml_text
from hostmesh_controller.explain.permission import Wish, may
from hostmesh_controller.load import load_documents
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.readiness import Seen
from hostmesh_controller.store import CallKey, CallRecord, HostState, PortKey, WatchedPort
from hostmesh_controller.suggest_policy import Suggestion, suggest
from hostmesh_controller.validate import validate

NOW = datetime(2026, 3, 1, tzinfo=UTC)
OBJECTS = [
    *(obj("Host", f"h{number}", {"addresses": [f"10.0.0.{number}"]}) for number in range(1, 5)),
    obj("WorkloadEntry", "db-1", {"address": "10.0.0.1", "labels": {"app": "db", "nr": "1"}, "serviceAccount": "db"}),
    obj("WorkloadEntry", "db-2", {"address": "10.0.0.2", "labels": {"app": "db", "nr": "2"}, "serviceAccount": "db"}),
    obj("WorkloadEntry", "web", {"address": "10.0.0.3", "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "bare", {"address": "10.0.0.4", "ports": {"http": 80}}),
    obj(
        "Service",
        "db",
        {"selector": {"app": "db"}, "ports": [{"name": "http", "port": 8080}, {"name": "tcp", "port": 1}]},
    ),
]


def principal(name: str) -> str:
    return f"cluster.local/ns/default/sa/{name}"


def call(workload: str, caller: str, *methods: str, port: int = 8080, kind: str = "mtls", **more: Any) -> CallRecord:
    caller = f"spiffe://{principal(caller)}" if kind == "mtls" else caller
    values = {"count": 2, "denied": 0, "host": "h1", "epoch": "e", "told": 0, "told_denied": 0, **more}
    return CallRecord(
        CallKey("default", workload, port, kind, caller), frozenset(methods), first_seen=NOW, last_seen=NOW, **values
    )


def suggested(*calls: CallRecord, mesh: Mesh | None = None, only: str = "") -> list[Suggestion]:
    key = PortKey("default", "db-1", 8080)
    ports = {key: WatchedPort(key, "h1", NOW - timedelta(days=2))}
    seen = Seen({each.key: each for each in calls}, ports, {"h1": HostState()}, timedelta(minutes=1))
    found = suggest(mesh or mesh_of(OBJECTS), seen, NOW, lambda each: only in {"", each.key.name})
    return [each for each in found if each.policy is not None or only]


def rule(principals: list[str], *operations: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "from": [{"source": {"principals": [principal(each) for each in principals]}}],
        "to": [{"operation": each} for each in operations],
    }


def test_calls_to_all_workloads_of_one_selector_become_one_policy_in_dry_run_form() -> None:
    (found,) = suggested(
        call("db-1", "web", "GET"),
        call("db-2", "web", "POST"),
        call("db-2", "cron", port=1),
        call("db-1", "api", port=1),
    )
    assert found.workloads == ("default/db-1", "default/db-2")
    assert found.policy == {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "suggested-db", "namespace": "default", "annotations": {"istio.io/dry-run": "true"}},
        "spec": {
            "selector": {"matchLabels": {"app": "db"}},
            "action": "ALLOW",
            "rules": [
                rule(["api", "cron"], {"ports": ["1"]}),
                rule(["web"], {"ports": ["8080"], "methods": ["GET", "POST"]}),
            ],
        },
    }
    assert found.comments == (
        "Observed from 2026-02-27 00:00 to 2026-03-01 00:00 UTC.",
        "Paths are not observed: each rule allows every path.",
        "A caller that was not seen in this time is not allowed.",
    )


def test_a_caller_of_several_ports_has_one_rule_with_an_operation_for_each_set_of_methods() -> None:
    (found,) = suggested(call("db-1", "web", "GET"), call("db-1", "web", "GET", port=81), call("db-1", "web", port=1))
    assert found.policy is not None
    expected = rule(["web"], {"ports": ["1"]}, {"ports": ["8080", "81"][::-1], "methods": ["GET"]})
    assert found.policy["spec"]["rules"] == [expected]


def test_methods_without_a_name_of_their_own_leave_the_methods_open_and_that_is_said() -> None:
    (found,) = suggested(call("db-1", "web", "GET", "OTHER"))
    assert found.policy is not None
    assert found.policy["spec"]["rules"] == [rule(["web"], {"ports": ["8080"]})]
    assert f"Methods are left open for {principal('web')} on port 8080: it uses some that are not told apart." in (
        found.comments
    )


def test_callers_without_an_identity_are_told_and_not_allowed() -> None:
    (found,) = suggested(
        call("db-1", "web", "GET"),
        call("db-1", "10.0.0.3", "GET", kind="plaintext"),
        call("db-1", "", kind="mtls-http"),
    )
    assert found.policy is not None
    assert len(found.policy["spec"]["rules"]) == 1
    told = [each for each in found.comments if each.startswith("Not allowed, for want of an identity: ")]
    assert len(told) == 2
    assert any("10.0.0.3 (host h3) on port 8080" in each for each in told)


def test_calls_that_were_always_refused_are_not_allowed_now() -> None:
    (found,) = suggested(call("db-1", "web", "GET"), call("db-1", "thief", "GET", denied=2))
    assert found.policy is not None
    assert found.policy["spec"]["rules"] == [rule(["web"], {"ports": ["8080"], "methods": ["GET"]})]
    assert f"Refused by a policy until now, and not allowed here: {principal('thief')} on port 8080." in found.comments


def test_no_policy_is_suggested_where_nothing_was_seen_since_it_would_refuse_everybody() -> None:
    (found,) = suggested(only="web")
    assert found.policy is None
    assert "No policy: no call with an identity was seen." in found.comments
    assert "Observed: none of its ports is watched now." in found.comments


def test_a_workload_without_labels_cannot_be_selected() -> None:
    (found,) = suggested(call("bare", "web", "GET", port=80), only="bare")
    assert found.policy is None
    assert any("has no labels" in each for each in found.comments)


def test_a_policy_for_one_workload_is_for_all_that_its_selector_selects() -> None:
    (found,) = suggested(call("db-1", "web", "GET"), call("db-2", "api", "GET"), only="db-1")
    assert found.policy is not None
    assert found.policy["spec"]["rules"] == [rule(["api", "web"], {"ports": ["8080"], "methods": ["GET"]})]


def test_two_policies_have_two_names_and_the_order_of_objects_and_calls_does_not_matter() -> None:
    more: list[ApiObject] = [
        obj("WorkloadEntry", "db", {"address": "10.0.0.4", "labels": {"app": "old"}, "serviceAccount": "db"})
    ]
    calls = [call("db-1", "web", "GET"), call("db-1", "api", "GET"), call("db", "web", "GET", port=80)]
    one = suggested(*calls, mesh=mesh_of([*OBJECTS, *more]))
    other = suggested(*reversed(calls), mesh=mesh_of([*reversed([*OBJECTS, *more])]))
    assert one == other
    names = [each.policy["metadata"]["name"] for each in one if each.policy]
    assert names == ["suggested-db", "suggested-db-2"]


def test_what_is_suggested_is_accepted_and_once_it_counts_it_allows_the_callers_that_were_seen_and_no_others() -> None:
    """The text that is printed is read, checked, tried, and enforced: each caller on each port with each method."""
    callers, methods, ports = ("web", "api", "cron", "thief"), ("GET", "POST", "DELETE"), (8080, 1)
    calls = [
        call("db-1", "web", "GET"),
        call("db-2", "web", "POST"),
        call("db-2", "cron", port=1),
        call("db-1", "api", "GET", "OTHER"),
        call("db-1", "10.0.0.3", "GET", kind="plaintext"),
        call("db-1", "thief", "GET", denied=2),
    ]
    (found,) = suggested(*calls)
    (tried,), problems = load_documents(yaml_text(found.policy), "suggested.yaml")
    assert not problems
    assert validate([tried], world_of(OBJECTS)) == []
    enforced = replace(tried, metadata=replace(tried.metadata, annotations={}))

    def allowed(item: ApiObject) -> set[tuple[str, str, int, str]]:
        mesh = mesh_of([*OBJECTS, item])
        return {
            (workload, caller, port, method)
            for workload in ("default/db-1", "default/db-2")
            for caller in (*(f"spiffe://{principal(each)}" for each in callers), "10.0.0.3")
            for port in ports
            for method in (methods if port == 8080 else ("",))
            if may(mesh, caller, workload, Wish(method=method or None, port=port))[0].verdict.allowed
        }

    everybody = len(allowed(tried))
    assert everybody == 2 * (len(callers) + 1) * (len(methods) + 1), "what is only tried refuses nobody"
    seen = {
        *(("web", 8080, method) for method in ("GET", "POST")),
        *(("api", 8080, method) for method in methods),
        ("cron", 1, ""),
    }
    assert allowed(enforced) == {
        (workload, f"spiffe://{principal(caller)}", port, method)
        for workload in ("default/db-1", "default/db-2")
        for caller, port, method in seen
    }
