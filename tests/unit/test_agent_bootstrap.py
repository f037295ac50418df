import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent import artifact
from hostmesh_agent.bootstrap import BootstrapInput, build, for_instance, max_connections
from hostmesh_agent.places import BLUE, GREEN

WANTED = BootstrapInput(host="web-1", xds_socket=Path("/run/hostmesh/xds.sock"), max_files=1 << 20)


def test_the_same_input_gives_the_same_bytes() -> None:
    assert build(WANTED) == build(WANTED)
    assert json.loads(build(WANTED))["node"] == {"id": "web-1", "cluster": "hostmesh"}


def test_connections_are_bounded_by_the_open_files() -> None:
    assert max_connections(1 << 20) == 524032
    assert max_connections(1024) == 256


def test_an_agent_that_is_not_root_gets_at_envoys_sockets_by_its_group_and_one_that_is_leaves_them_closed() -> None:
    for by_group, mode in ((False, 0o600), (True, 0o660)):
        made = json.loads(build(replace(WANTED, by_group=by_group)))
        pipes = [each["address"]["pipe"] for each in made["static_resources"]["listeners"] if "pipe" in each["address"]]
        assert [each["mode"] for each in (made["admin"]["address"]["pipe"], *pipes)] == [mode] * 3


def test_the_admin_interface_is_private_and_does_not_give_its_configuration_away() -> None:
    admin = json.loads(build(WANTED))["admin"]
    assert admin["address"] == {"pipe": {"path": "admin.sock", "mode": 0o600}}
    (matcher,) = admin["allow_paths"]
    allowed = re.compile(matcher["safe_regex"]["regex"])
    for path in ("/ready", "/listeners?format=json", "/stats/prometheus", "/drain_listeners?graceful&skip_exit"):
        assert allowed.fullmatch(path), path
    for path in ("/", "/config_dump", "/config_dump?/ready", "/quitquitquit", "/runtime_modify", "/ready/x", "/readyx"):
        assert not allowed.fullmatch(path), path


def refusal(directory: Path, content: bytes) -> str:
    (directory / "bootstrap.json").write_bytes(content)
    command = [str(artifact.find(None)), "--mode", "validate", "--disable-hot-restart", "-c", "bootstrap.json"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=20)
    return done.stderr if done.returncode else ""


def test_envoy_takes_regular_expressions_of_any_length_that_istio_s_proxies_take(tmp_path: Path) -> None:
    route = {"match": {"safe_regex": {"regex": "/" + "a{300}[0-9a-f]{8}"}}, "direct_response": {"status": 200}}
    extensions = "type.googleapis.com/envoy.extensions.filters.network"
    manager = {
        "@type": f"{extensions}.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "own",
        "route_config": {"virtual_hosts": [{"name": "own", "domains": ["*"], "routes": [route]}]},
    }
    listener = {
        "name": "own",
        "address": {"pipe": {"path": "own.sock"}},
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    patch = {"static_resources": {"listeners": [listener]}}
    content = build(replace(WANTED, patch=json.dumps(patch)))
    assert refusal(tmp_path, content) == ""
    without = {name: value for name, value in json.loads(content).items() if name != "layered_runtime"}
    assert "max program size of 100" in refusal(tmp_path, json.dumps(without).encode())


def test_a_patch_adds_its_own_switches_to_those_of_envoy(tmp_path: Path) -> None:
    layer = {"name": "theirs", "static_layer": {"re2.max_program_size.error_level": 50}}
    content = build(replace(WANTED, patch=json.dumps({"layered_runtime": {"layers": [layer]}})))
    assert [each["name"] for each in json.loads(content)["layered_runtime"]["layers"]] == ["hostmesh", "theirs"]
    assert refusal(tmp_path, content) == ""


def test_envoy_accepts_it(tmp_path: Path) -> None:
    (tmp_path / "bootstrap.json").write_bytes(build(WANTED))
    command = [
        str(artifact.find(None)),
        "--mode",
        "validate",
        "--disable-hot-restart",
        "--config-path",
        "bootstrap.json",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


@pytest.mark.parametrize("patch", ["", '{"static_resources": {"listeners": [{"name": "theirs"}]}}'])
def test_a_bootstrap_of_either_envoy_can_be_made_that_of_the_other(patch: str) -> None:
    first = BootstrapInput("web-1", Path("/run/hostmesh/xds.sock"), 1024, patch, ipv6=True)
    blue, green = build(first), build(replace(first, instance=GREEN))
    assert blue != green
    for each in (blue, green):
        assert for_instance(each, GREEN, ipv6=True) == green
        assert for_instance(each, BLUE, ipv6=True) == blue
