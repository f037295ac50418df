"""The host keys that are remembered: nobody ever finds fewer than were there."""

import base64
import os
from pathlib import Path

import pytest

import killing
from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.registering import Entry
from hostmesh_controller.cli.ssh.host_keys import HostKeys
from hostmesh_controller.cli.ssh.place import Place
from hostmesh_controller.cli.ssh.steps import StepError

FIRST, SECOND = Place("root", "192.0.2.1"), Place("root", "192.0.2.2", 2222)


def blob(byte: int) -> bytes:
    return b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes([byte]) * 32


def test_a_key_takes_the_place_of_the_one_before_and_of_no_other_hosts(tmp_path: Path) -> None:
    keys = HostKeys(files=(tmp_path / "state/known_hosts",), store=tmp_path / "state/known_hosts")
    for place, byte in ((FIRST, 1), (SECOND, 2), (SECOND, 3)):
        keys.keep(place, "ssh-ed25519", blob(byte))
    assert [each.blob for each in keys.known(FIRST)] == [blob(1)]
    assert [each.blob for each in keys.known(SECOND)] == [blob(3)]
    assert keys.store.stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in keys.store.parent.iterdir()) == ["known_hosts", "known_hosts.lock"]


@pytest.mark.skipif(not killing.CHANGING, reason="the numbers of this machine's system calls are not known")
def test_a_run_that_ends_as_it_remembers_a_key_forgets_no_other(tmp_path: Path) -> None:
    keys = HostKeys(files=(tmp_path / "known_hosts",), store=tmp_path / "known_hosts")
    before = f"{FIRST.known_as} ssh-ed25519 {base64.b64encode(blob(1)).decode()}\n"

    def prepare() -> None:
        keys.store.write_text(before)
        assert keys.known(SECOND) == []

    for _ in killing.at_every_step(lambda: keys.keep(SECOND, "ssh-ed25519", blob(2)), prepare, tmp_path):
        assert [each.blob for each in keys.known(FIRST)] == [blob(1)]
        # Nor is anybody kept from trying again by what is left.
        keys.keep(SECOND, "ssh-ed25519", blob(2))
        assert [each.blob for each in keys.known(SECOND)] == [blob(2)]


def entry(known_hosts: Path) -> Entry:
    return Entry(None, False, (), known_hosts, None, None, None)


def test_with_an_empty_file_every_key_is_unknown() -> None:
    with pytest.raises(StepError, match=r"the host key of .* is unknown"):
        entry(Path("/dev/null")).keys(()).judge(FIRST, "ssh-ed25519", blob(1))


def test_keys_come_from_a_pipe_for_each_of_many_hosts() -> None:
    reading, writing = os.pipe()
    lines = [
        f"{each.known_as} ssh-ed25519 {base64.b64encode(blob(byte)).decode()}"
        for byte, each in enumerate((FIRST, SECOND))
    ]
    os.write(writing, "\n".join(lines).encode())
    os.close(writing)
    given = entry(Path(f"/dev/fd/{reading}"))
    for byte, each in enumerate((FIRST, SECOND)):
        # Of each host all is looked at several times: which kinds of keys, which key, what is revoked.
        keys = given.keys(())
        assert keys.families(each)[0] == ("ed25519",)
        assert keys.judge(each, "ssh-ed25519", blob(byte))
        with pytest.raises(StepError, match="HAS CHANGED"):
            keys.judge(each, "ssh-ed25519", blob(7))
    os.close(reading)


def test_a_file_of_host_keys_that_is_not_there_is_named(tmp_path: Path) -> None:
    for file, said in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(CliError, match=f"{file}: {said}"):
            entry(file).keys(())
