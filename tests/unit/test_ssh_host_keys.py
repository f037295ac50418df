"""The host keys that are remembered: nobody ever finds fewer than were there."""

import base64
from pathlib import Path

import pytest

import killing
from hostmesh_controller.cli.ssh.host_keys import HostKeys
from hostmesh_controller.cli.ssh.place import Place

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
