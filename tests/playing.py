"""Ansible's programs for tests: the collection as a checkout has it, on hosts that are all this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
COLLECTION: Final = ROOT / "ansible"
TOOLS: Final = ROOT / ".cache" / "ansible" / "bin"
HERE: Final = {"ansible_connection": "local"}
GONE: Final = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}
"""A host that cannot be reached."""


def tool(name: str, *arguments: str, check: bool = True, **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HOSTMESH_", "ANSIBLE_"))}
    clean["PATH"] = f"{TOOLS}:{clean['PATH']}"
    done = subprocess.run(
        [str(TOOLS / name), *arguments],
        cwd=COLLECTION,
        env={**clean, "LC_ALL": "C.UTF-8", "ANSIBLE_PYTHON_INTERPRETER": sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def on_this_machine(
    tmp_path: Path, address: str, *arguments: str, check: bool = True, hosts: "dict[str, Any] | None" = None
) -> "subprocess.CompletedProcess[str]":
    """Run a playbook with the real `hostmesh` of the project, and before it the programs that are in tmp_path.

    Args:
        tmp_path: where the inventory is written.
        address: of the controller; "": there is none.
        arguments: of ansible-playbook.
        check: whether it must succeed.
        hosts: the agents' hosts, with their variables; this machine unless given.
    """
    inventory = tmp_path / "here.yml"
    agents = {"here": HERE} if hosts is None else hosts
    groups = {"hostmesh_controllers": {"hosts": {"here": HERE}}, "hostmesh_agents": {"hosts": agents}}
    inventory.write_text(json.dumps(groups))
    path = f"{tmp_path}:{ROOT / '.venv' / 'bin'}:{TOOLS}:{os.environ['PATH']}"
    options = ("-i", str(inventory), "-e", "ansible_become=false", *arguments)
    return tool("ansible-playbook", *options, check=check, PATH=path, HOSTMESH_ADDRESS=address)


def recap(done: "subprocess.CompletedProcess[str]") -> dict[str, dict[str, int]]:
    """Return what a run counted, by host."""
    found = {}
    for line in done.stdout.partition("PLAY RECAP")[2].splitlines()[1:]:
        name, colon, counts = line.partition(":")
        if colon and "=" in counts:
            found[name.strip()] = {what: int(number) for what, number in (each.split("=") for each in counts.split())}
    return found


def tasks_of(tmp_path: Path, role: str, tasks: str, **settings: Any) -> str:
    """Write a playbook that does the tasks of a role alone; return its path. `manager`: whose packages hosts have."""
    manager = settings.pop("manager", "apt")
    first = {"ansible.builtin.set_fact": {"pkg_mgr": manager, "cacheable": True}}
    included = {
        "ansible.builtin.include_role": {"name": f"hostmesh.mesh.{role}", "tasks_from": tasks},
        "vars": settings,
    }
    playbook = tmp_path / f"{tasks}.yml"
    playbook.write_text(json.dumps([{"hosts": "hostmesh_agents", "gather_facts": False, "tasks": [first, included]}]))
    return str(playbook)


def program(tmp_path: Path, name: str, text: str) -> None:
    """Have a program of this name come before all others."""
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
