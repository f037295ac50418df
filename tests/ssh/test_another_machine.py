"""The machine behind --ssh is not the host that was meant: neither of the two is harmed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hostmesh_controller.cli.ssh import steps
from hostmesh_controller.cli.ssh.leaving import Leaving
from hostmesh_controller.cli.ssh.steps import HostResult
from ssh.setting import JOINED, Setting, packages, seen_as, without_workloads
from ssh.ssh_host import SshHost


@pytest.mark.parametrize("dry_run", [True, False], ids=["a dry run", "a real run"])
def test_a_machine_is_not_given_the_name_of_another_that_has_joined(
    setting: Setting, tmp_path: Path, key: Path, dry_run: bool
) -> None:
    without_workloads(setting.told)
    assert setting.join() == JOINED
    mesh, real = setting.mesh(), setting.told.real
    before, certificates = setting.host.state(), real.get("/v1/hosts/web-1")["certificates"]
    first, setting.host = setting.host, SshHost(tmp_path / "other", key)
    setting.host.start()
    try:
        untouched = setting.host.state()
        result = setting.join(dry_run=dry_run)
        assert setting.host.state() == untouched
    finally:
        setting.host.stop()
    assert (result.step, result.left_behind) == (steps.CHECK, ())
    assert "another machine has joined as web-1 and is connected (192.0.2.7)" in result.message
    assert "choose another name" in result.cure
    assert "hostmesh host remove web-1" in result.cure
    assert (first.state(), setting.mesh(), len(setting.told.strings)) == (before, mesh, 1)
    assert real.get("/v1/hosts/web-1")["certificates"] == certificates


@pytest.mark.parametrize(
    ("said", "is_refused"),
    [
        ({"lease": "alive"}, True),
        ({"lease": "agent-away"}, True),
        ({"lease": "held"}, True),
        ({"lease": "agent-away", "addresses": ["127.0.0.1"]}, False),
        ({"lease": "withdrawn"}, False),
        ({"state": "left", "lease": "unknown"}, False),
        ({"state": "expelled", "lease": "unknown"}, True),
    ],
    ids=str,
)
def test_a_host_that_was_made_anew_joins_again_under_its_name(
    setting: Setting, said: dict[str, Any], is_refused: bool
) -> None:
    without_workloads(setting.told)
    assert setting.join() == JOINED
    setting.host.run("rm -rf /var/lib/hostmesh /run/unit-active")
    seen_as(setting, connected=False, **said)
    result = setting.join()
    assert (result.step if is_refused else result.outcome) == (steps.CHECK if is_refused else "joined"), result


@pytest.mark.parametrize("state", ["none", "damaged"])
def test_a_machine_that_is_not_the_host_is_left_alone_while_the_host_is_connected(setting: Setting, state: str) -> None:
    without_workloads(setting.told)
    assert setting.join() == JOINED
    setting.host.run("rm -rf /var/lib/hostmesh/*")
    if state == "damaged":
        setting.host.run("echo '{' >/var/lib/hostmesh/host.json")
    before, mesh = setting.host.state(), setting.mesh()
    leaving = Leaving("web-1", setting.wanted().access, setting.told, lambda _: None, workloads=True)
    result = leaving.run()
    assert (result.step, "check --ssh" in result.cure) == (steps.CHECK, True)
    assert "web-1 is connected (192.0.2.7)" in result.message
    assert (setting.host.state(), setting.mesh()) == (before, mesh)
    seen_as(setting, connected=False)
    assert replace(leaving, _step=steps.CONNECT).run() == HostResult("web-1", "removed")
    assert (packages(setting.host.state()), setting.mesh()) == ([], [])
