"""Every finding that the doctor can have: made true by facts, with its code and a cure."""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hostmesh_agent import cli, cli_envoy
from hostmesh_agent.capture.led import Led
from hostmesh_agent.cli_doctor import listed, table
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.doctor import host, identity, mesh, visit
from hostmesh_agent.doctor.ailments import AILMENTS, BY_CODE, Finding, Severity
from hostmesh_agent.doctor.facts import (
    AgentFacts,
    ControllerFacts,
    DiskFacts,
    EnvoyFacts,
    ForeignChain,
    IdentityFacts,
    KernelFacts,
    RuleFacts,
)
from hostmesh_agent.doctor.look_mesh import foreign_chains
from hostmesh_agent.name_findings import NameFinding
from hostmesh_controller.config import Config as ControllerConfig

NOW = datetime(2026, 6, 1, tzinfo=UTC)
IDENTITY = IdentityFacts(
    NOW, True, not_before=NOW - timedelta(hours=1), not_after=NOW + timedelta(hours=23), synchronised=True
)
STATUS: dict[str, Any] = {
    "host": {"name": "web"},
    "problems": [],
    "controller": {"connected": True, "last_error": "", "reports": "delivered"},
    "certificates": [{"name": "host", "not_after": "later"}],
    "envoy": {
        "state": "live",
        "crash_looping": False,
        "restarts": 0,
        "last_exit": "",
        "restart_needed": "",
        "listeners": ["virtualInbound"],
    },
    "configuration": {"listeners_wanted": ["virtualInbound"]},
    "capture": {"state": "on", "error": "", "not_wanted": "", "waiting_for": [], "alarms": [], "drift": []},
    "workloads": [{"namespace": "shop", "name": "web", "ready": True, "health_reason": ""}],
}
ENVOY = EnvoyFacts(pid=7, answers=True, binary_problem="", last_words="", held=False)
RULES = RuleFacts("on", "", (), {})
KERNEL = KernelFacts(True, (6, 12), True, 10, 1000, 0)
DISK = DiskFacts(1 << 34, 1 << 35, 10_000, 20_000, False)
CONTROLLER = ControllerFacts("192.0.2.1:15012", "", "")


def of_identity(**facts: Any) -> list[Finding]:
    return list(identity.judge(dataclasses.replace(IDENTITY, **facts)))


LED = Led("chain PREROUTING of table ip nat (prerouting, -100)", 3, 80, 8080, certain=True)


def of_agent(**facts: Any) -> list[Finding]:
    return list(host.judge_agent(dataclasses.replace(AgentFacts(True, True, STATUS, {}), **facts)))


def of_status(part: str = "", **values: Any) -> list[Finding]:
    changed = STATUS | ({part: STATUS[part] | values} if part else values)
    return list(host.of_status(changed))


def of_envoy(**facts: Any) -> list[Finding]:
    return list(mesh.judge_envoy(dataclasses.replace(ENVOY, **facts), joined=True))


def of_rules(*, agent: bool = True, joined: bool = True, **facts: Any) -> list[Finding]:
    return list(mesh.judge_rules(dataclasses.replace(RULES, **facts), agent=agent, joined=joined))


def of_kernel(**facts: Any) -> list[Finding]:
    return list(host.judge_kernel(dataclasses.replace(KERNEL, **facts)))


def of_disk(**facts: Any) -> list[Finding]:
    return list(host.judge_disk(dataclasses.replace(DISK, **facts)))


def of_controller(**facts: Any) -> list[Finding]:
    return list(mesh.judge_controllers([dataclasses.replace(CONTROLLER, **facts)]))


def of_names() -> Iterator[Finding]:
    return mesh.judge_names([NameFinding(code, "what", "cure") for code in mesh.OF_NAMES], ["192.0.2.53"])


def failing() -> list[Finding]:
    raise OSError("the disk is gone")


