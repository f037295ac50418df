"""Giving the agent's files to the user it runs as: all of them, and nothing that an attacker puts in the way."""

import os
import socket
import stat
from pathlib import Path

import pytest

from hostmesh_agent.ownership import Giving
from hostmesh_agent.tree import Tree
from others import let_in

AGENT, AGENTS, ENVOY, ENVOYS, OTHER = 64001, 64001, 64002, 64002, 64003
TO_AGENT = Giving(AGENT, AGENTS, frozenset({0}), ENVOY, ENVOYS)
TO_ROOT = Giving(0, 0, frozenset({AGENT}), ENVOY, ENVOYS)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def of(path: Path) -> tuple[int, int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory as an agent that is root leaves it."""
    top = tmp_path / "state"
    (top / "identity").mkdir(parents=True, mode=0o700)
    (top / "identity/key.pem").write_text("key")
    (top / "identity/key.pem").chmod(0o600)
    envoy = top / "envoy"
    envoy.mkdir()
    os.chown(envoy, 0, ENVOYS)
    envoy.chmod(0o1770)
    (envoy / "bootstrap.json").write_text("{}")
    os.chown(envoy / "bootstrap.json", 0, ENVOYS)
    (envoy / "bootstrap.json").chmod(0o640)
    (envoy / "access.log").write_text("envoy's own")
    os.chown(envoy / "access.log", ENVOY, ENVOYS)
    Tree(envoy, "certs", (ENVOY, ENVOYS)).write("a", "svid.pem", b"svid")
    with socket.socket(socket.AF_UNIX) as admin:
        admin.bind(str(envoy / "admin.sock"))
    os.chown(envoy / "admin.sock", ENVOY, ENVOYS)
    (envoy / "admin.sock").chmod(0o700)
    (top / "link").symlink_to("identity")
    return top


def test_all_is_the_agents_and_envoy_reads_what_it_read(state: Path) -> None:
    assert TO_AGENT.below(str(state)) > 0
    assert of(state)[:2] == (AGENT, AGENTS)
    assert of(state / "identity/key.pem") == (AGENT, AGENTS, 0o600)
    assert of(state / "envoy") == (AGENT, ENVOYS, 0o1770)
    assert of(state / "envoy/bootstrap.json") == (AGENT, ENVOYS, 0o640)
    assert of(state / "envoy/certs/a") == (AGENT, ENVOYS, 0o750)
    assert of(state / "envoy/certs/a/svid.pem") == (AGENT, ENVOYS, 0o640)
    assert of(state / "envoy/access.log")[:2] == (ENVOY, ENVOYS)
    assert of(state / "envoy/admin.sock") == (ENVOY, ENVOYS, 0o760)
    assert of(state / "link")[0] == AGENT
    assert TO_AGENT.below(str(state)) == 0


def test_the_way_back_makes_all_of_it_roots_and_certificates_envoys(state: Path) -> None:
    TO_AGENT.below(str(state))
    assert TO_ROOT.below(str(state)) > 0
    assert of(state / "identity/key.pem") == (0, 0, 0o600)
    assert of(state / "envoy") == (0, ENVOYS, 0o1770)
    assert of(state / "envoy/certs/a/svid.pem") == (ENVOY, ENVOYS, 0o600)
    assert of(state / "envoy/certs/a") == (ENVOY, ENVOYS, 0o700)
    # So that an agent of root has them, and asks for none.
    assert not Tree(state / "envoy", "certs", (ENVOY, ENVOYS)).write("a", "svid.pem", b"svid")
    assert TO_ROOT.below(str(state)) == 0


def test_what_an_attacker_puts_in_the_way_leads_nowhere(state: Path, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.write_text("root's")
    shadow.chmod(0o600)
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "file").write_text("root's")
    os.link(shadow, state / "another-name-of-it")
    (state / "envoy/certs/b").symlink_to(outside)
    (state / "identity/x").symlink_to(shadow)
    (state / "stranger").write_text("")
    os.chown(state / "stranger", OTHER, OTHER)
    os.mkfifo(state / "fifo")
    os.mknod(state / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    TO_AGENT.below(str(state))
    assert of(shadow) == (0, 0, 0o600)
    assert of(outside) == (0, 0, 0o700)
    assert of(outside / "file")[:2] == (0, 0)
    assert of(state / "stranger")[:2] == (OTHER, OTHER)
    assert of(state / "device")[:2] == (0, 0)
    assert of(state / "fifo")[:2] == (0, 0)
    (tmp_path / "top").symlink_to(outside)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        TO_AGENT.below(str(tmp_path / "top"))
    assert of(outside)[:2] == (0, 0)


def test_a_program_that_runs_as_its_owner_does_not_become_roots(state: Path) -> None:
    TO_AGENT.below(str(state))
    (state / "shell").write_text("#!/bin/sh\n")
    os.chown(state / "shell", AGENT, AGENTS)
    (state / "shell").chmod(0o6755)
    TO_ROOT.below(str(state))
    assert of(state / "shell") == (0, 0, 0o755)


def test_a_directory_that_is_not_there_is_made(tmp_path: Path) -> None:
    assert TO_AGENT.below(str(tmp_path / "run")) == 1
    assert of(tmp_path / "run") == (AGENT, AGENTS, 0o711)


def test_an_agent_without_root_keeps_envoys_certificates_for_its_group(tmp_path: Path) -> None:
    let_in(tmp_path)
    base = tmp_path / "envoy"
    base.mkdir()
    os.chown(base, AGENT, ENVOYS)
    child = os.fork()
    if not child:
        os.setgroups([ENVOYS])
        os.setresgid(AGENTS, AGENTS, AGENTS)
        os.setresuid(AGENT, AGENT, AGENT)
        tree = Tree(base, "certs", (ENVOY, ENVOYS))
        first = tree.write("a", "svid.pem", b"svid")
        os._exit(
            0
            if (first, tree.write("a", "svid.pem", b"svid"), tree.read("a", "svid.pem")) == (True, False, b"svid")
            else 1
        )
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert of(base / "certs/a/svid.pem") == (AGENT, ENVOYS, 0o640)
    assert of(base / "certs/a") == (AGENT, ENVOYS, 0o750)
