"""A power cut at any moment: identity, remembered ports and configuration of the host are whole after it."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import killing
import pki
from hostmesh_agent import keyroom, process, spare, workdir
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.cache import Cache, Change, Entry
from hostmesh_agent.controller_addresses import ControllerAddresses
from hostmesh_agent.guard import Guard
from hostmesh_agent.launch import write_record
from hostmesh_agent.state import HostFiles, State, write_private
from hostmesh_agent.tree import Tree
from hostmesh_api.delta import Resource
from hostmesh_controller.authority import Authority

pytestmark = pytest.mark.skipif(not killing.CHANGING, reason="the numbers of this machine's system calls are not known")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return pki.new_authority(tmp_path / "controller")


def known(files: HostFiles) -> HostFiles:
    """Have the keyroom's answers at hand: a child that is being traced cannot ask it."""
    keyroom.belongs_together(files.key_pem, files.chain_pem)
    keyroom.roots(files.bundle_pem)
    return files


def renewed(authority: Authority) -> HostFiles:
    svid = pki.svid(authority, pki.HOST)
    return HostFiles(svid.key_pem, svid.chain_pem, authority.bundle_pem)


class Joined:
    """A host that has joined, as often as it takes."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self._original = directory / "original"
        self.state = pki.joined(self._original, authority)
        self.record, self.old, self.new = self.state.host(), known(self.state.files()), known(renewed(authority))
        self.directory = directory / "state"

    def again(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        shutil.copytree(self._original, self.directory)


@pytest.fixture
def host(tmp_path: Path, authority: Authority) -> Joined:
    return Joined(tmp_path / "host", authority)


def each_step(host: Joined, act: Callable[[State], object]) -> Iterator[State]:
    for _ in killing.at_every_step(lambda: act(State(host.directory)), host.again, host.directory):
        yield State(host.directory)


def test_a_renewal_that_loses_power_at_any_step_leaves_the_old_identity_or_the_new_one(host: Joined) -> None:
    found = []
    for state in each_step(host, lambda state: state.save_renewed(host.new)):
        state.begin()
        assert state.host() == host.record
        found.append(state.files())
    assert {found[0] == host.old, found[-1] == host.new} == {True}
    assert all(each in (host.old, replace(host.old, bundle_pem=host.new.bundle_pem), host.new) for each in found)
    assert len(found) > 15


def test_a_joining_anew_that_loses_power_at_any_step_leaves_one_identity_or_none(host: Joined) -> None:
    record = replace(host.record, agents_endpoints=("b:2",))
    found: list[object] = []
    for state in each_step(host, lambda state: state.save_joined(record, host.new)):
        if state.joined:
            # Of another identity it would be brought back by any damage.
            with suppress(ValueError, FileNotFoundError):
                copy = spare.decode((state.directory / spare.FILE).read_bytes())
                assert copy.host == (state.directory / "host.json").read_bytes()
            state.begin()
            found.append((state.files(), state.host().agents_endpoints))
        else:
            found.append(None)
        state.save_joined(record, host.new)
        assert state.files() == host.new
    assert set(map(str, found)) == set(map(str, [(host.old, ("a:1",)), None, (host.new, ("b:2",))]))


def test_a_leave_that_loses_power_at_any_step_leaves_the_host_joined_or_not_and_never_damaged(host: Joined) -> None:
    for state in each_step(host, State.forget):
        if state.joined:
            state.begin()
            assert state.files() == host.old
        state.forget()
        assert list(host.directory.iterdir()) == []


def test_new_roots_and_new_controllers_that_lose_power_at_any_step_leave_the_old_ones_or_the_new_ones(
    host: Joined,
) -> None:
    moved = replace(host.record, agents_endpoints=("b:2",))
    for state in each_step(host, lambda state: state.save_host(moved)):
        state.begin()
        assert state.host() in (host.record, moved)
    more = known(replace(host.old, bundle_pem=host.old.bundle_pem * 2))
    for state in each_step(host, lambda state: state.save_bundle(more.bundle_pem)):
        state.begin()
        assert state.files() in (host.old, more)


def test_a_file_that_is_replaced_while_power_is_lost_at_any_step_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "tree" / "file"

    def prepare() -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"old")

    for _ in killing.at_every_step(lambda: write_private(path, b"new"), prepare, path.parent):
        assert path.read_bytes() in (b"old", b"new")


def test_remembered_ports_that_lose_power_at_any_step_are_the_old_ones_or_the_new_ones(tmp_path: Path) -> None:
    directory = tmp_path / "state"

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        Guard(directory).note(frozenset({8080}))

    for _ in killing.at_every_step(lambda: Guard(directory).note(frozenset({8080, 9090})), prepare, directory):
        alarms = Alarms()
        assert Guard(directory, alarms).ports in (frozenset({8080}), frozenset({8080, 9090}))
        assert list(alarms) == []


def test_remembered_controllers_that_lose_power_at_any_step_are_the_old_ones_or_the_new_ones(tmp_path: Path) -> None:
    directory = tmp_path / "state"

    def look(address: str) -> object:
        return ControllerAddresses(directory).look([f"{address}:15012"])

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        look("10.0.0.1")

    for _ in killing.at_every_step(lambda: look("10.0.0.2"), prepare, directory):
        assert ControllerAddresses(directory)._known.keys() in ({"10.0.0.1:15012"}, {"10.0.0.2:15012"})


def test_a_batch_of_configuration_that_loses_power_at_any_step_is_there_or_not(tmp_path: Path) -> None:
    directory = tmp_path / "cache"
    old, new = (Entry("type", True, Resource("name", each, b"body" * 3000)) for each in ("1", "2"))

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        written(old)

    def written(entry: Entry) -> None:
        cache = Cache(directory)
        cache.write([Change("type", "name", entry)])
        cache.close()

    found = []
    # SQLite's journal has checksums: what is not synchronised may hold anything, and be as short as it likes.
    for _ in killing.at_every_step(lambda: written(new), prepare, directory):
        alarms = Alarms()
        cache = Cache(directory, alarms)
        found.append(cache.entries())
        assert list(alarms) == []
        cache.close()
    assert set(found) == {(old,), (new,)}


def test_a_certificate_that_loses_power_at_any_step_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    base = tmp_path / "envoy"
    tree = Tree(base, "certs", (os.geteuid(), os.getegid()))

    def prepare() -> None:
        shutil.rmtree(base, ignore_errors=True)
        base.mkdir()
        tree.write("host", "svid.pem", b"old")

    for _ in killing.at_every_step(lambda: tree.write("host", "svid.pem", b"new"), prepare, base):
        assert tree.read("host", "svid.pem") in (b"old", b"new")
        tree.write("host", "svid.pem", b"next")
        assert [each.name for each in (base / "certs/host").iterdir()] == ["svid.pem"]


def test_an_envoy_whose_start_loses_power_at_any_step_can_be_started(tmp_path: Path) -> None:
    directory = tmp_path / "envoy"
    owner = workdir.Account(os.geteuid(), os.getegid(), switch=False)
    facts = dict.fromkeys(("binary", "version", "sha256", "bootstrap_sha256", "command_sha256"), "x")

    def start() -> None:
        workdir.write_bootstrap(directory, b"new bootstrap", owner)
        write_record(str(directory / process.RECORD), facts, os.getpid())

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        workdir.write_bootstrap(directory, b"old", owner)

    for _ in killing.at_every_step(start, prepare, directory):
        assert (directory / workdir.BOOTSTRAP).read_bytes() in (b"old", b"new bootstrap")
        assert process.recorded_runs(directory) is False
        start()
        assert (directory / workdir.BOOTSTRAP).read_bytes() == b"new bootstrap"
