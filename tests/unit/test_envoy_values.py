"""Values of EnvoyFilter patches: what cannot be read is refused; what Envoy does not know is left out, and told."""

from typing import Any

import pytest

from golden.objects import obj
from hostmesh_controller.checks.world import World
from hostmesh_controller.envoy_types import message_class
from hostmesh_controller.envoy_values import TYPES, BadValueError, ValueFault, parsed
from hostmesh_controller.model import ApiObject
from hostmesh_controller.validate import validate

LUA = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"


def with_filter(**config: Any) -> dict[str, Any]:
    return {"name": "x", "typed_config": config}


def texts(faults: tuple[ValueFault, ...]) -> list[str]:
    return [f"{'.'.join(map(str, each.path))}: {each.message}" for each in faults]


@pytest.mark.parametrize(
    ("apply_to", "value", "expected"),
    [
        ("CLUSTER", {"connect_timeout": "abc"}, "Duration must end with letter"),
        ("CLUSTER", {"name": False}, "name"),
        ("CLUSTER", {"health_checks": 5}, "health_checks"),
        ("CLUSTER", {"lbPolicy": "BEST", "nam": "x"}, "Invalid enum value BEST"),
        ("HTTP_FILTER", with_filter(inlineCode="x"), 'typed_config: "@type" is missing'),
        ("HTTP_FILTER", {"name": "x", "typed_config": "y"}, 'typed_config: expected a mapping with "@type"'),
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
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(apply_to: str, value: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadValueError) as caught:
        parsed(apply_to, value)
    told = texts(caught.value.faults)
    assert any(expected in each for each in told), told


@pytest.mark.parametrize(
    ("apply_to", "value", "rest", "expected"),
    [
        ("CLUSTER", {"nam": "x"}, {}, "nam: envoy.config.cluster.v3.Cluster has no field 'nam'; did you mean 'name'?"),
        (
            "CLUSTER",
            {"name": "x", "load_assignment": {"endpoints": [{"lbEndpoint": []}]}},
            {"name": "x", "load_assignment": {"endpoints": [{}]}},
            "load_assignment.endpoints.0.lbEndpoint: envoy.config.endpoint.v3.LocalityLbEndpoints has no field",
        ),
        (
            "HTTP_FILTER",
            with_filter(**{"@type": LUA, "code": "x"}),
            with_filter(**{"@type": LUA}),
            "typed_config.code: envoy.extensions.filters.http",
        ),
        ("ROUTE_CONFIGURATION", {"virtual_hosts": [{"domain": ["*"]}]}, {"virtual_hosts": [{}]}, "'domains'?"),
    ],
)
def test_what_envoy_does_not_know_is_left_out_and_told_with_its_place(
    apply_to: str, value: dict[str, Any], rest: dict[str, Any], expected: str
) -> None:
    message, unknown = parsed(apply_to, value)
    assert any(expected in each for each in texts(unknown)), unknown
    assert parsed(apply_to, rest) == (message, ())


def test_durations_may_have_the_units_of_go() -> None:
    for written, seconds in (("500ms", "0.5s"), ("1m30s", "90s"), ("1.5h", "5400s"), ("7s", "7s")):
        assert parsed("CLUSTER", {"connect_timeout": written}) == parsed("CLUSTER", {"connect_timeout": seconds})


@pytest.mark.parametrize("apply_to", sorted(TYPES))
def test_everything_that_can_be_patched_has_a_message(apply_to: str) -> None:
    assert parsed(apply_to, {}).message.DESCRIPTOR.full_name == TYPES[apply_to]


def test_both_spellings_of_a_field_and_free_form_structs_are_taken() -> None:
    struct = {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "type_url": LUA, "value": {"any thing": [1]}}
    assert parsed("HTTP_FILTER", with_filter(**struct)).unknown == ()
    assert parsed("CLUSTER", {"connectTimeout": "1s"}) == parsed("CLUSTER", {"connect_timeout": "1s"})
    metadata = {"metadata": {"filter_metadata": {"mine": {"a": {"b": True}}}}}
    assert parsed("CLUSTER", metadata).unknown == ()


def envoy_filter(apply_to: str, operation: str, value: dict[str, Any] | None, **more: Any) -> ApiObject:
    patch = {"operation": operation} | ({} if value is None else {"value": value}) | more.pop("patch", {})
    return obj("EnvoyFilter", "mine", {"configPatches": [{"applyTo": apply_to, "patch": patch, **more}], "priority": 1})


@pytest.mark.parametrize(
    ("item", "severity", "path", "message"),
    [
        (envoy_filter("CLUSTER", "MERGE", {"nam": "x"}), "warning", ".value.nam", "did you mean 'name'?"),
        (envoy_filter("CLUSTER", "MERGE", {"name": 5}), "error", ".value", "Envoy filter:"),
        (
            envoy_filter("CLUSTER", "ADD", {}),
            "warning",
            ".value",
            "is added as CLUSTER has no effect without",
        ),
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


def test_the_same_value_is_the_same_bytes_in_every_process() -> None:
    """Maps have another order in each process: what is packed into an Any must not show it."""
    struct = {"@type": "type.googleapis.com/udpa.type.v1.TypedStruct", "value": {f"k{n}": n for n in range(50)}}
    found = parsed("HTTP_FILTER", with_filter(**struct)).message
    packed: Any = getattr(found, "typed_config")  # noqa: B009 - a message of any type
    kind = message_class("udpa.type.v1.TypedStruct")
    assert kind is not None
    assert packed.value == kind.FromString(packed.value).SerializeToString(deterministic=True)
