"""The roles' steps, on this machine: programs of its packages and the agent are stand-ins, the controller is real."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from playing import GONE, HERE, on_this_machine, program, recap, tasks_of
from running_controller import Process, running_process

AGENT: Final = ["hostmesh-envoy", "hostmesh-agent"]
INSTALLED: Final = "hostmesh-envoy=0.1.0=ii \nhostmesh-agent=0.1.0=ii \nhostmesh=0.1.0=rc \n"
"""As dpkg-query tells it; the last one was removed."""


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_process(tmp_path_factory.mktemp("controller")) as found:
        yield found


def packages(tmp_path: Path, *, known: bool) -> None:
    """Have package managers whose installed packages are in a file; apt-get installs files into it, and is heard."""
    (tmp_path / "installed").write_text(INSTALLED)
    for each in ("dpkg-query", "rpm"):
        program(tmp_path, each, f"cat {tmp_path}/installed\nexit 1")
    program(tmp_path, "apt-cache", "exit 0" if known else "exit 100")
    text = f"""echo "$*" >> {tmp_path}/called
for each; do
    case $each in *.deb) basename "$each" | sed 's/^hostmesh-//; s/_/=/; s/_.*/=ii /' ;; esac
done > {tmp_path}/installed"""
    program(tmp_path, "apt-get", text)


@pytest.mark.parametrize("manager", ["apt", "dnf"])
def test_a_look_at_a_version_that_was_just_published_tells_what_a_run_would_do(tmp_path: Path, manager: str) -> None:
    packages(tmp_path, known=False)
    settings = {"manager": manager, "repository_packages": AGENT, "repository_version": "0.2.0"}
    done = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **settings))
    assert "would install hostmesh-agent=0.2.0, hostmesh-envoy=0.2.0" in done.stdout
    assert "installed is hostmesh-envoy=0.1.0, hostmesh-agent=0.1.0" in done.stdout
    assert ("apt has not read of it yet" in done.stdout) == (manager == "apt")
    assert recap(done)["here"]["changed"] == 1
    packages(tmp_path, known=True)
    known = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **settings))
    assert "apt has not read of it yet" not in known.stdout


@pytest.mark.parametrize("manager", ["apt", "dnf"])
@pytest.mark.parametrize("version", ["", "0.1.0"])
def test_a_look_at_what_is_installed_finds_nothing_to_do(tmp_path: Path, manager: str, version: str) -> None:
    packages(tmp_path, known=True)
    settings = {"manager": manager, "repository_packages": AGENT, "repository_version": version}
    done = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **settings))
    assert recap(done)["here"]["changed"] == 0, done.stdout
    missing = {**settings, "repository_packages": ["hostmesh"], "repository_version": ""}
    done = on_this_machine(tmp_path, "", "--check", tasks_of(tmp_path, "repository", "install", **missing))
    assert "would install hostmesh;" in done.stdout


def test_packages_of_a_folder_come_in_one_transaction(tmp_path: Path) -> None:
    packages(tmp_path, known=False)
    for each in ("dist", "copies"):
        (tmp_path / each).mkdir()
    names = [f"{each}_0.2.0_amd64.deb" for each in AGENT]
    for name in names:
        (tmp_path / "dist" / name).write_text("")
    settings = {
        "repository_packages": AGENT,
        "repository_directory": str(tmp_path / "dist"),
        "repository_copies": str(tmp_path / "copies"),
        "repository_downgrade": True,
    }
    playbook = tasks_of(tmp_path, "repository", "install", **settings)
    assert (
        "would install hostmesh-agent=0.2.0, hostmesh-envoy=0.2.0"
        in on_this_machine(tmp_path, "", "--check", playbook).stdout
    )
    assert not (tmp_path / "called").exists()
    owner = ("-e", json.dumps({"repository_copies": settings["repository_copies"]}))
    done = on_this_machine(tmp_path, "", *owner, playbook)
    (called,) = (tmp_path / "called").read_text().splitlines()
    copied = " ".join(f"{tmp_path}/copies/hostmesh-{name}" for name in names)
    assert called.endswith(f"--allow-downgrades install {copied}")
    again = on_this_machine(tmp_path, "", *owner, playbook)
    assert recap(again)["here"]["changed"] == 0, again.stdout
    assert (tmp_path / "called").read_text().splitlines() == [called]
    assert recap(done)["here"]["changed"] == 2


def register(
    tmp_path: Path, controller: Process, settings: Mapping[str, Any], *options: str, tasks: str = "register"
) -> int:
    """Have a host registered as the inventory has it; return how many changes that made."""
    playbook = tasks_of(tmp_path, "agent", tasks, **settings)
    done = on_this_machine(tmp_path, controller.address, *options, playbook)
    return recap(done)["here"]["changed"]


def test_what_the_inventory_says_later_reaches_the_mesh(tmp_path: Path, controller: Process) -> None:
    settings = {
        "agent_name": "later",
        "agent_addresses": ["192.0.2.9"],
        "agent_workload_namespace": "shop",
        "agent_workload_ports": ["http=81", "82"],
        "agent_workload_labels": {"app": "y"},
        "agent_host_labels": {"tier": "web"},
    }
    controller.cli("register", "later", "--address", "192.0.2.8", "-n", "shop", "--port", "http=80", "-l", "app=x")
    tokens = controller.cli("token", "list", "-o", "json").stdout

    def known() -> list[Any]:
        got = (("host", "later"), ("we", "later", "-n", "shop"))
        return [json.loads(controller.cli("get", *each, "-o", "json").stdout)["spec"] for each in got]

    before = known()
    assert register(tmp_path, controller, settings, "--check") == 1
    # And in a whole run, of a host that has joined.
    packages(tmp_path, known=True)
    (tmp_path / "host.json").write_text("{}")
    options = ("--check", "-e", json.dumps({"agent_identity": f"{tmp_path}/host.json"}))
    done = on_this_machine(tmp_path, controller.address, *options, tasks_of(tmp_path, "agent", "main", **settings))
    task = done.stdout.partition("agent : Register the host as the inventory has it]")[2].partition("TASK [")[0]
    assert "changed: [here" in task
    assert known() == before
    assert register(tmp_path, controller, settings) == 1
    host, workload = known()
    assert host["addresses"] == ["192.0.2.9"]
    kept = json.loads(controller.cli("get", "host", "later", "-o", "json").stdout)
    assert kept["metadata"]["labels"] == {"tier": "web"}
    ports = {"http": 81, "tcp-82": 82}
    assert workload == {"address": "192.0.2.9", "ports": ports, "labels": {"app": "y"}, "serviceAccount": "default"}
    assert register(tmp_path, controller, settings) == 0
    assert register(tmp_path, controller, settings, "--check") == 0
    assert controller.cli("token", "list", "-o", "json").stdout == tokens


def test_a_host_without_workload_settings_has_no_workload(tmp_path: Path, controller: Process) -> None:
    program(tmp_path, "hostmesh-agent", "cat > /dev/null")
    bare = {"agent_name": "bare", "agent_addresses": ["192.0.2.10"]}
    named = {"agent_name": "named", "agent_addresses": ["192.0.2.11"], "agent_workload_namespace": "shop"}
    for settings in (bare, named):
        for tasks in ("join", "register"):
            register(tmp_path, controller, settings, tasks=tasks)
        name = str(settings["agent_name"])
        shown = json.loads(controller.cli("host", "show", name, "-o", "json").stdout)
        assert shown["workloads"] == []
    assert shown["spec"]["namespace"] == "shop"
    register(tmp_path, controller, {**bare, "agent_workload_service_account": "web"})
    entry = json.loads(controller.cli("get", "we", "bare", "-n", "default", "-o", "json").stdout)
    assert entry["spec"]["serviceAccount"] == "web"


STEADY: Final = {"stage": "steady", "put_back": "", "restart_needed": "", "version": "1.40.1"}


def gate(tmp_path: Path, upgrade: str, *, config: str = "", check: bool = True, **now: str) -> "tuple[int, str]":
    """Pass the health gate with an agent that answers `envoy upgrade` so; return how much changed and what was said."""
    (tmp_path / "status").write_text(json.dumps({**STEADY, **now}))
    (tmp_path / "manifest.json").write_text(json.dumps({"version": "1.40.1"}))
    (tmp_path / "agent.toml").write_text(config)
    facts = {"agent_version": "0.2.0"}
    seen = {"connected": True, "lease": "alive", "overdue": False, "envoy_down": False, "report": {"facts": facts}}
    program(tmp_path, "hostmesh", f"echo '{json.dumps(seen)}'")
    text = f"""case "$*" in
    "envoy upgrade") {upgrade} ;;
    "envoy status -o json") cat {tmp_path}/status ;;
    --version) echo hostmesh-agent 0.2.0 ;;
