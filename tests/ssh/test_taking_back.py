"""What `hostmesh register --ssh` did is taken back where it fails, whatever fails."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_controller.cli.ssh import steps
from hostmesh_controller.cli.ssh.joining import Joining
from running_controller import Process
from ssh.setting import (
    ALL_STEPS,
    JOINED,
    WRITTEN,
    Setting,
    Told,
    documents,
    eventually,
    packages,
    without_workloads,
    write,
)
from ssh.ssh_host import package


@pytest.mark.parametrize("has_joined", [False, True], ids=["that joins", "that had joined"])
def test_objects_of_a_host_are_put_back_when_it_fails(setting: Setting, has_joined: bool) -> None:
    without_workloads(setting.told)
    write(setting)
    if has_joined:
        assert setting.join(body={}).outcome == "joined"
    before, packaged = documents(setting), packages(setting.host.state())
    body = {"addresses": ["192.0.2.7"], "labels": {"app": "other"}, "ports": [{"name": "http", "number": 9}]}
    result = setting.join(body=body, verify="http://nobody.invalid/")
    assert (result.step, result.left_behind) == (steps.VERIFY, ())
    assert documents(setting) == before
    assert packages(setting.host.state()) == packaged


def test_what_somebody_else_wrote_meanwhile_is_not_put_back_but_told(setting: Setting) -> None:
    without_workloads(setting.told)
    write(setting)
    theirs = {**WRITTEN[1], "spec": {**WRITTEN[1]["spec"], "weight": 7}}  # type: ignore[dict-item]

    def tell(line: str) -> None:
        if line == steps.VERIFY:
            setting.told.real.request("PUT", "/v1/objects/WorkloadEntry/default/web-1", body=theirs)

    result = setting.join(tell, body={"labels": {"app": "other"}}, verify="http://nobody.invalid/")
    assert result.left_behind == ("WorkloadEntry web-1: somebody else has changed it since",)
    assert documents(setting) == [WRITTEN[0], theirs]


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_connection_that_is_cut_at_any_step_leaves_nothing_behind(setting: Setting, step: str) -> None:
    without_workloads(setting.told)
    before = setting.host.state()
    broken = replace(setting.wanted(), verify="http://catalog/")

    def tell(line: str) -> None:
        if line == step:
            setting.host.cut()

    result = Joining(broken, setting.told, tell).run()
    assert result.failed
    assert result.left_behind == ()
    assert setting.mesh() == []
    after = setting.host.state()
    assert packages(after) == packages(before)
    assert "/var/lib/hostmesh" not in after
    assert "/var/tmp/hostmesh" not in after
    assert setting.join() == JOINED


def test_a_host_that_never_connects_is_taken_back(setting: Setting, controller: Process) -> None:
    setting.told = Told(controller)
    real = setting.told.real
    result = Joining(setting.wanted(), real, lambda _: None).run()
    assert result.step == steps.VERIFY
    assert "not connected" in result.message
    assert setting.mesh() == []
    assert packages(setting.host.state()) == []


def test_a_package_that_cannot_be_installed_is_taken_back(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    setting.deb = package(tmp_path / "bad", before="echo there is no room >&2; exit 1")
    result = setting.join()
    assert (result.step, setting.mesh(), packages(setting.host.state())) == (steps.INSTALL, [], [])
    assert result.left_behind == ()
    assert setting.told.strings == []


@pytest.mark.parametrize("how", ["the package was removed", "the file came first"])
def test_what_the_owner_had_configured_is_there_after_a_join_that_failed(
    setting: Setting, tmp_path: Path, how: str
) -> None:
    (tmp_path / "configured").mkdir()
    setting.deb = package(tmp_path / "configured", config="# the package's\n")
    edited = "mkdir -p /etc/hostmesh; echo '# mine' >/etc/hostmesh/agent.toml; chmod 640 /etc/hostmesh/agent.toml"
    if how == "the package was removed":
        setting.host.run(f"dpkg -i {setting.deb}; {edited}; dpkg -r hostmesh-agent")
    else:
        setting.host.run(edited)

    def look() -> str:
        shown = "dpkg-query -W -f '${db:Status-Status}' hostmesh-agent 2>/dev/null"
        return setting.host.run(f"{shown}; cd /etc/hostmesh && stat -c '%n %a %U' * && cat *")

    before = look()
    assert before.endswith("agent.toml 640 root\n# mine\n")
    result = setting.join(verify="http://nobody.invalid/")
    assert (result.step, result.left_behind) == (steps.VERIFY, ())
    assert look() == before


@pytest.mark.parametrize("step", [steps.INSTALL, steps.JOIN, steps.WAIT])
def test_an_interruption_takes_back_what_was_done(setting: Setting, step: str) -> None:
    without_workloads(setting.told)
    work: list[Joining] = []

    def tell(line: str) -> None:
        if line == step:
            threading.Thread(target=work[0].halt).start()
            work[0].halted.wait(10)

    work.append(Joining(setting.wanted(), setting.told, tell))
    result = work[0].run()
    assert (result.message, result.step, result.left_behind) == ("interrupted", step, ())
    assert (setting.mesh(), packages(setting.host.state())) == ([], [])


@pytest.mark.parametrize("how", ["the connection is cut", "the operator interrupts"])
def test_an_installation_that_loses_its_operator_half_way_is_taken_back(
    setting: Setting, tmp_path: Path, how: str
) -> None:
    (tmp_path / "slow").mkdir()
    going = "touch /run/installing; until [ -e /run/go-on ]; do sleep 0.05; done"
    setting.deb = package(tmp_path / "slow", before=going)
    work = Joining(setting.wanted(), setting.told, lambda _: None)

    def end() -> None:
        eventually(lambda: setting.host.run("ls /run/installing").strip(), "apt is at it")
        if how == "the connection is cut":
            setting.host.cut()
        else:
            work.halt()
        setting.host.run("touch /run/go-on")

    ending = threading.Thread(target=end)
    ending.start()
    result = work.run()
    ending.join()
    assert (result.step, result.left_behind) == (steps.INSTALL, ())
    assert (setting.mesh(), packages(setting.host.state()), setting.told.strings) == ([], [], [])


@pytest.mark.parametrize("how", ["the connection is cut", "the operator interrupts"])
def test_what_is_taken_back_is_ended_by_nobody_and_goes_on_over_another_connection(
    setting: Setting, tmp_path: Path, how: str
) -> None:
    without_workloads(setting.told)
    before = setting.host.state()
    (tmp_path / "slow").mkdir()
    setting.deb = package(
        tmp_path / "slow", leaving="touch /run/removing; until [ -e /run/go-on ]; do sleep 0.05; done"
    )
    work = Joining(replace(setting.wanted(), verify="http://nobody.invalid/"), setting.told, lambda _: None)

    def end() -> None:
        eventually(lambda: setting.host.run("ls /run/removing").strip(), "apt is at it")
        if how == "the connection is cut":
            setting.host.cut()
        else:
            work.halt()
        setting.host.run("touch /run/go-on")

    ending = threading.Thread(target=end)
    ending.start()
    result = work.run()
    ending.join()
    assert (result.step, result.left_behind) == (steps.VERIFY, ())
    assert (setting.mesh(), packages(setting.host.state())) == ([], packages(before))
