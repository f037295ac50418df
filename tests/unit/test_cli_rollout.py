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


def test_packages_of_an_agent_are_signed_by_their_names(tmp_path: Path) -> None:
    with running_process(tmp_path) as controller:
        key, mirror = tmp_path / "key.pem", tmp_path / "mirror"
        deb, rpm = tmp_path / "hostmesh-agent_0.2.0_amd64.deb", tmp_path / "hostmesh-agent-0.2.0-1.x86_64.rpm"
        for each in (deb, rpm):
            each.write_bytes(each.name.encode())
        assert controller.cli("rollout", "key", str(key)).returncode == 0
        words = ("--component", "agent", "--key", str(key), "--to", str(mirror), "--version")
        made = controller.cli("rollout", "sign", str(deb), str(rpm), *words, "0.2.0")
        assert made.returncode == 0, made.stderr
        place = mirror / "agent" / "0.2.0" / "x86_64"
        said = json.loads((place / "manifest.json").read_text())
        assert (sorted(said["packages"]), "sha256" in said) == (["deb", "rpm"], False)
        assert (place / "artifact.rpm").read_bytes() == rpm.read_bytes()
        other = controller.cli("rollout", "sign", str(deb), *words, "0.3.0")
        assert (other.returncode != 0, "by its name it is not hostmesh-agent 0.3.0" in other.stderr) == (True, True)
        twice = controller.cli("rollout", "sign", str(deb), str(deb), *words, "0.2.0")
        assert (twice.returncode != 0, "one .deb and one .rpm" in twice.stderr) == (True, True)
        applied = controller.cli("apply", "-f", "-", stdin=ROLLOUT.replace("spec: {", "spec: {component: agent, "))
        assert applied.returncode == 0, applied.stderr
        row = next(line for line in controller.cli("rollout", "status").stdout.splitlines() if "next" in line)
        assert row.split()[1:4] == ["agent", "1.41.0", "running"]
