"""The three programs as somebody types them who knows other programs."""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from hostmesh_agent import cli as agent
from hostmesh_controller.cli.app import app as hostmesh
from hostmesh_controller.lab.cli import app as lab
from hostmesh_controller.metrics import build_version
from hostmesh_controller.serve import app as controller_app
from running_controller import Process, run_cli, running_process

PROGRAMS = {"hostmesh": hostmesh, "hostmesh lab": lab, "hostmesh-controller": controller_app}


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_process(tmp_path_factory.mktemp("controller")) as process:
        yield process


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


@pytest.mark.parametrize("program", PROGRAMS)
def test_h_is_help_for_every_command(program: str) -> None:
    for path in commands(get_command(PROGRAMS[program])):
        short = CliRunner().invoke(PROGRAMS[program], [*path, "-h"])
        assert (short.exit_code, short.output[:6]) == (0, "Usage:"), (path, short.output)
        assert short.output == CliRunner().invoke(PROGRAMS[program], [*path, "--help"]).output


def verbs(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from verbs(below)


def test_h_is_help_for_every_verb_of_the_agent() -> None:
    for each in verbs(agent._parser()):
        assert "-h, --help" in each.format_help()


def test_the_version_is_told_before_anything_else_is_looked_at() -> None:
    told = run_cli("--version", "--token", "x", "no-such-command")
    assert (told.stdout, told.stderr, told.returncode) == (f"hostmesh {build_version()}\n", "", 0)
    command = [sys.executable, "-c", "from hostmesh_controller.serve import main; main()", "--version"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (told.stdout, told.stderr) == (f"hostmesh-controller {build_version()}\n", "")


@pytest.mark.parametrize("words", [("web-1", "--ssh"), ("--ssh", "--sudo", "web-1"), ("--yes", "--ssh", "--", "web-1")])
def test_a_host_is_removed_over_ssh_at_its_first_address_where_no_other_is_named(
    controller: Process, words: tuple[str, ...], tmp_path: Path
) -> None:
    # Nobody listens on the address: this is about where it goes.
    controller.cli("register", "web-1", "--address", "127.99.0.1", "--address", "fd00::9")
    result = controller.cli("host", "remove", *words, LOGNAME="ann", HOME=str(tmp_path))
    assert "web-1: by SSH to ann@127.99.0.1, its first address; --ssh USER@ADDRESS names another\n" in result.stderr
    assert re.search(r"web-1 +failed +connect +.*ann@127\.99\.0\.1 ", result.stdout)
    assert result.returncode == 1
    named = controller.cli("host", "remove", "web-1", "--ssh", "bob@127.99.0.2:9")
    assert "bob@127.99.0.2:9" in named.stdout
    assert "first address" not in named.stderr


def test_a_bare_ssh_needs_a_host_that_is_known(controller: Process) -> None:
    result = controller.cli("host", "remove", "nobody", "--ssh")
    assert result.stderr == "error: host 'nobody' is not registered; see: hostmesh host list\n"
    assert result.returncode == 1
    assert "--ssh [USER@ADDRESS[:PORT]]" in run_cli("host", "remove", "-h", COLUMNS="120").stdout


def test_labels_of_the_host_come_with_its_registration_and_later(controller: Process) -> None:
    def registered(*words: str) -> list[str]:
        return controller.cli("register", "labelled", "--no-token", *words).stderr.splitlines()

    assert registered("--address", "192.0.2.30", "--host-label", "tier=web") == ["host/labelled created"]
    # Neither an address nor anything of a workload is needed for a host that is there.
    assert registered("--host-label", "tier=api", "--dry-run") == ["host/labelled configured (dry run)"]
    assert registered("--host-label", "tier=api", "--host-label", "rack=7") == ["host/labelled configured"]
    shown = json.loads(controller.cli("get", "host", "labelled", "-o", "json").stdout)
    assert shown["metadata"]["labels"] == {"rack": "7", "tier": "api"}
    assert controller.cli("register", "unknown", "--no-token", "--host-label", "a=b").returncode == 1


def of_the_readme(start: str, end: str) -> set[str]:
    """Return the commands that the README names in backticks between two texts; `a b|c` is two."""
    text = (Path(__file__).parents[2] / "README.md").read_text().replace("\n", " ")
    named = re.findall("`([^`]+)`", text.partition(start)[2].partition(end)[0])
    both = [each.rpartition(" ") for each in named]
    return {f"{noun} {verb}".strip() for noun, _, verbs in both for verb in verbs.split("|")}


def test_the_readme_says_which_commands_print_for_programs() -> None:
    root = get_command(hostmesh)
    without = set()
    for path in commands(root):
        found: Any = root
        for name in path:
            found = found.commands[name]
        if not hasattr(found, "commands") and not any("--output" in each.opts for each in found.params):
            without.add(" ".join(path))
    assert of_the_readme("or of what it did (not ", ")") == without
    forms: dict[tuple[str, ...], set[str]] = {}
    for each in verbs(agent._parser()):
        for action in each._actions:
            if "--output" in action.option_strings and action.choices:  # that of bugreport is a file
                forms.setdefault(tuple(action.choices), set()).add(each.prog.partition(" ")[2])
    assert forms == {
        ("table", "json"): of_the_readme("); on a host ", " take `-o table|json`"),
        ("text", "json"): of_the_readme("take `-o table|json`, ", " `-o text|json`"),
    }
