"""Which binary runs, how patient the host's owner is, and the mark of a drained host."""

import hashlib
from pathlib import Path

import pytest

from hostmesh_agent import chosen_binary, cli, exits, report
from hostmesh_agent.config import AgentConfig, EnvoySettings, parse
from hostmesh_agent.config_table import ConfigError
from hostmesh_agent.drained import LONGEST_S, QUIET_S, Drained, Quiet
from hostmesh_agent.places import BLUE, GREEN
from hostmesh_api.v1.hostmesh_pb2 import WorkloadLease


def program(path: Path, text: str) -> tuple[Path, str]:
    path.write_text(text)
    path.chmod(0o755)
    return path, hashlib.sha256(text.encode()).hexdigest()


def test_a_chosen_binary_is_used_until_it_is_forgotten(tmp_path: Path) -> None:
    first, first_sha256 = program(tmp_path / "first", "one")
    second, second_sha256 = program(tmp_path / "second", "two")
    config = AgentConfig(state_dir=tmp_path / "state", envoy=EnvoySettings(binary=first, sha256=first_sha256))
    config.state_dir.mkdir(mode=0o700)
    assert chosen_binary.install(config).sha256 == first_sha256
    chosen_binary.choose(config.state_dir, second, second_sha256)
    assert chosen_binary.install(config).path.read_text() == "two"
    chosen_binary.forget(config.state_dir)
    assert chosen_binary.install(config).sha256 == first_sha256


def test_a_choice_that_cannot_be_read_leaves_the_binary_of_the_hosts_owner(tmp_path: Path) -> None:
    own, sha256 = program(tmp_path / "own", "one")
    config = AgentConfig(state_dir=tmp_path / "state", envoy=EnvoySettings(binary=own, sha256=sha256))
    config.state_dir.mkdir(mode=0o700)
    path = config.state_dir / chosen_binary.FILE
    path.write_text("{}")
    path.chmod(0o600)
    assert chosen_binary.install(config).sha256 == sha256


def test_the_owner_says_when_envoy_is_replaced_and_how_patiently() -> None:
    text = '[envoy]\nupgrade = "auto"\nrehearsal_s = 2\nprobation_s = 60\nhung_after_s = 5\n'
    found = parse(text, "agent.toml").envoy
    assert (found.upgrade, found.rehearsal_s, found.probation_s, found.hung_after_s) == ("auto", 2, 60, 5)
    assert parse("", "agent.toml").envoy.upgrade == "manual"
    with pytest.raises(ConfigError, match=r"envoy\.upgrade: must be one of manual, auto"):
        parse('[envoy]\nupgrade = "sometimes"\n', "agent.toml")


def test_the_directories_of_both_fit_into_a_socket_path() -> None:
    config = AgentConfig()
    assert config.directory_of(BLUE) == config.envoy_dir
    assert len(config.directory_of(GREEN).name) <= len(config.envoy_dir.name)


@pytest.mark.parametrize(("until_boot", "after_a_boot"), [(False, True), (True, False)])
def test_a_drained_host_stays_drained_over_a_restart_and_over_a_boot_where_its_owner_said_so(
    tmp_path: Path, until_boot: bool, after_a_boot: bool
) -> None:
    state_dir, run_dir, next_run_dir = (tmp_path / name for name in ("state", "run", "next"))
    for each in (state_dir, run_dir, next_run_dir):
        each.mkdir()
    Drained(state_dir, run_dir).ask(wanted=True, until_boot=until_boot)
    assert Drained(state_dir, next_run_dir).asked == after_a_boot
    drained = Drained(state_dir, run_dir)
    assert drained.asked
    drained.ask(wanted=False)
    assert not Drained(state_dir, run_dir).asked


def test_what_a_shutdown_began_ends_when_the_host_is_up_though_run_is_as_it_was(tmp_path: Path) -> None:
    """After a boot of programs alone, or from rescue.target. What the owner said stays."""
    for by_owner in (False, True):
        drained = Drained(tmp_path, tmp_path / "run")
        (tmp_path / "run").mkdir(exist_ok=True)
        if by_owner:
            drained.ask(wanted=True)
        drained.ask(wanted=True, until_boot=True)
        drained.ask(wanted=False, until_boot=True)
        assert drained.asked == Drained(tmp_path, tmp_path / "run").asked == by_owner


def reply(*, told: bool = True, calls: int | None = 0, begun: int | None = 9) -> dict[str, object]:
    return {"told": told, "calls": calls, "begun": begun, "failing": ""}


def test_callers_have_left_once_nothing_is_under_way_and_nothing_began_for_a_while() -> None:
    quiet = Quiet()
    assert not quiet.over(reply(told=False), 0.0)
    assert not quiet.over(reply(), 10.0)
    assert not quiet.over(reply(begun=10), 10.9)
    assert not quiet.over(reply(begun=10), 11.8)
    assert not quiet.over(reply(begun=10, calls=1), 11.9 + QUIET_S)
    assert quiet.over(reply(begun=10), 11.9 + QUIET_S)


def test_calls_that_never_cease_to_begin_are_not_waited_for_without_an_end() -> None:
    quiet = Quiet()
    assert not any(quiet.over(reply(begun=n), n / 2) for n in range(int(LONGEST_S * 2)))
    assert quiet.over(reply(begun=99), LONGEST_S)
    assert not quiet.over(reply(begun=99, calls=1), LONGEST_S + 9)


def test_an_envoy_that_does_not_say_is_a_quiet_one() -> None:
    quiet = Quiet()
    assert not quiet.over(reply(calls=None, begun=None), 0.0)
    assert quiet.over(reply(calls=None, begun=None), QUIET_S)


def test_a_withdrawn_workload_is_unhealthy_whatever_its_probe_says() -> None:
    lease = WorkloadLease(name="web", health=WorkloadLease.HEALTHY)
    (told,) = report.without([lease], "the host is drained")
    assert (told.health, told.health_reason) == (WorkloadLease.UNHEALTHY, "the host is drained")
    (told,) = report.without([WorkloadLease(name="web", health=WorkloadLease.HEALTHY)], "")
    assert told.health == WorkloadLease.HEALTHY


@pytest.mark.parametrize(
    "words",
    [
        ["--binary", "/x"],
        ["--sha256", "0" * 64],
        ["--binary", "/x", "--sha256", "12"],
        ["--binary", "/x", "--sha256", "0" * 64, "--reset"],
    ],
)
def test_a_wrong_call_of_upgrade_changes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(f'state_dir = "{tmp_path}"\nrun_dir = "{tmp_path}"\n')
    assert cli.call(["--config", str(file), "envoy", "upgrade", *words]) == exits.WRONG_CALL
    assert "--sha256" in capsys.readouterr().err
    assert not (tmp_path / chosen_binary.FILE).exists()


def test_without_an_agent_the_verbs_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(f'state_dir = "{tmp_path}"\nrun_dir = "{tmp_path}"\n')
    for words in (["envoy", "status"], ["envoy", "rollback"], ["undrain"], ["drain", "--within", "0"]):
        assert cli.call(["--config", str(file), *words]) == exits.FAILED
        assert "no agent runs" in capsys.readouterr().err