def cases() -> list[tuple[str, Iterable[Finding]]]:
    chain = ForeignChain("ip nat", "OUTPUT", "output", -150)
    names = [(each.code, [each]) for each in of_names()]
    return [
        ("HM-A101", of_identity(joined=False)),
        ("HM-A102", of_agent(answers=False, listens=False)),
        ("HM-A103", of_agent(answers=False, listens=True)),
        ("HM-A104", of_status(problems=["something else"])),
        ("HM-A105", of_agent(open_files={"agent": (950, 1000)})),
        ("HM-A106", of_status("capture", not_wanted="by hand")),
        ("HM-A107", visit.of_config("agent.toml: envoi: unknown key")),
        ("HM-C101", of_identity(not_after=NOW)),
        ("HM-C102", of_identity(not_after=NOW + timedelta(minutes=10))),
        ("HM-C103", of_identity(problem="key.pem is not the key of chain.pem")),
        ("HM-C104", of_identity(chain_problem="no root")),
        ("HM-C105", of_status(certificates=[{"name": "shop/web", "missing": "refused"}])),
        ("HM-C106", of_identity(open_files={"key.pem": "mode 0644"}, problem="key.pem is open to others")),
        ("HM-C107", of_status(problems=["the certificate of shop/web ended at 2026"])),
        ("HM-T101", of_identity(synchronised=False)),
        ("HM-T102", of_identity(not_before=NOW + timedelta(seconds=1))),
        ("HM-T103", of_controller(tls="failed", not_valid_now="certificate is not yet valid")),
        *names,
        ("HM-R101", of_rules(agent=False, state="error", error="changed")),
        ("HM-R101", of_status("capture", state="error", error="changed")),
        ("HM-R102", of_status("capture", waiting_for=["Envoy"])),
        ("HM-R103", of_rules(foreign=(chain,))),
        ("HM-R104", of_rules(agent=False, joined=False)),
        ("HM-R105", of_status("capture", alarms=["SSH_LOST: undone"])),
        ("HM-R106", of_status("capture", drift=["chain outbound"])),
        ("HM-R103", of_status("capture", foreign_chains=["chain a drops"], alarms=["chain a drops"])),
        ("HM-R107", of_status("capture", foreign_chains=[str(LED)], alarms=[str(LED)])),
        ("HM-P101", of_rules(taken={15001: "nginx (pid 5)"})),
        ("HM-N101", of_controller(tcp="Connection refused", tls=None)),
        ("HM-N102", of_controller(tls="handshake failure")),
        ("HM-N104", mesh.judge_controllers([CONTROLLER, dataclasses.replace(CONTROLLER, tcp="refused", tls=None)])),
        ("HM-H101", of_status(problems=["disk.full: /var/lib/hostmesh has 0 KiB left"])),
        ("HM-N103", of_controller(tls="no answer", timed_out=True)),
        ("HM-E101", of_envoy(pid=None, answers=None, last_words="out of memory")),
        ("HM-E102", of_envoy(answers=False)),
        ("HM-E103", of_envoy(binary_problem="sha256 is another")),
        ("HM-E104", of_status("envoy", crash_looping=True, restarts=9, last_exit="exit code 1")),
        ("HM-E105", of_status("envoy", restart_needed="concurrency")),
        ("HM-E106", of_status("envoy", listeners=[])),
        ("HM-E107", of_envoy(held=True, pid=None, answers=None)),
        ("HM-E108", of_status(problems=["Envoy is down (exit code 1)"])),
        ("HM-E102", of_status(problems=["Envoy hangs: its admin interface has not answered for 30 s"])),
        ("HM-E109", of_status(problems=["Envoy was put back: the new one was not good: it crashed"])),
        ("HM-K101", of_kernel(connections=950)),
        ("HM-K102", of_kernel(dropped=1)),
        ("HM-K103", of_kernel(nf_tables=False)),
        ("HM-K104", of_kernel(release=(6, 8))),
        ("HM-K105", of_kernel(cgroup_v2=False)),
        ("HM-H101", of_disk(free_bytes=1 << 20)),
        ("HM-H102", of_disk(free_inodes=10)),
        ("HM-H103", of_disk(read_only=True)),
        ("HM-H104", of_disk(open_directories=("/run/hostmesh: its mode is 0777",))),
        ("HM-M101", of_status("controller", connected=False, last_error="refused")),
        ("HM-M102", of_status("controller", reports="unavailable")),
        ("HM-M103", of_status(workloads=[{"namespace": "shop", "name": "web", "ready": False, "health_reason": ""}])),
        ("HM-M104", of_status(problems=["the cold copy is full"])),
        ("HM-M104", of_status(problems=["cold.not-written: disk I/O error"])),
        ("HM-M105", of_status(problems=["the configuration on disk was lost: damaged"])),
        ("HM-X101", visit.tried("the disk", failing)),
    ]


@pytest.mark.parametrize(("code", "found"), [pytest.param(*each, id=each[0]) for each in cases()])
def test_each_finding_comes_alone_with_its_code_and_a_cure(code: str, found: Iterable[Finding]) -> None:
    (finding,) = found
    assert finding.code == code
    assert finding.what
    assert finding.cure