esac"""
    program(tmp_path, "hostmesh-agent", text)
    places = {
        "agent_envoy_manifest": f"{tmp_path}/manifest.json",
        "agent_envoy_choices": [f"{tmp_path}/agent.toml", f"{tmp_path}/envoy-binary.json"],
    }
    playbook = tasks_of(tmp_path, "agent", "health", agent_version="0.2.0", agent_health_timeout=5)
    done = on_this_machine(tmp_path, "", "-e", json.dumps(places), playbook, check=check)
    assert check or done.returncode != 0, done.stdout
    return recap(done)["here"]["changed"], done.stdout


def test_the_gate_has_the_envoy_that_was_installed_serve(tmp_path: Path) -> None:
    # The first time another change is under way.
    begun = f"if [ -e {tmp_path}/begun ]; then echo Envoy 1.40.1 serves; else touch {tmp_path}/begun"
    said = "nothing is changed: the Envoys are being changed already (draining)"
    assert gate(tmp_path, f"{begun}; echo '{said}'; exit 1; fi")[0] == 1
    assert gate(tmp_path, "echo 'nothing is changed: the running Envoy is what would be started now'")[0] == 0


@pytest.mark.parametrize(
    ("upgrade", "now"),
    [
        ("echo put back: it ended before it served: exit code 7 >&2; exit 1", {}),
        ("echo Envoy 1.40.0 serves", {"put_back": "it ended before it served"}),
        ("echo Envoy 1.40.0 serves", {"version": "1.40.0"}),
    ],
)
def test_an_envoy_that_does_not_serve_does_not_pass_the_gate(tmp_path: Path, upgrade: str, now: dict[str, str]) -> None:
    _, said = gate(tmp_path, upgrade, check=False, **now)
    assert "Ask the controller" not in said


def test_an_envoy_that_the_owner_chose_passes_the_gate(tmp_path: Path) -> None:
    nothing = "echo 'nothing is changed: the running Envoy is what would be started now'"
    owner = '[envoy]\nbinary = "/opt/envoy"\n'
    assert gate(tmp_path, nothing, config=owner, version="1.39.0")[0] == 0
    gate(tmp_path, nothing, config="# binary = none\n", version="1.39.0", check=False)


WELL: Final = {**HERE, "agent_addresses": ["192.0.2.3"]}
SICK: Final = {**HERE, "agent_addresses": []}
"""Its settings are refused."""


def wave(tmp_path: Path, playbook: str, hosts: dict[str, Any]) -> "tuple[dict[str, dict[str, int]], str]":
    """Look at what a playbook would do that must fail; return what it counted by host, and said."""
    packages(tmp_path, known=True)
    settings = {"agent_version": "0.1.0", "agent_health_urls": ["http://x/"], "agent_identity": f"{tmp_path}/none"}
    options = ("--check", "-e", json.dumps(settings), f"playbooks/{playbook}.yml")
    done = on_this_machine(tmp_path, "", *options, hosts=hosts, check=False)
    assert done.returncode != 0
    return recap(done), done.stdout


def test_a_rollback_goes_on_past_hosts_that_are_down_or_sick_and_fails_for_them_at_the_end(tmp_path: Path) -> None:
    counted, said = wave(tmp_path, "rollback", {"gone": GONE, "sick": SICK, "well": WELL})
    assert {name: each["failed"] for name, each in counted.items()} == {"gone": 1, "sick": 1, "well": 0}
    end = said.partition("Tell which hosts were not put back")[2]
    assert "Pass a host by that is not: it cannot be reached" in end
    assert "agent_addresses of sick is empty" in end


@pytest.mark.parametrize("playbook", ["upgrade", "rollout"])
def test_a_wave_does_not_begin_after_a_host_was_lost(tmp_path: Path, playbook: str) -> None:
    counted, said = wave(tmp_path, playbook, {"gone": GONE, "well": WELL, "later": WELL})
    assert counted["gone"]["unreachable"] == 1
    assert counted["well"]["failed"] == 1
    assert "nothing is done on well: gone did not pass the health gate" in said
    assert "later" not in counted


@pytest.mark.parametrize("playbook", ["upgrade", "rollout"])
def test_a_wave_does_not_begin_after_a_host_is_sick(tmp_path: Path, playbook: str) -> None:
    counted, _ = wave(tmp_path, playbook, {"well": WELL, "sick": SICK, "later": WELL})
    assert {name: each["failed"] for name, each in counted.items() if name != "here"} == {"well": 0, "sick": 1}


def test_hosts_that_are_gone_are_forgotten_if_that_is_said(tmp_path: Path, controller: Process) -> None:
    for number, name in enumerate(("gone-1", "gone-2")):
        made = ("register", name, "--address", f"192.0.2.{20 + number}", "-n", "shop", "--port", "http=80")
        assert controller.cli(*made).returncode == 0
    hosts = {"gone-1": GONE, "gone-2": GONE}

    def remove(*options: str) -> "tuple[int, str]":
        options = (*options, "playbooks/remove.yml")
        done = on_this_machine(tmp_path, controller.address, *options, hosts=hosts, check=False)
        return done.returncode, done.stdout

    def left() -> set[str]:
        found = json.loads(controller.cli("host", "list", "-o", "json").stdout)
        return {each["name"] for each in found} & set(hosts)

    code, said = remove()
    assert code != 0
    end = said.partition("Tell which hosts were not removed")[2]
    assert "-e remove_forget_unreachable=true" in end
    assert all(f"[{name}]: FAILED!" in end for name in hosts)
    assert left() == set(hosts)
    code, said = remove("-e", "remove_forget_unreachable=true")
    assert (code, left()) == (0, set()), said
    assert "workloadentry" not in controller.cli("get", "we", "gone-1", "-n", "shop").stdout
