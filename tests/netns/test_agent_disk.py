"""A disk that is full, or read-only: what was there is read, what runs goes on, and the alarm has a name."""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import pki
from hostmesh_agent import certs, lock, process, vital_signs, vitals, workdir
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.cache import Cache, Change, Entry
from hostmesh_agent.calls import CallMemory
from hostmesh_agent.certs import Certificates, Wanted
from hostmesh_agent.cold import Cold
from hostmesh_agent.cold_copy import ColdCopy, ColdCopyError
from hostmesh_agent.guard import Guard
from hostmesh_agent.launch import write_record
from hostmesh_agent.probes import Memory
from hostmesh_agent.state import HostFiles, State, StateError
from hostmesh_agent.svid import Svid
from hostmesh_agent.tally import Tally
from hostmesh_api.cold import encode_page, page_name
from hostmesh_api.delta import Resource
from hostmesh_api.v1.hostmesh_pb2 import ColdContent, ColdResource, ColdService
from hostmesh_controller.authority import Authority
from waiting import until

ENTRY = Entry("type", True, Resource("name", "1", b"body" * 500))
FACTS = dict.fromkeys(("binary", "version", "sha256", "bootstrap_sha256", "command_sha256"), "x")
OURSELVES = workdir.Account(os.geteuid(), os.getegid(), switch=False)


