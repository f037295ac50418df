import json
import re
import subprocess
from pathlib import Path

from hostmesh_agent import artifact
from hostmesh_agent.bootstrap import BootstrapInput, build, max_connections

WANTED = BootstrapInput(host="web-1", xds_socket=Path("/run/hostmesh/xds.sock"), max_files=1 << 20)


def test_the_same_input_gives_the_same_bytes() -> None:
    assert build(WANTED) == build(WANTED)
    assert json.loads(build(WANTED))["node"] == {"id": "web-1", "cluster": "hostmesh"}


def test_connections_are_bounded_by_the_open_files() -> None:
    assert max_connections(1 << 20) == 524032
    assert max_connections(1024) == 256


def test_the_admin_interface_is_private_and_does_not_give_its_configuration_away() -> None:
    admin = json.loads(build(WANTED))["admin"]
    assert admin["address"] == {"pipe": {"path": "admin.sock", "mode": 0o600}}
    (matcher,) = admin["allow_paths"]
    allowed = re.compile(matcher["safe_regex"]["regex"])
    for path in ("/ready", "/listeners?format=json", "/stats/prometheus", "/drain_listeners?graceful&skip_exit"):
        assert allowed.fullmatch(path), path
    for path in ("/", "/config_dump", "/config_dump?/ready", "/quitquitquit", "/runtime_modify", "/ready/x", "/readyx"):
        assert not allowed.fullmatch(path), path


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
