"""`capture clear` is the way out: it takes the rules away, whatever else is wrong with the host and its agent."""

import argparse
import os
import pwd
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from hostmesh_agent import capture, cli_capture, control, exits, hold
from hostmesh_agent.capture import kernel, nft, plan
from hostmesh_agent.config import AgentConfig, DnsSettings
from hostmesh_agent.dns import Resolver
from netns.space import Space
from netns.test_capture_doors import FLOOR, REQUEST
from netns.test_capture_kernel import environment
from others import let_in

_HANGS: Final = """
import os, signal, sys
from pathlib import Path
from hostmesh_agent import lock
from hostmesh_agent.capture import Owner, nft, plan
from netns.test_capture_doors import FLOOR, REQUEST
owner = Owner()
nft.write(plan(REQUEST, FLOOR).table, owner)
with lock.held(Path(sys.argv[1]), 0):
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""
_CLEAR: Final = """
import argparse, sys
from pathlib import Path
from hostmesh_agent import cli_capture
from hostmesh_agent.config import AgentConfig, DnsSettings
state, run, resolver = map(Path, sys.argv[1:])
config = AgentConfig(state_dir=state, run_dir=run, dns=DnsSettings(resolv_conf=resolver))
sys.exit(cli_capture._clear(argparse.Namespace(), config))
"""


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    for name in ("etc", "state", "run"):
        (tmp_path / name).mkdir()
    resolver = tmp_path / "etc/resolv.conf"
    resolver.write_text("nameserver 192.0.2.1\n")
    return AgentConfig(state_dir=tmp_path / "state", run_dir=tmp_path / "run", dns=DnsSettings(resolv_conf=resolver))


def clear_with(config: AgentConfig, read_only: Path) -> subprocess.CompletedProcess[str]:
    """Clear where a directory cannot be written, not even by root."""
    mount = f'mount --bind {read_only} {read_only} && mount -o remount,bind,ro {read_only} && exec "$@"'
    arguments = map(str, (config.state_dir, config.run_dir, config.dns.resolv_conf))
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", _CLEAR, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
    )


def test_where_the_resolvers_directory_is_read_only_and_was_never_written_all_is_well(
    host: Space, config: AgentConfig
) -> None:
    nft.write(plan(REQUEST, FLOOR).table)
    done = clear_with(config, config.dns.resolv_conf.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert kernel.read() is None


def test_where_the_mark_cannot_be_written_the_rules_go_and_it_is_said_what_that_means(
    host: Space, config: AgentConfig
) -> None:
    nft.write(plan(REQUEST, FLOOR).table)
    done = clear_with(config, config.state_dir)
    assert done.returncode == exits.FAILED
    assert "an agent that runs captures again, stop it: " in done.stderr
    assert kernel.read() is None


def test_rules_of_an_agent_that_hangs_are_taken_from_it(
    host: Space, config: AgentConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(control, "TIMEOUT_S", 0.5)
    program = tmp_path / "hostmesh-agent"
    program.write_text(_HANGS)
    with ExitStack() as stack:
        command = [sys.executable, str(program), str(config.state_dir)]
        agent = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()))
        stack.callback(agent.kill)
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        os.waitid(os.P_PID, agent.pid, os.WSTOPPED | os.WNOWAIT)
        with pytest.raises(capture.CaptureError):
            capture.clear()
        assert cli_capture._clear(argparse.Namespace(), config) == exits.DONE
        assert kernel.read() is None
        assert hold.is_off(config.state_dir)
        assert agent.wait(10) == -signal.SIGKILL


_AS_ROOT: Final = """
import sys
from hostmesh_agent import cli, standing_in
standing_in.USER = "nobody"
sys.exit(cli.call(["--config", sys.argv[1], "capture", "clear"]))
"""


def test_names_are_taken_back_where_the_agent_is_not_root_and_its_unit_stopped(
    host: Space, config: AgentConfig, tmp_path: Path
) -> None:
    let_in(tmp_path)
    nobody = pwd.getpwnam("nobody")
    for each in (config.state_dir, config.run_dir):
        os.chown(each, nobody.pw_uid, nobody.pw_gid)
    before = config.dns.resolv_conf.read_text()
    nft.write(plan(REQUEST, FLOOR).table)
    Resolver(config.dns.resolv_conf, tmp_path / "of-root").apply()
    written = tmp_path / "agent.toml"
    written.write_text(
        f'state_dir = "{config.state_dir}"\nrun_dir = "{config.run_dir}"\n'
        f'[dns]\nresolv_conf = "{config.dns.resolv_conf}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", _AS_ROOT, str(written)], capture_output=True, text=True, timeout=30, env=environment()
    )
    assert (done.returncode, done.stderr) == (exits.DONE, "")
    assert config.dns.resolv_conf.read_text() == before
    assert config.dns.resolv_conf.stat().st_uid == 0
    assert kernel.read() is None
    # In the agent's directory root is the agent.
    assert (config.state_dir / hold.OFF).stat().st_uid == nobody.pw_uid