def test_every_code_is_tested_has_one_meaning_and_is_in_the_list() -> None:
    assert {code for code, _ in cases()} == set(BY_CODE)
    assert len(BY_CODE) == len(AILMENTS)
    shown = listed(as_json=False)
    assert all(f"| {each.code} |" in shown for each in AILMENTS)
    assert {each["code"] for each in json.loads(listed(as_json=True))} == set(BY_CODE)


def test_a_host_that_is_well_has_no_findings() -> None:
    assert [*of_identity(), *of_agent(), *of_envoy(), *of_rules(), *of_kernel(), *of_disk(), *of_controller()] == []
    assert table([]) == "nothing is wrong"


def test_a_problem_that_has_a_code_is_told_once() -> None:
    problems = [
        "the controller is not connected: refused",
        "capture: changed",
        "capture waits: Envoy",
        "shop/web is not ready",
        "shop/web has no certificate: refused",
    ]
    found = list(
        host.of_status(
            STATUS
            | {
                "problems": problems,
                "controller": STATUS["controller"] | {"connected": False, "last_error": "refused"},
                "certificates": [{"name": "shop/web", "missing": "refused"}],
                "capture": STATUS["capture"] | {"state": "error", "error": "changed", "waiting_for": ["Envoy"]},
                "workloads": [STATUS["workloads"][0] | {"ready": False}],
            }
        )
    )
    assert [each.code for each in found] == ["HM-M101", "HM-C105", "HM-R101", "HM-R102", "HM-M103"]


def test_notes_alone_leave_a_host_healthy() -> None:
    note = next(each for each in AILMENTS if each.severity is Severity.NOTE)
    warning = next(each for each in AILMENTS if each.severity is Severity.WARNING)
    assert visit.healthy([Finding(note.code, "x")])
    assert not visit.healthy([Finding(warning.code, "x")])


def test_what_others_have_said_is_one_line_without_control_characters() -> None:
    shown = table([Finding("HM-N102", "evil\x1b[2J\nHM-C101")])
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == 2


def chain(table_: str, name: str, priority: int) -> dict[str, Any]:
    where = {"family": "inet", "table": table_, "name": name}
    return {"chain": where | {"type": "nat", "hook": "output", "prio": priority}}


def rule(table_: str, name: str, word: str) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": table_, "chain": name, "expr": [{"match": {}}, {word: {}}]}}


def test_chains_of_others_count_where_they_redirect_before_ours() -> None:
    ours = chain("hostmesh", "outbound", -110)
    before = [chain("foe", "first", -150), rule("foe", "first", "redirect")]
    harmless = [chain("foe", "counting", -150), rule("foe", "counting", "counter")]
    behind = [chain("docker", "nat", -100), rule("docker", "nat", "dnat")]
    assert list(foreign_chains([ours, *before, *harmless, *behind])) == [
        ForeignChain("inet foe", "first", "output", -150)
    ]
    assert list(foreign_chains(before)) == []


def test_the_doctor_answers_on_a_host_that_has_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    assert cli.call(["--config", str(path), "doctor", "-o", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["healthy"]
    assert "HM-A101" in [each["code"] for each in found["findings"]]
    assert not (tmp_path / "state").exists()


def test_the_doctor_looks_though_agent_toml_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n[envoi]\n')
    assert cli.call(["--config", str(path), "doctor", "-o", "json"]) == 1
    found = {each["code"]: each["what"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found["HM-A107"] == f"{path}: envoi: unknown key; did you mean 'envoy'?"
    assert "HM-A101" in found


def test_a_look_that_fails_costs_no_other_finding(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("this is no directory")
    codes = [each.code for each in visit.examine(AgentConfig(state_dir=state, run_dir=tmp_path / "run"))]
    assert "HM-A101" in codes


def test_a_controller_of_another_root_is_told_from_one_that_speaks_no_tls() -> None:
    said = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate"
    (unknown,), (other,) = of_controller(tls=said), of_controller(tls="handshake failure")
    assert (unknown.code, other.code) == ("HM-N102", "HM-N102")
    assert "older than the last `hostmesh ca revoke`" in unknown.cure
    assert other.cure == BY_CODE["HM-N102"].cure


def test_the_cure_for_settings_that_need_another_envoy_is_the_change_that_costs_no_request() -> None:
    cure = BY_CODE["HM-E105"].cure
    assert cure == "hostmesh-agent envoy upgrade"
    assert cli._parser().parse_args(cure.split()[1:]).verb is cli_envoy._upgrade


def test_the_cure_for_a_dead_address_of_the_controller_is_where_hosts_learn_addresses() -> None:
    assert "`addresses` in controller.toml" in BY_CODE["HM-N104"].cure
    assert "addresses" in {each.name for each in dataclasses.fields(ControllerConfig)}
