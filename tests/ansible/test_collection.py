"""The ansible collection: what can be shown without hosts of its own."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from playing import COLLECTION, on_this_machine, program, tasks_of, tool
from running_controller import Process, running_process

PLAYBOOKS: Final = sorted((COLLECTION / "playbooks").glob("*.yml"))


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda each: each.stem)
def test_every_playbook_is_sound(playbook: Path) -> None:
    tool("ansible-playbook", "-i", "localhost,", "--syntax-check", str(playbook))


def test_the_linter_has_nothing_to_say() -> None:
    tool("ansible-lint")


def test_the_linter_has_its_profile_from_the_collection_itself() -> None:
    settings = (COLLECTION / ".ansible-lint").read_text().splitlines()
    assert {"profile: production", "strict: true"} <= {*settings}


@pytest.mark.parametrize("guide", ["OPERATING.md", "ansible/README.md"])
def test_an_upgrade_that_a_guide_shows_gives_all_that_it_is_refused_without(guide: str, tmp_path: Path) -> None:
    text = (COLLECTION.parent / guide).read_text().replace("\\\n", " ")
    shown = re.findall(r"^ +ansible-playbook .*[./](upgrade|rollback)(?:\.yml)? (.*)$", text, re.MULTILINE)
    assert shown
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"hostmesh_agents": {"hosts": {"a": {"ansible_connection": "local"}}}}))
    for playbook, words in shown:
        options = ("-i", str(inventory), "-e", "ansible_become=false", *shlex.split(words))
        done = tool("ansible-playbook", "--check", *options, f"playbooks/{playbook}.yml", check=False)
        assert "give agent_version, and agent_health_urls" not in done.stdout, words
        assert "TASK [Refuse to start without" in done.stdout, done.stdout


def test_it_is_built_without_what_only_a_checkout_needs(tmp_path: Path) -> None:
    tool("ansible-galaxy", "collection", "build", "--output-path", str(tmp_path))
    (built,) = tmp_path.glob("hostmesh-mesh-*.tar.gz")
    tool("ansible-galaxy", "collection", "install", "--force", str(built), "-p", str(tmp_path / "installed"))
    installed = tmp_path / "installed" / "ansible_collections" / "hostmesh" / "mesh"
    assert (installed / "roles" / "agent" / "tasks" / "join.yml").exists()
    assert not (installed / ".checkout").exists()


def run_role(tmp_path: Path, role: str, **settings: Any) -> str:
    """Run a role that must refuse, on this machine, in check mode; return what it said."""
    playbook = tmp_path / "play.yml"
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False}
    playbook.write_text(json.dumps([{**play, "roles": [{"role": f"hostmesh.mesh.{role}", **settings}]}]))
    done = tool("ansible-playbook", "--check", "-i", "localhost,", str(playbook), check=False)
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def test_settings_that_cannot_be_are_refused(tmp_path: Path) -> None:
    assert "missing required arguments: agent_addresses" in run_role(tmp_path, "agent", agent_controller="c")
    said = run_role(tmp_path, "agent", agent_controller="c", agent_addresses=["192.0.2.1"], agent_health_timeout="soon")
    assert "agent_health_timeout" in said
    said = run_role(
        tmp_path, "agent", agent_controller="c", agent_addresses=["192.0.2.1"], agent_health_urls="http://x/"
    )
    assert "agent_health_urls must be a list" in said


def test_a_repository_without_its_key_is_refused(tmp_path: Path) -> None:
    assert "dist/repo/hostmesh.asc" in run_role(tmp_path, "repository", repository_url="https://192.0.2.1")


@pytest.mark.parametrize("playbook", ["upgrade", "rollback"])
@pytest.mark.parametrize("urls", ["agent_health_urls=", "agent_health_urls=http://stock.shop/"])
def test_no_wave_starts_without_a_list_of_requests_that_show_health(tmp_path: Path, playbook: str, urls: str) -> None:
    inventory = tmp_path / "hosts.yml"
    here = {"ansible_connection": "local", "agent_addresses": ["192.0.2.1"]}
    inventory.write_text(json.dumps({"hostmesh_agents": {"hosts": {"a": here, "b": here}}}))
    options = ("-e", "agent_version=0.2.0", "-e", "ansible_become=false", "-e", urls)
    done = tool("ansible-playbook", "--check", "-i", str(inventory), *options, f"playbooks/{playbook}.yml", check=False)
    assert done.returncode != 0
    assert "give agent_version, and agent_health_urls, a list" in done.stdout
    # The first host alone was asked.
    assert "b  " not in done.stdout.partition("PLAY RECAP")[2]


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Process]:
    with running_process(tmp_path) as found:
        made = found.cli("register", "web-1", "--address", "192.0.2.7", "-n", "shop", "--port", "http=80")
        assert made.returncode == 0, made.stderr
        yield found


def listed(path: Path, check: bool = True, **env: str) -> "subprocess.CompletedProcess[str]":
    strict = {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true"}
    return tool("ansible-inventory", "-i", str(path), "--list", check=check, **strict, **env)


def test_the_inventory_is_what_the_controller_knows(controller: Process, tmp_path: Path) -> None:
    path = tmp_path / "hostmesh.yml"
    path.write_text(f"plugin: hostmesh.mesh.hosts\naddress: {controller.address}\n")
    found = json.loads(listed(path).stdout)
    for group in ("hostmesh_agents", "namespace_shop", "version_unknown", "health_away"):
        assert found[group]["hosts"] == ["web-1"], found
    # What others wrote is marked as such: no expression in it is evaluated.
    assert found["_meta"]["hostvars"]["web-1"]["ansible_host"] == {"__ansible_unsafe": "192.0.2.7"}


def test_over_https_a_token_and_the_root_are_needed(controller: Process, tmp_path: Path) -> None:
    made = controller.cli("api-token", "create", "inventory", "--role", "viewer", "-o", "json")
    token = tmp_path / "token"
    token.write_text(json.loads(made.stdout)["token"])
    shown = controller.cli("ca", "show", "-o", "json")
    assert shown.returncode == 0
    path = tmp_path / "hostmesh.yml"
    root = next((controller.directory / "state").rglob("*root*.pem"), None) or next(
        (controller.directory / "state").rglob("*.crt")
    )
    text = f"plugin: hostmesh.mesh.hosts\naddress: https://127.0.0.1:{controller.ports[2]}\n"
    path.write_text(f"{text}ca: {root}\ntoken_file: {token}\n")
    assert json.loads(listed(path).stdout)["health_away"]["hosts"] == ["web-1"]
    path.write_text(f"{text}token_file: {token}\n")
    assert "CERTIFICATE_VERIFY_FAILED" in listed(path, check=False).stderr
    path.write_text(f"{text}ca: {root}\n")
    assert "give token_file" in listed(path, check=False).stderr


def test_the_authority_is_rotated(controller: Process, tmp_path: Path) -> None:
    before = json.loads(controller.cli("ca", "show", "-o", "json").stdout)["roots"]
    on_this_machine(tmp_path, controller.address, "playbooks/rotate_ca.yml")
    after = json.loads(controller.cli("ca", "show", "-o", "json").stdout)["roots"]
    live = [each["id"] for each in after if each["state"] == "active"]
    assert len(live) == 1, after
    assert live != [each["id"] for each in before if each["state"] == "active"]


def test_a_join_string_is_in_standard_input_and_nowhere_else(controller: Process, tmp_path: Path) -> None:
    program(tmp_path, "hostmesh-agent", f'echo "$*" > {tmp_path}/argv\ncat > {tmp_path}/stdin')
    settings = {
        "agent_addresses": ["192.0.2.8"],
        "agent_workload_namespace": "shop",
        "agent_workload_ports": ["http=80"],
        "agent_workload_labels": {"app": "x"},
    }
    done = on_this_machine(tmp_path, controller.address, "-vvvv", tasks_of(tmp_path, "agent", "join", **settings))
    string = (tmp_path / "stdin").read_text().strip()
    assert len(string) > 40
    assert (tmp_path / "argv").read_text().split() == ["join", "-"]
    assert string not in done.stdout + done.stderr
    joining = done.stdout.partition("agent : Join]")[2].partition("TASK [")[0]
    assert "EXEC" in joining
    assert " PUT " not in joining, "ansible wrote what the module was given to a file"
    assert "shop/here" in controller.cli("host", "show", "here", "-o", "json").stdout
