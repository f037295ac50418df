"""What of name resolution is left alone, what is waited for, and whose help is asked for when."""

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostmesh_agent import dns, privileged, resolution, rights
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


class PrivilegedPart:
    """The privileged part over a real socket, for one file; it notes what is asked."""

    def __init__(self, place: Path) -> None:
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(place))
        self._socket.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                line = privileged.read_line(connection)
                self.asked.append(json.loads(line)["verb"])
                connection.sendall(json.dumps(privileged.answer(line)).encode() + b"\n")

    def close(self) -> None:
        # Who waits in accept does not hear of a close alone.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def helper(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivilegedPart]:
    """An agent that is not root, with the one that helps it."""
    for module, name in ((rights, "RESOLV_CONF"), (privileged, "RESOLV_CONF")):
        monkeypatch.setattr(module, name, host.path)
    monkeypatch.setattr(privileged, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(resolution, "ROOTS_COPY", tmp_path / "kept")
    monkeypatch.setattr(rights, "here", lambda: rights.Helped(tmp_path / "s"))
    part = PrivilegedPart(tmp_path / "s")
    yield part
    part.close()


def test_nobody_is_asked_to_take_back_what_is_not_there(host: Host, helper: PrivilegedPart) -> None:
    for text in (None, PLAIN, "# of hostmesh there is nothing here\n"):
        if text is not None:
            host.path.write_text(text)
        host.resolution.restore()
    host.path.unlink()
    host.path.symlink_to("../run/resolv.conf")
    host.resolution.restore()
    assert helper.asked == []


def test_what_is_there_is_taken_back_once(host: Host, helper: PrivilegedPart, tmp_path: Path) -> None:
    host.path.write_text(PLAIN)
    assert host.put().in_place
    host.resolution.restore()
    assert host.path.read_text() == PLAIN
    host.resolution.restore()
    assert helper.asked == ["put-names", "take-names"]
    # Written again by another program: the copy is left, and goes.
    host.put()
    host.path.write_text(PLAIN)
    host.resolution.restore()
    host.resolution.restore()
    assert helper.asked == ["put-names", "take-names"] * 2
    assert not (tmp_path / "kept").exists()
    # What a run left that was killed, and one line of ours of which the rest is gone.
    host.path.with_name(".resolv.conf.hostmesh").write_text("half")
    host.resolution.restore()
    host.path.write_text(f"nameserver 127.240.240.53\n{PLAIN}")
    host.resolution.restore()
    host.resolution.restore()
    assert helper.asked == ["put-names", "take-names"] * 2 + ["take-names"] * 2
    assert host.path.read_text() == PLAIN
    assert [each.name for each in host.path.parent.iterdir()] == ["resolv.conf"]