class Disk:
    """A small file system of its own, mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "hostmesh-test", path], check=True, timeout=20)

    def fill(self) -> None:
        """Leave no byte."""
        size = 1 << 16
        with (self.path / "filler").open("ab", buffering=0) as file:
            while size:
                try:
                    file.write(b"x" * size)
                except OSError:
                    size //= 2

    def empty(self) -> None:
        (self.path / "filler").unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.path], check=True, timeout=20)

    def refuse(self, how: str) -> None:
        """Become `full` or `ro`."""
        if how == "full":
            self.fill()
        else:
            self.remount("ro")

    def mend(self, how: str) -> None:
        """Undo `refuse`."""
        if how == "full":
            self.empty()
        else:
            self.remount("rw")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    with suppress(subprocess.CalledProcessError):
        subprocess.run(["umount", "--lazy", made.path], check=True, timeout=20)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return pki.new_authority(tmp_path / "controller")


def codes(alarms: Alarms) -> list[str]:
    return [each.code for each in alarms]


HOWS = pytest.mark.parametrize("how", ["full", "ro"])


@HOWS
def test_a_host_starts_with_its_identity_on_a_disk_that_refuses(disk: Disk, authority: Authority, how: str) -> None:
    pki.joined(disk.path / "state", authority)
    before = State(disk.path / "state").files()
    (disk.path / "state/spare.json").unlink()
    disk.refuse(how)
    alarms = Alarms()
    state = State(disk.path / "state", alarms)
    with lock.held(state.directory):
        state.begin()
    assert (state.files(), codes(alarms)) == (before, ["state.not-written"])
    svid = pki.svid(authority, pki.HOST)
    with pytest.raises(StateError, match=r"cannot be written: (No space left|Read-only file system)"):
        state.save_renewed(HostFiles(svid.key_pem, svid.chain_pem, authority.bundle_pem))
    assert State(disk.path / "state").files() == before
    disk.mend(how)
    state.keep_spare()
    assert codes(alarms) == []


@HOWS
def test_one_agent_alone_works_on_a_disk_that_refuses(disk: Disk, how: str) -> None:
    disk.refuse(how)
    with lock.held(disk.path), pytest.raises(lock.LockedError), lock.held(disk.path):
        pass


@HOWS
def test_the_last_good_configuration_is_served_from_a_disk_that_refuses_and_written_once_it_does_not(
    disk: Disk, how: str
) -> None:
    cache = Cache(disk.path / "cache")
    cache.write([Change("type", "name", ENTRY)])
    # As a power cut leaves it: with its log, which is not in the file yet.
    for name in ("last-known-good.sqlite", "last-known-good.sqlite-wal"):
        (disk.path / f"{name}.copy").write_bytes((disk.path / "cache" / name).read_bytes())
    cache.close()
    for name in ("last-known-good.sqlite", "last-known-good.sqlite-wal"):
        (disk.path / f"{name}.copy").rename(disk.path / "cache" / name)
    (disk.path / "cache/spare.sqlite").unlink()
    disk.refuse(how)
    alarms = Alarms()
    cache = Cache(disk.path / "cache", alarms)
    assert (cache.entries(), codes(alarms), cache.lost) == ((ENTRY,), ["cache.not-written"], "")
    newer = replace(ENTRY, resource=Resource("name", "2", b"new" * 20_000))
    with pytest.raises(sqlite3.Error):
        cache.write([Change("type", "name", newer)])
    disk.mend(how)
    cache.write([Change("type", "name", newer)])
    cache.close()
    assert (Cache(disk.path / "cache").entries(), codes(alarms)) == ((newer,), [])


def page(number: int, size: int = 10) -> Resource:
    """A page of the cold copy with a service of its own; random content, so that it is as large as it says."""
    cluster = ColdResource(names=[f"outbound|80||s{number}"], rest=os.urandom(size))
    made = ColdService(hostname=f"s{number}", hosts=[f"s{number}"], clusters=[cluster])
    return encode_page(page_name("config", number), ColdContent(services=[made]))


@HOWS
@pytest.mark.parametrize("ended", ["well", "by a power cut"])
async def test_the_cold_copy_is_read_on_a_disk_that_refuses_again_and_again_and_written_once_it_does_not(
    disk: Disk, how: str, ended: str
) -> None:
    copy = ColdCopy(disk.path / "cache", 10**6)
    copy.write([page(1), page(2)], ())
    held = dict(copy.versions())
    left = {}
    if ended == "by a power cut":
        # Its log is not in the file yet.
        left = {each.name: each.read_bytes() for each in (disk.path / "cache").iterdir() if "-shm" not in each.name}
        assert left["cold-copy.sqlite-wal"]
    copy.close()
    for name, data in left.items():
        (disk.path / "cache" / name).write_bytes(data)
    disk.refuse(how)
    for _ in range(2):
        alarms = Alarms()
        copy = ColdCopy(disk.path / "cache", 10**6, alarms)
        cold = Cold(copy, lambda: "host", retry_s=0.02)
        assert (codes(alarms), cold.size["services"]) == (["cold.not-written"], 2)
        assert [each.hostname for each in copy.services("s1")] == ["s1"]
        assert dict(cold.opening().initial_resource_versions) == held
        with pytest.raises(ColdCopyError):
            copy.write([page(3)], ())
        copy.close()
    copy, again = ColdCopy(disk.path / "cache", 10**6, alarms), Alarms()
    other = ColdCopy(disk.path / "cache", 10**6, again)
    running = asyncio.create_task(Cold(copy, lambda: "host", retry_s=0.02).run(lambda _: None))
    disk.mend(how)
    # Nothing has to come from the controller for it.
    await until(lambda: not codes(alarms))
    running.cancel()
    await asyncio.wait([running])
    # Nor, where the controller comes back first, has anything to be written.
    assert (codes(again), dict(other.versions()), codes(again)) == (["cold.not-written"], held, [])
    other.close()
    copy.write([page(3)], ())
    assert dict(copy.versions()) == held | {page(3).name: dict(copy.versions())[page(3).name]}
    assert not list((disk.path / "cache").glob("*.unreadable"))
    copy.close()


def test_a_cold_copy_that_is_damaged_on_a_full_disk_while_the_agent_runs_ends_nothing_and_comes_again(
    disk: Disk,
) -> None:
    alarms = Alarms()
    copy = ColdCopy(disk.path / "cache", 10**6, alarms)
    # More than is kept in memory of it.
    pages = [page(number, 4000) for number in range(90)]
    copy.write(pages, ())
    copy.close()
    copy = ColdCopy(disk.path / "cache", 10**6, alarms)
    cold = Cold(copy, lambda: "host")
    with (disk.path / "cache/cold-copy.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(bytes(300_000))
    disk.fill()
    assert dict(cold.opening().initial_resource_versions) == {}
    assert set(codes(alarms)) == {"cold.lost", "cold.not-written"}
    with pytest.raises(ColdCopyError):
        copy.write(pages, ())
    disk.empty()
    assert dict(cold.opening().initial_resource_versions) == {}
    copy.write(pages, ())
    assert (len(copy.versions()), codes(alarms)) == (90, [])
    copy.close()


def test_a_disk_that_fills_while_the_agent_runs_costs_alarms_and_nothing_else(disk: Disk) -> None:
    alarms = Alarms()
    cache = Cache(disk.path / "cache", alarms)
    cache.write([Change("type", "name", ENTRY)])
    guard, health, calls = (
        Guard(disk.path, alarms),
        Memory(disk.path / "health.json", "b", alarms),
        CallMemory(disk.path / "calls.json", "b", alarms),
    )
    guard.note(frozenset({80}))
    disk.fill()
    newer = replace(ENTRY, resource=Resource("name", "2", b"new" * 100_000))
    with pytest.raises(sqlite3.Error):
        cache.write([Change("type", "name", newer)])
    guard.note(frozenset({80, 443}))
    health.write({})
    calls.write("e", Tally())
    assert codes(alarms) == ["cache.not-written", "guard.not-written", "memory.not-written", "memory.not-written"]
    assert Guard(disk.path).ports == frozenset({80})
    found = vitals.of_disk([vital_signs.room(disk.path)])
    assert [each.code for each in found] == ["disk.full"]
    disk.empty()
    guard.note(frozenset({80, 443}))
    health.write({})
    calls.write("e", Tally())
    cache.write([Change("type", "name", ENTRY)])
    assert codes(alarms) == []
    cache.close()


@HOWS
def test_certificates_that_are_good_stay_so_on_a_disk_that_refuses(
    disk: Disk, authority: Authority, tmp_path: Path, how: str
) -> None:
    async def issue(_: str) -> Svid:
        return pki.svid(authority, pki.HOST)

    state = pki.joined(disk.path / "state", authority)
    (disk.path / "envoy").mkdir()
    certificates = Certificates(state, disk.path / "envoy", (os.geteuid(), os.getegid()), issue, pki.now)
    want = Wanted((pki.HOST,), authority.bundle_pem)
    before = asyncio.run(certificates.apply(want))
    (disk.path / "envoy/certs/host" / certs.SDS_FILE).unlink()
    disk.refuse(how)
    certificates = Certificates(state, disk.path / "envoy", (os.geteuid(), os.getegid()), issue, pki.now)
    held = asyncio.run(certificates.apply(replace(want, bundle_pem=authority.bundle_pem * 2)))
    assert (dict(held.svids).keys(), held.missing) == (dict(before.svids).keys(), {})
    disk.mend(how)
    asyncio.run(certificates.apply(want))
    assert (disk.path / "envoy/certs/host" / certs.SDS_FILE).exists()


def test_an_envoy_that_ended_can_be_started_though_the_disk_is_full(disk: Disk) -> None:
    workdir.prepare(disk.path / "envoy", OURSELVES)
    workdir.write_bootstrap(disk.path / "envoy", b"bootstrap", OURSELVES)
    write_record(str(disk.path / "envoy" / process.RECORD), {**FACTS, "version": "1"}, os.getpid())
    disk.fill()
    workdir.prepare(disk.path / "envoy", OURSELVES)
    workdir.write_bootstrap(disk.path / "envoy", b"bootstrap", OURSELVES)
    os.close(workdir.open_log(disk.path / "envoy"))
    write_record(str(disk.path / "envoy" / process.RECORD), {**FACTS, "version": "2"}, os.getpid())
    found = process.read_record(disk.path / "envoy")
    assert found is not None
    assert (found.version, found.pid) == ("2", os.getpid())
