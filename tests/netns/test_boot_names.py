"""A boot into another network with an agent that does not come up: programs ask the resolvers of that network."""

import subprocess
import sys
from pathlib import Path

import pytest

from hostmesh_agent import exits
from hostmesh_agent.capture import kernel, nft, plan
from hostmesh_agent.dns import Resolver, has_mesh
from netns.space import Space
from netns.test_capture_doors import FLOOR, REQUEST
from netns.test_capture_kernel import environment

OLD = "nameserver 192.0.2.1\n"
NEW = "nameserver 198.51.100.1\n"
_GUARD = 'import sys; from hostmesh_agent import cli; sys.exit(cli.call(["--config", sys.argv[1], "guard"]))'


class Booted:
    """A host whose resolv.conf was a link to what the network writes, and is a file of ours."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("etc", "run", "state"):
            (directory / name).mkdir()
        self.path = directory / "etc/resolv.conf"
        self.path.symlink_to("../run/resolv.conf")
        self.target = directory / "run/resolv.conf"
        self.target.write_text(OLD)
        self.resolver = Resolver(self.path, directory / "state")
        self.resolver.apply()
        # What is below /run does not outlive a boot.
        self.target.unlink()

    def guard(self, more: str = "") -> subprocess.CompletedProcess[str]:
        config = self.directory / "agent.toml"
        config.write_text(
            f'state_dir = "{self.directory}/state"\nrun_dir = "{self.directory}/agent"\n{more}\n'
            f'[dns]\nresolv_conf = "{self.path}"\n'
        )
        command = [sys.executable, "-c", _GUARD, str(config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment())


@pytest.fixture
def booted(host: Space, tmp_path: Path) -> Booted:
    return Booted(tmp_path)


# A file that is refused is no reason to go without resolvers.
@pytest.mark.parametrize("more", ["", "no_such_setting = 1"])
def test_before_there_is_a_network_the_link_is_back_and_the_agent_puts_its_file_there_again(
    booted: Booted, more: str
) -> None:
    done = booted.guard(more)
    assert done.returncode == exits.DONE, done.stderr
    assert str(booted.path.readlink()) == "../run/resolv.conf"
    booted.target.write_text(NEW)
    assert booted.path.read_text() == NEW
    booted.guard(more)
    assert booted.resolver.apply().in_place
    assert has_mesh(booted.path.read_text())
    assert NEW in booted.path.read_text()
    booted.resolver.restore()
    assert str(booted.path.readlink()) == "../run/resolv.conf"


def test_while_rules_lead_names_to_envoy_nothing_is_changed(booted: Booted) -> None:
    nft.write(plan(REQUEST, FLOOR).table)
    assert booted.guard().returncode == exits.DONE
    assert has_mesh(booted.path.read_text())
    assert kernel.read() is not None


def test_a_file_that_was_no_link_stays_as_it_is(booted: Booted) -> None:
    booted.resolver.restore()
    booted.path.unlink()
    booted.path.write_text(OLD)
    booted.resolver.apply()
    text = booted.path.read_text()
    assert booted.guard().returncode == exits.DONE
    assert booted.path.read_text() == text
