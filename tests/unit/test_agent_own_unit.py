"""`join` starts the agent where systemd runs it, and says so; elsewhere it touches nothing."""

from pathlib import Path

import pytest

from hostmesh_agent import notify, own_unit
from hostmesh_agent.own_unit import UnitError, start

ALL = [
    "show --property=LoadState --value -- hostmesh-agent.service",
    "--quiet enable hostmesh-guard.service hostmesh-agent.service",
    "start -- hostmesh-agent.service",
    "show --property=ActiveState --value -- hostmesh-agent.service",
]


class Systemd:
    """A systemctl that knows one unit, and writes down what it was told."""

    def __init__(self, directory: Path, load: str = "loaded", active: str = "active", fails: str = "nothing") -> None:
        self.told = directory / "told"
        self.told.touch()
        self.program = directory / "systemctl"
        self.program.write_text(
            f'#!/bin/sh\necho "$@" >> {self.told}\ncase "$*" in\n'
            f'"{fails}"*) echo "Job failed." >&2; exit 1 ;;\n'
            f"*LoadState*) echo '{load}' ;;\n*ActiveState*) echo '{active}' ;;\nesac\n"
        )
        self.program.chmod(0o755)
        self.state = directory / "state"
        self.runs = directory

    def start(self, state_dir: Path | None = None, runs: Path | None = None) -> str | None:
        return start(state_dir or self.state, runs or self.runs, str(self.program), self.state)

    def said(self) -> list[str]:
        return self.told.read_text().splitlines()


def test_the_units_are_enabled_and_the_agents_is_started(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path)
    assert systemd.start() is None
    assert systemd.said() == ALL


def test_nothing_is_told_where_systemd_does_not_run_or_the_unit_is_anothers(tmp_path: Path) -> None:
    systemd = Systemd(tmp_path)
    assert "systemd does not run here" in str(systemd.start(runs=tmp_path / "absent"))
    assert "another agent's" in str(systemd.start(state_dir=tmp_path / "lab"))
    assert systemd.said() == []


@pytest.mark.parametrize("state", ["not-found", "masked"])
def test_a_unit_that_is_not_there_or_was_masked_is_left_alone_and_named(tmp_path: Path, state: str) -> None:
    systemd = Systemd(tmp_path, load=state)
    assert systemd.start() == f"hostmesh-agent.service is {state}"
    assert systemd.said() == ALL[:1]


def test_in_a_chroot_nobody_says_that_it_runs(tmp_path: Path) -> None:
    assert Systemd(tmp_path, active="").start() == "hostmesh-agent.service is not started in a chroot"


@pytest.mark.parametrize("verb", ["start", "--quiet enable"])
def test_a_unit_that_does_not_start_is_an_error_with_what_systemd_said(tmp_path: Path, verb: str) -> None:
    with pytest.raises(UnitError, match="Job failed"):
        Systemd(tmp_path, fails=verb).start()


def test_no_systemctl_where_systemd_runs_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(UnitError, match="No such file"):
        start(tmp_path, tmp_path, str(tmp_path / "none"), tmp_path)


def test_the_units_that_are_enabled_are_those_of_the_package() -> None:
    units = Path(__file__).parents[2] / "packaging/systemd"
    for name in (own_unit.GUARD, notify.UNIT):
        assert "[Install]" in (units / name).read_text()
