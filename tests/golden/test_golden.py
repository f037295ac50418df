"""Every translation, beside its input: tests/golden/<case>/input.yaml and expect/<host>.json.

`pytest tests/golden --update-golden` writes what is expected anew. A case may say in runtime.yaml what is true of its
hosts; without it all have joined and everything is ready.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from golden.objects import all_ready, mesh_of, read
from golden.validation import validate
from hostmesh_controller.mesh import HostRuntime, Mesh
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.translation import TYPES, reachable
from hostmesh_controller.xds.call_log import http_calls, tcp_calls
from hostmesh_controller.xds.messages import as_json

HERE = Path(__file__).parent
WIDTH = 140
CALL_LOGS = {
    json.dumps(as_json(make(mutual_tls=mutual_tls)), sort_keys=True): f"calls of {name}{', mutual TLS' * mutual_tls}"
    for name, make in {"http": http_calls, "tcp": tcp_calls}.items()
    for mutual_tls in (False, True)
}
CASES = sorted(path.parent.name for path in HERE.glob("*/input.yaml"))


def runtime_of(case: str, objects: list[ApiObject]) -> Mapping[str, HostRuntime]:
    path = HERE / case / "runtime.yaml"
    runtime = all_ready(objects)
    for host, facts in (YAML(typ="safe", pure=True).load(path) if path.exists() else {}).items():
        ready = frozenset((each["namespace"], each["name"]) for each in facts.get("ready", ()))
        unhealthy = frozenset((each["namespace"], each["name"]) for each in facts.get("unhealthy", ()))
        runtime[host] = HostRuntime(facts["joined"], ready, facts.get("ipv6", False), healthy=ready - unhealthy)
    return runtime


def mesh_of_case(case: str) -> Mesh:
    objects = read(HERE / case / "input.yaml")
    return mesh_of(objects, runtime_of(case, objects))


def translated(mesh: Mesh, host: str) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {short: {} for short in TYPES}
    short = {type_url: name for name, type_url in TYPES.items()}
    for asked, message in reachable(mesh, host):
        result[short[asked.type_url]][asked.name] = None if message is None else as_json(message)
    # Whatever a case has nothing of is left out.
    return {name: found for name, found in result.items() if found or name not in {"route", "secret", "extension"}}


def shortened(value: Any) -> Any:
    """Return JSON in which the logs that count calls, the same in every chain, are named; else they are most of it."""
    if isinstance(value, dict):
        return CALL_LOGS.get(json.dumps(value, sort_keys=True)) or {
            name: shortened(each) for name, each in value.items()
        }
    return [shortened(each) for each in value] if isinstance(value, list) else value


def text_of(value: Any, indent: int = 0) -> str:
    """Return JSON that is read: what fits on a line is on one line."""
    short = json.dumps(value, sort_keys=True)
    if len(short) + indent <= WIDTH or not isinstance(value, dict | list):
        return short
    inner, end = " " * (indent + 1), " " * indent
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"{inner}{text_of(each, indent + 1)}" for each in value) + f"\n{end}]"
    parts = (f"{inner}{json.dumps(key)}: {text_of(each, indent + 1)}" for key, each in sorted(value.items()))
    return "{\n" + ",\n".join(parts) + f"\n{end}}}"


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_becomes_what_is_written_beside_it(case: str, update_golden: bool) -> None:
    mesh = mesh_of_case(case)
    texts = {f"{host}.json": text_of(shortened(translated(mesh, host))) + "\n" for host in mesh.hosts}
    expect = HERE / case / "expect"
    if update_golden:
        expect.mkdir(exist_ok=True)
        for left_over in {path.name for path in expect.iterdir()} - texts.keys():
            (expect / left_over).unlink()
        for name, text in texts.items():
            (expect / name).write_text(text)
    assert {path.name for path in expect.iterdir()} == texts.keys()
    for name, text in texts.items():
        assert json.loads(text) == json.loads((expect / name).read_text()), f"{name}: see --update-golden"


@pytest.mark.parametrize("case", CASES)
def test_envoy_takes_it(case: str, tmp_path: Path) -> None:
    mesh = mesh_of_case(case)
    for host in mesh.hosts:
        assert validate(translated(mesh, host), tmp_path) == ""


def test_no_expectation_is_left_over_from_a_case_that_is_gone() -> None:
    assert {path.parent.name for path in HERE.glob("*/expect")} == set(CASES)
