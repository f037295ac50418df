"""Files of the agent that a disk, a person or another agent has damaged: it starts, and says what was wrong by name."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pki
from hostmesh_agent import chosen_binary, life_file, process, spare
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.artifact import ArtifactError
from hostmesh_agent.cache import FILE, Cache, Change, Entry
from hostmesh_agent.calls import CallMemory
from hostmesh_agent.config import AgentConfig, EnvoySettings
from hostmesh_agent.guard import FILE as PORTS_FILE
from hostmesh_agent.guard import SPARE as PORTS_SPARE
from hostmesh_agent.guard import Guard
from hostmesh_agent.keyroom import belongs_together, standing
from hostmesh_agent.launch import write_record
from hostmesh_agent.places import Instance
from hostmesh_agent.probes import Memory
from hostmesh_agent.state import State, StateError
from hostmesh_api.delta import Resource

IDENTITY = ("host.json", "identity/key.pem", "identity/chain.pem", "identity/bundle.pem")
PORTS = frozenset({8080, 9090, 15443})
ENTRIES = tuple(Entry("type", True, Resource(f"name-{each}", "1", b"body" * 100)) for each in range(20))

KILLED = """
import os, pathlib, sys
from hostmesh_agent.cache import Cache, Change, Entry
from hostmesh_api.delta import Resource
entries = [Entry("type", True, Resource(f"name-{each}", "1", b"body" * 100)) for each in range(int(sys.argv[2]))]
Cache(pathlib.Path(sys.argv[1])).write([Change("type", each.resource.name, each) for each in entries])
os._exit(0)
"""
"""An agent that ends before it could copy what it wrote."""


def damaged(data: bytes, flips: int) -> Iterator[bytes]:
    """Yield what disks make of a file: nothing, zeros, a part, a part and zeros, and single bits that turned."""
    yield b""
    yield bytes(len(data))
    for cut in range(1, 12):
        at = len(data) * cut // 12
        yield data[:at]
        yield data[:at] + bytes(len(data) - at)
    for at in range(0, len(data), max(1, len(data) // flips)):
        yield data[:at] + bytes([data[at] ^ 1 << at % 7]) + data[at + 1 :]


def codes(alarms: Alarms) -> list[str]:
    return [each.code for each in alarms]


@pytest.mark.parametrize("name", IDENTITY)
def test_a_damaged_file_of_the_identity_is_made_anew_and_the_host_needs_no_visit(tmp_path: Path, name: str) -> None:
    whole = pki.joined(tmp_path / "whole", pki.new_authority(tmp_path / "controller"))
    record, files = whole.host(), whole.files()
    repaired = 0
    for data in damaged((whole.directory / name).read_bytes(), flips=40):
        directory = tmp_path / "state"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole.directory, directory)
        (directory / name).write_bytes(data)
        alarms = Alarms()
        state = State(directory, alarms)
        state.begin()
        found = state.files()
        assert state.host() == record
        # What no reader of PEM minds may stay: a letter before its first line, the signature of a root.
        assert belongs_together(found.key_pem, found.chain_pem)
        assert belongs_together(found.key_pem, files.chain_pem)
        assert standing(found.chain_pem, found.bundle_pem).root != ""
        assert codes(alarms) in ([], ["state.repaired"])
        repaired += codes(alarms) == ["state.repaired"]
    assert repaired > 20


@pytest.mark.parametrize("name", IDENTITY)
def test_a_file_of_the_identity_that_is_gone_or_another_users_is_made_anew_but_a_host_that_left_stays_away(
    tmp_path: Path, name: str
) -> None:
    whole = pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "controller"))
    files = whole.files()
    if os.geteuid() == 0:
        os.chown(whole.directory / name, 4242, 4242)
        alarms = Alarms()
        State(whole.directory, alarms).begin()
        assert codes(alarms) == ["state.repaired"]
        assert (whole.directory / name).stat().st_uid == 0
    (whole.directory / name).unlink()
    if name == "host.json":
        assert not State(whole.directory).joined
    else:
        assert State(whole.directory).files() == files


def test_a_damaged_spare_copy_is_of_no_consequence_and_is_written_anew(tmp_path: Path) -> None:
    whole = pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "controller"))
    good = (whole.directory / spare.FILE).read_bytes()
    for data in (b"", b"{", b"[]", b'{"format": 2}', good[:-20], good.replace(b'"key": "', b'"key": "A')):
        with pytest.raises(ValueError, match=r"."):
            spare.decode(data)
        (whole.directory / spare.FILE).write_bytes(data)
        alarms = Alarms()
        State(whole.directory, alarms).begin()
        assert (codes(alarms), (whole.directory / spare.FILE).read_bytes()) == ([], good)


def test_an_identity_that_is_damaged_twice_is_refused_with_the_cure(tmp_path: Path) -> None:
    whole = pki.joined(tmp_path / "state", pki.new_authority(tmp_path / "controller"))
    (whole.directory / spare.FILE).write_bytes(b"")
    (whole.directory / "identity/key.pem").write_bytes(b"")
    with pytest.raises(StateError, match="join again"):
        State(whole.directory).begin()


def test_ports_that_are_closed_at_boot_are_known_whichever_of_their_two_files_is_damaged(tmp_path: Path) -> None:
    Guard(tmp_path).note(PORTS)
    for name in (PORTS_FILE, PORTS_SPARE):
        good = (tmp_path / name).read_bytes()
        for data in damaged(good, flips=len(good)):
            (tmp_path / name).write_bytes(data)
            alarms = Alarms()
            assert (Guard(tmp_path, alarms).ports, codes(alarms)) == (PORTS, [])
        (tmp_path / name).write_bytes(good)


def test_ports_that_are_lost_altogether_have_an_alarm_until_they_are_known_again(tmp_path: Path) -> None:
    Guard(tmp_path).note(PORTS)
    for name in (PORTS_FILE, PORTS_SPARE):
        (tmp_path / name).write_bytes(b"[8080, 9091")
    alarms = Alarms()
    guard = Guard(tmp_path, alarms)
    assert (guard.ports, codes(alarms)) == (frozenset(), ["guard.lost"])
    guard.note(PORTS)
    assert (Guard(tmp_path).ports, codes(alarms)) == (PORTS, [])


def test_what_an_agent_before_checksums_wrote_is_read(tmp_path: Path) -> None:
    (tmp_path / PORTS_FILE).write_text("[8080, 9090]\n")
    (tmp_path / PORTS_FILE).chmod(0o600)
    assert Guard(tmp_path).ports == frozenset({8080, 9090})


def stored(directory: Path) -> None:
    cache = Cache(directory)
    cache.write([Change(each.type_url, each.resource.name, each) for each in ENTRIES])
    cache.close()


def test_a_damaged_configuration_is_that_of_its_spare_copy_or_what_it_was_and_writing_goes_on(tmp_path: Path) -> None:
    stored(tmp_path / "whole")
    used = 0
    for data in damaged((tmp_path / "whole" / FILE).read_bytes(), flips=60):
        directory = tmp_path / "cache"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", directory)
        (directory / FILE).write_bytes(data)
        alarms = Alarms()
        cache = Cache(directory, alarms)
        assert sorted(cache.entries(), key=str) == sorted(ENTRIES, key=str)
        assert codes(alarms) in ([], ["cache.spare-used"])
        used += codes(alarms) == ["cache.spare-used"]
        cache.write([Change("type", "name-0", ENTRIES[0])])
        cache.close()
        assert codes(alarms) == []
        cache = Cache(directory)
        assert len(cache.entries()) == len(ENTRIES)
        assert cache.is_copied
        cache.close()
    assert used > 20


def test_what_a_killed_agent_wrote_last_is_in_the_spare_copy_of_the_next_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write([Change("type", ENTRIES[0].resource.name, ENTRIES[0])])
    cache.close()
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(len(ENTRIES))], check=True, timeout=30)
    cache = Cache(tmp_path)
    assert len(cache.entries()) == len(ENTRIES)
    cache.close()
    for suffix in ("", "-wal"):
        (tmp_path / f"{FILE}{suffix}").write_bytes(b"")
    cache = Cache(tmp_path)
    assert sorted(cache.entries(), key=str) == sorted(ENTRIES, key=str)
    cache.close()


def test_a_configuration_that_a_power_cut_left_empty_with_its_log_is_that_of_its_spare_copy(tmp_path: Path) -> None:
    stored(tmp_path)
    for suffix in ("", "-wal"):
        (tmp_path / f"{FILE}{suffix}").write_bytes(b"")
    alarms = Alarms()
    cache = Cache(tmp_path, alarms)
    assert sorted(cache.entries(), key=str) == sorted(ENTRIES, key=str)
    assert codes(alarms) == ["cache.spare-used"]
    cache.close()


@pytest.mark.parametrize("code", ["cache.lost", "cache.newer"])
def test_a_configuration_that_is_lost_altogether_or_a_newer_agents_has_an_alarm(tmp_path: Path, code: str) -> None:
    stored(tmp_path)
    for each in tmp_path.glob("*.sqlite"):
        if code == "cache.lost":
            each.write_bytes(b"x" * 4096)
        else:
            connection = sqlite3.connect(each)
            connection.execute("PRAGMA user_version=99")
            connection.close()
    alarms = Alarms()
    cache = Cache(tmp_path, alarms)
    assert (cache.entries(), codes(alarms)) == ((), [code])
    cache.close()


def test_memory_of_calls_and_health_that_is_damaged_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "memory.json"
    for data in (b"", b"{", b"[]", b"null", b"1", bytes(100), b"\xff\xfe", b'{"boot_id": "b"}', b"[" * 100_000):
        path.write_bytes(data)
        assert Memory(path, "b").read() == {}
        assert CallMemory(path, "b").read()[1].seen == {}
    path.write_text(
        json.dumps({"boot_id": "b", "epoch": "e", "readings": {"x": "y"}, "seen": [[1, 2]], "workloads": 7})
    )
    assert Memory(path, "b").read() == {}
    assert CallMemory(path, "b").read()[1].seen == {}


def test_a_damaged_record_of_envoy_names_no_process(tmp_path: Path) -> None:
    for data in (b"", b"{", b"[]", b"null", b"7", bytes(64), b'{"pid": "x"}', b"[" * 50_000):
        (tmp_path / process.RECORD).write_bytes(data)
        assert process.read_record(tmp_path) is None


@pytest.mark.parametrize("serving", list(Instance))
def test_which_envoy_serves_is_told_by_the_one_that_runs_where_it_cannot_be_read(
    tmp_path: Path, serving: Instance
) -> None:
    directory = AgentConfig(state_dir=tmp_path).directory_of(serving)
    directory.mkdir()
    facts = dict.fromkeys(("binary", "version", "sha256", "bootstrap_sha256", "command_sha256"), "x")
    write_record(str(directory / process.RECORD), facts, os.getpid())  # this process stands for it
    life_file.write(tmp_path, life_file.read(tmp_path))
    for data in damaged((tmp_path / life_file.FILE).read_bytes(), flips=1):
        (tmp_path / life_file.FILE).write_bytes(data[:-8])
        assert life_file.read(tmp_path).active is serving


def test_a_choice_of_envoys_binary_that_cannot_be_read_is_no_reason_to_run_none(tmp_path: Path) -> None:
    (tmp_path / chosen_binary.FILE).write_bytes(b"{")
    # Another mistake, of what agent.toml says: it was asked.
    with pytest.raises(ArtifactError, match="from-agent-toml: no such file"):
        chosen_binary.install(
            AgentConfig(state_dir=tmp_path, envoy=EnvoySettings(binary=tmp_path / "from-agent-toml", sha256="0" * 64))
        )
