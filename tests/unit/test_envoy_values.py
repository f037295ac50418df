"""Values of EnvoyFilter patches: what Envoy does not know is refused, with its place and the nearest name."""

from typing import Any

import pytest

from golden.objects import obj
from hostmesh_controller.checks.world import World
from hostmesh_controller.envoy_values import TYPES, BadValueError, parsed
from hostmesh_controller.model import ApiObject
from hostmesh_controller.validate import validate

LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"


def with_filter(**config: Any) -> dict[str, Any]:
    return {"name": "x", "typed_config": config}


@pytest.mark.parametrize(
    ("apply_to", "value", "expected"),
    [
        ("CLUSTER", {"nam": "x"}, "nam: envoy.config.cluster.v3.Cluster has no field 'nam'; did you mean 'name'?"),
        (
            "CLUSTER",
            {"load_assignment": {"endpoints": [{"lbEndpoint": []}]}},
            "load_assignment.endpoints.0.lbEndpoint: envoy.config.endpoint.v3.LocalityLbEndpoints has no field",
        ),
        ("CLUSTER", {"connect_timeout": "abc"}, "Duration must end with letter"),
        ("CLUSTER", {"lbPolicy": "BEST"}, "Invalid enum value BEST"),
        ("CLUSTER", {"health_checks": 5}, "health_checks"),
        ("HTTP_FILTER", with_filter(inlineCode="x"), 'typed_config: "@type" is missing'),
        ("HTTP_FILTER", {"name": "x", "typed_config": "y"}, 'typed_config: expected a mapping with "@type"'),
        ("HTTP_FILTER", with_filter(**{"@type": LUA, "code": "x"}), "typed_config.code: envoy.extensions.filters.http"),
        (
            "HTTP_FILTER",
            with_filter(**{"@type": LUA + "a"}),
            "did you mean 'envoy.extensions.filters.http.lua.v3.Lua'?",
        ),
        (
            "HTTP_FILTER",
            with_filter(**{"@type": "type.googleapis.com/envoy.extensions.filters.http.luaa.v3.Lua"}),
            "did you mean 'envoy.extensions.filters.http.lua.v3.Lua'?",
        ),
        (
            "HTTP_FILTER",
            with_filter(**{"@type": "type.googleapis.com/envoy.config.filter.http.lua.v2.Lua"}),
            "hint: try using the v3 XDS API",
        ),
        (
            "HTTP_FILTER",
            with_filter(**{"@type": "type.googleapis.com/stats.PluginConfig"}),
            "Istio's own build of Envoy",
        ),
        ("HTTP_FILTER", with_filter(**{"@type": "type.googleapis.com/../x.Y"}), "Envoy has no type"),
        ("ROUTE_CONFIGURATION", {"virtual_hosts": [{"domain": ["*"]}]}, "did you mean 'domains'?"),
    ],
)
def test_what_envoy_does_not_know_is_refused_with_its_place(
    apply_to: str, value: dict[str, Any], expected: str
) -> None:
    with pytest.raises(BadValueError) as caught:
        parsed(apply_to, value)
    told = [f"{'.'.join(map(str, each.path))}: {each.message}" for each in caught.value.faults]
    assert any(expected in each for each in told), told


@pytest.mark.parametrize("apply_to", sorted(TYPES))
def test_everything_that_can_be_patched_has_a_message(apply_to: str) -> None:
    assert parsed(apply_to, {}).DESCRIPTOR.full_name == TYPES[apply_to]


def test_both_spellings_of_a_field_and_free_form_structs_are_taken() -> None:
    struct = {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": LUA, "value": {"any thing": [1]}}
    assert parsed("HTTP_FILTER", with_filter(**struct)).IsInitialized()
    assert parsed("CLUSTER", {"connectTimeout": "1s"}) == parsed("CLUSTER", {"connect_timeout": "1s"})
    metadata = {"metadata": {"filter_metadata": {"mine": {"a": {"b": True}}}}}
    assert parsed("CLUSTER", metadata).IsInitialized()


def envoy_filter(apply_to: str, operation: str, value: dict[str, Any] | None, **more: Any) -> ApiObject:
    patch = {"operation": operation} | ({} if value is None else {"value": value}) | more.pop("patch", {})
    return obj("EnvoyFilter", "mine", {"configPatches": [{"applyTo": apply_to, "patch": patch, **more}], "priority": 1})


@pytest.mark.parametrize(
    ("item", "severity", "path", "message"),
    [
        (envoy_filter("CLUSTER", "MERGE", {"nam": "x"}), "error", ".value.nam", "did you mean 'name'?"),
        (envoy_filter("CLUSTER", "ADD", {}), "error", ".value", "what is added as CLUSTER needs a name"),
        (envoy_filter("BOOTSTRAP", "MERGE", {"admin": {}}), "error", ".value", "admin of Envoy's bootstrap"),
        (envoy_filter("BOOTSTRAP", "ADD", {}), "warning", ".operation", "ADD does nothing to BOOTSTRAP"),
        (envoy_filter("HTTP_FILTER", "REMOVE", None), "warning", ".operation", "does nothing without a match"),
        (
            envoy_filter("HTTP_FILTER", "ADD", {"name": "x"}, patch={"filterClass": "AUTHZ"}),
            "warning",
            ".filterClass",
            "filterClass does nothing",
        ),
    ],
)
def test_what_cannot_work_is_refused_and_what_does_nothing_is_told(
    item: ApiObject, severity: str, path: str, message: str
) -> None:
    problems = validate([item], World("cluster.local"))
    assert [
        each for each in problems if each.severity == severity and each.path.endswith(path) and message in each.message
    ], problems
