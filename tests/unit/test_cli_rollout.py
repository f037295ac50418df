"""`hostmesh rollout`, over a controller that is a process, and is another one in between."""

import json
from pathlib import Path

from running_controller import running_process

ROLLOUT = """
apiVersion: hostmesh.io/v1
kind: Rollout
metadata: {name: next}
spec: {version: 1.41.0, hosts: {matchLabels: {tier: web}}}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1, labels: {tier: web}}
"""


def test_operators_see_and_steer_rollouts(tmp_path: Path) -> None:
    with running_process(tmp_path) as controller:
        assert (
            "there is no Rollout"
            in controller.cli("rollout", "status").stderr + controller.cli("rollout", "status").stdout
        )
        applied = controller.cli("apply", "-f", "-", stdin=ROLLOUT)
        assert applied.returncode == 0, applied.stderr
        shown = json.loads(controller.cli("rollout", "status", "next", "-o", "json").stdout)
        assert (shown["stage"], shown["wave"], shown["hosts_total"], shown["hosts"]) == ("running", "canary", 1, [])
        assert json.loads(controller.cli("rollout", "status", "-o", "json").stdout)[0]["name"] == "next"
        assert "version: 1.41.0" in controller.cli("rollout", "status", "next", "-o", "yaml").stdout
        assert "paused" in controller.cli("rollout", "pause", "next").stdout
        unknown = controller.cli("rollout", "resume", "other")
        assert (unknown.returncode != 0, "hostmesh rollout status" in unknown.stderr) == (True, True)
        assert controller.stop() == 0
    with running_process(tmp_path) as controller:
        table = controller.cli("rollout", "status").stdout
        assert ("next" in table, "paused" in table) == (True, True)
        assert "running" in controller.cli("rollout", "resume", "next").stdout
        assert json.loads(controller.cli("rollout", "abort", "next", "-o", "json").stdout)["stage"] == "aborted"
        refused = controller.cli("rollout", "pause", "next")
        assert (refused.returncode != 0, "it is aborted" in refused.stderr) == (True, True)
        audit = json.loads(controller.cli("audit", "-o", "json").stdout)
        assert {"rollout.pause", "rollout.resume", "rollout.abort"} <= {each["action"] for each in audit}
        gone = controller.cli("delete", "Rollout", "next")
        assert gone.returncode == 0, gone.stderr


def test_artifacts_are_signed_away_from_the_controller(tmp_path: Path) -> None:
    with running_process(tmp_path) as controller:
        key, program, mirror = tmp_path / "key.pem", tmp_path / "envoy", tmp_path / "mirror"
        program.write_bytes(b"envoy")
        made = controller.cli("rollout", "key", str(key))
        assert (made.returncode, len(made.stdout.strip())) == (0, 44)
        assert "PRIVATE" not in made.stdout + made.stderr
        words = ("rollout", "sign", str(program), "--key", str(key), "--to", str(mirror), "--version")
        assert controller.cli(*words, "1.41.0").returncode == 0
        assert (mirror / "envoy" / "1.41.0" / "x86_64" / "manifest.sig").stat().st_size == 64
        assert controller.cli(*words, "new").returncode != 0
