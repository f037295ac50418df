"""Rollout: what it may say, what its defaults are, and what is refused with its place."""

from typing import Any

import pytest

from hostmesh_controller.model import from_document, kind_named
from hostmesh_controller.model.documents import DocumentError
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.rollout import RolloutSpec

FULL = {
    "component": "agent",
    "source": "packages",
    "version": "1.41.0",
    "hosts": {"matchLabels": {"tier": "web"}},
    "canary": 2,
    "waves": [5, "25%", 10, "50%"],
    "watch": "5m",
    "deadline": "15m",
    "absentAfter": "30m",
    "health": {"minCalls": 100, "maxErrorIncrease": 0.5, "maxLatencyIncrease": 20.0, "maxRestarts": 1},
    "rollback": "none",
    "paused": True,
}


def document(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "hostmesh.io/v1", "kind": "Rollout", "metadata": {"name": "next"}, "spec": spec}


def test_every_field_is_read_and_comes_back_as_it_was_written() -> None:
    made = from_document(document(FULL))
    assert made.to_dict()["spec"] == FULL
    assert from_document(made.to_dict()) == made


def test_what_is_left_out_has_a_default() -> None:
    spec = from_document(document({"version": "1.41.0"})).spec
    assert isinstance(spec, RolloutSpec)
    assert (spec.component, spec.canary, spec.waves, spec.rollback, spec.paused) == ("envoy", 1, (), "all", False)
    assert (spec.watch, spec.deadline, spec.absent_after) == (Duration("2m"), Duration("10m"), Duration("1h"))
    assert spec.source == "mirror"
    assert spec.health.max_restarts == 0


def test_it_goes_by_its_short_names() -> None:
    assert all((found := kind_named(name)) is not None and found.kind == "Rollout" for name in ("ro", "rollouts"))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"component": "agent", "version": "1.0-rc1"}, "no version of a package"),
        ({"source": "packages", "version": "1.0-rc1"}, "no version of a package"),
        ({"source": "disk"}, "source"),
        ({"absentAfter": "0s"}, "too short"),
        ({"component": "kernel"}, "'kernel' is nothing that is rolled out"),
        ({"version": "latest"}, "is not a version"),
        ({"version": "../../etc"}, "is not a version"),
        ({"canary": 0}, "at least 1"),
        ({"waves": ["0%"]}, "expected how many hosts"),
        ({"waves": ["101%"]}, "expected how many hosts"),
        ({"waves": [0]}, "expected how many hosts"),
        ({"waves": ["50%", "25%"]}, r"waves\[1\].*not more than the wave before it"),
        ({"waves": [5, "50%", 5]}, r"waves\[2\].*not more than the wave before it"),
        ({"deadline": "0s"}, "too short"),
        ({"rollback": "some"}, "rollback"),
        ({"hosts": {"matchLabels": {"a b": "c"}}}, "hosts.matchLabels"),
        ({"selector": {"matchLabels": {}}}, "unknown field 'selector': write hosts: {matchLabels:"),
        ({"pause": "5m"}, "unknown field 'pause': between waves it is watch: 5m; to hold it, paused: true"),
        ({"health": {"maxErrorIncrease": 101}}, "health.maxErrorIncrease"),
    ],
)
def test_what_cannot_be_meant_is_refused(more: dict[str, Any], why: str) -> None:
    with pytest.raises(DocumentError, match=why):
        from_document(document({"version": "1.41.0"} | more))
