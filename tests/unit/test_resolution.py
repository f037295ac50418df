"""What of name resolution is left alone, what is waited for, and whose help is asked for when."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostmesh_agent import dns
from hostmesh_agent.dns import has_mesh
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_agent.resolution import DANGLES_FOR_S, Resolution

PLAIN = "nameserver 192.0.2.1\n"


class Host:
    """A host's file, and its resolution, whose clock stands."""

    def __init__(self, directory: Path) -> None:
        self.now = 100.0
        self.path = directory / "etc" / "resolv.conf"
        self.path.parent.mkdir()
        self.target = directory / "run" / "resolv.conf"
        self.target.parent.mkdir()
        self.resolution = Resolution(self.path, directory / "state", now=lambda: self.now)

    def put(self) -> dns.ResolverState:
        return self.resolution.put(MeshNames())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    if subprocess.run(["chattr", "+i", str(path)], capture_output=True).returncode:
        pytest.skip("needs root, and a file system with attributes")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


def test_a_link_to_nowhere_is_waited_for_and_then_left_alone(host: Host) -> None:
    host.path.symlink_to("../run/resolv.conf")
    assert (host.put().in_place, host.put().left_alone) == (False, False)
    host.now += DANGLES_FOR_S
    assert (host.put().in_place, host.put().left_alone) == (False, True)
    assert "which is not there" in host.put().detail
    host.target.write_text(PLAIN)
    assert host.put() == dns.ResolverState(in_place=True)
    # Each time anew: at a boot of the network alone there may be none for a while.
    host.resolution.restore()
    host.target.unlink()
    assert not host.put().left_alone


def test_a_list_of_the_servers_of_systemd_resolved_is_left_alone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.target.write_text(PLAIN)
    host.path.symlink_to("../run/resolv.conf")
    monkeypatch.setattr(dns, "_UPLINK", str(host.target))
    state = host.put()
    assert (state.in_place, state.left_alone) == (False, True)
    assert "ln -sf" in state.detail
    assert host.path.is_symlink()


def test_an_immutable_file_is_left_alone_and_said_to_be_that(host: Host) -> None:
    host.path.write_text(PLAIN)
    with immutable(host.path):
        state = host.put()
        assert (state.in_place, state.left_alone) == (False, True)
        assert "chattr" in state.detail
    assert host.put().in_place
    with immutable(host.path):
        assert host.put() == dns.ResolverState(in_place=True)
    assert has_mesh(host.path.read_text())
