"""An authority whose root changes: what is on disk after each step and each crash, and who can verify what it signs."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

import pki
from hostmesh_agent.keys import SvidError, checked, key_pem, new_key, standing
from hostmesh_controller.authority import Authority, AuthorityError, StepError

KEY = ec.generate_private_key(ec.SECP256R1())
SOON = timedelta(seconds=5)

STEPS: list[Callable[[Authority, datetime], object]] = [
    lambda authority, at: authority.prepare(at),
    lambda authority, at: authority.activate(at),
    lambda authority, at: authority.taint(None, at, SOON),
    lambda authority, at: authority.revoke(None, at, compromised=False),
]


def rotated(directory: Path, count: int = 4) -> Authority:
    """Return an authority after some of the steps."""
    authority = pki.new_authority(directory)
    for step in STEPS[:count]:
        step(authority, pki.now())
    return authority


def verifies(directory: Path, chain_pem: bytes, roots_pem: bytes, *, strict: bool = True) -> bool:
    """Ask OpenSSL."""
    (directory / "chain").write_bytes(chain_pem)
    (directory / "roots").write_bytes(roots_pem)
    flags = ["-x509_strict"] if strict else []
    command = ["openssl", "verify", *flags, "-CAfile", "roots", "-untrusted", "chain", "chain"]
    return subprocess.run(command, cwd=directory, capture_output=True, timeout=20).returncode == 0


def modes(directory: Path) -> dict[str, int]:
    return {each.name: each.stat().st_mode & 0o777 for each in directory.iterdir()}


def signs(authority: Authority) -> str:
    """Return by which root a leaf of now is good, by its place among all roots."""
    issued = authority.issue(KEY.public_key(), pki.CART, pki.now())
    found = standing(issued.chain_pem, b"".join(each.certificate_pem.encode() for each in authority.roots.items))
    return next(each.id for each in authority.roots.items if each.fingerprint == found.root)


def test_the_old_root_signs_until_the_new_one_is_activated(tmp_path: Path) -> None:
    authority = pki.new_authority(tmp_path)
    first = authority.roots.active.id
    signing = [signs(authority)]
    for step in STEPS:
        step(authority, pki.now())
        signing.append(signs(authority))
    new = authority.roots.active.id
    assert signing == [first, first, new, new, new]


@pytest.mark.parametrize("count", range(5))
def test_every_state_survives_a_restart(tmp_path: Path, count: int) -> None:
    before = rotated(tmp_path, count)
    after = pki.new_authority(tmp_path)
    assert after.roots == before.roots
    assert after.bundle_pem == before.bundle_pem == (tmp_path / "ca/bundle.pem").read_bytes()
    assert after.client_roots_pem == before.client_roots_pem
    assert signs(after) == signs(before)


@pytest.mark.parametrize("count", range(5))
def test_keys_are_closed_to_others_after_every_step_and_after_a_restore(tmp_path: Path, count: int) -> None:
    rotated(tmp_path / "a", count)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/ca").chmod(0o700)
    pki.new_authority(tmp_path / "b")
    for copy in ("a", "b"):
        assert (tmp_path / copy / "ca").stat().st_mode & 0o777 == 0o700
        assert set(modes(tmp_path / copy / "ca").values()) == {0o600}
    assert modes(tmp_path / "a/ca").keys() == modes(tmp_path / "b/ca").keys()


def test_a_revoked_roots_key_is_gone_from_the_disk(tmp_path: Path) -> None:
    authority = rotated(tmp_path, 3)
    assert {"root.pem", "intermediate.pem"} < modes(tmp_path / "ca").keys()
    authority.revoke(None, pki.now(), compromised=False)
    suffix = authority.roots.active.file
    expected = {f"{kind}{suffix}.pem" for kind in ("root", "intermediate", "cross")}
    assert modes(tmp_path / "ca").keys() == {"bundle.pem", "lock", "roots.json"} | expected


def crashes(directory: Path, step: Callable[[Authority, datetime], object]) -> Iterator[tuple[Path, bool]]:
    """Yield the directory as a kill at each moment of the step leaves it, and whether the step was made by then.

    New files come first, in any order; then roots.json; then the rest.
    """
    before = directory.with_name("before")
    shutil.copytree(directory, before)
    step(pki.new_authority(directory), pki.now())
    new = sorted(set(modes(directory / "ca")) - set(modes(before / "ca")))
    for count in range(len(new) + 1):
        for made in (False, True):
            if made and count < len(new):
                continue
            state = directory.with_name(f"crash-{count}-{made}")
            shutil.copytree(before, state)
            for name in new[:count]:
                shutil.copy(directory / "ca" / name, state / "ca" / name)
            (state / "ca/intermediate-half.new").write_bytes(b"-----BEGIN PRIV")
            (state / "ca/intermediate-half.new").chmod(0o600)
            if made:
                shutil.copy(directory / "ca/roots.json", state / "ca/roots.json")
            yield state, made


@pytest.mark.parametrize("count", range(4))
def test_a_crash_between_any_two_writes_leaves_the_step_done_or_not_begun(tmp_path: Path, count: int) -> None:
    directory = tmp_path / "state"
    undone = rotated(directory, count).roots
    for state, made in crashes(directory, STEPS[count]):
        done = pki.new_authority(directory).roots
        found = pki.new_authority(state)
        assert found.roots == (done if made else undone)
        assert found.bundle_pem == (state / "ca/bundle.pem").read_bytes()
        assert signs(found)
        # What is there is what a quiet life would have left.
        assert set(modes(state / "ca")) == files_of(found)
        if not made:
            STEPS[count](found, pki.now())


def files_of(authority: Authority) -> set[str]:
    kinds = [(each.file, kind) for each in authority.roots.trusted for kind in ("root", "intermediate")]
    linked = (*authority.roots.trusted, *authority.roots.retired)
    crossed = [(each.file, "cross") for each in linked if authority.crossed(each.id)]
    return {f"{kind}{suffix}.pem" for suffix, kind in (*kinds, *crossed)} | {"bundle.pem", "roots.json", "lock"}


def test_a_mesh_from_before_roots_could_change_goes_on_with_its_root(tmp_path: Path) -> None:
    root_der = pki.new_authority(tmp_path).root_der
    for name in ("roots.json", "bundle.pem"):
        (tmp_path / "ca" / name).unlink()
    assert pki.new_authority(tmp_path).root_der == root_der


def test_lost_states_are_refused_once_there_was_a_second_root(tmp_path: Path) -> None:
    rotated(tmp_path, 2)
    (tmp_path / "ca/roots.json").unlink()
    files = set(modes(tmp_path / "ca"))
    with pytest.raises(AuthorityError, match=r"roots\.json is missing .* restore it from a backup"):
        pki.new_authority(tmp_path)
    assert set(modes(tmp_path / "ca")) == files


def test_a_root_that_is_not_the_one_on_record_is_refused(tmp_path: Path) -> None:
    pki.new_authority(tmp_path / "a")
    pki.new_authority(tmp_path / "b")
    shutil.copy(tmp_path / "b/ca/root.pem", tmp_path / "a/ca/root.pem")
    with pytest.raises(AuthorityError, match=r"root\.pem is not the root that .*roots\.json names"):
        pki.new_authority(tmp_path / "a")


def test_a_full_disk_leaves_the_step_untaken(tmp_path: Path) -> None:
    authority = pki.new_authority(tmp_path)
    (tmp_path / "ca/roots.new").mkdir()  # so that writing fails, for root too
    before = authority.roots
    with pytest.raises(AuthorityError, match="cannot be written"):
        authority.prepare(pki.now())
    assert authority.roots is before
    (tmp_path / "ca/roots.new").rmdir()
    assert pki.new_authority(tmp_path).roots == before


# Who can verify what


def test_who_trusts_either_root_verifies_what_the_new_one_signs(tmp_path: Path) -> None:
    old = pki.new_authority(tmp_path).bundle_pem
    authority = rotated(tmp_path, 2)
    new = authority.roots.active.certificate_pem.encode()
    chain = authority.issue(KEY.public_key(), pki.CART, pki.now()).chain_pem
    assert len(x509.load_pem_x509_certificates(chain)) == 3
    for roots in (old, new, authority.bundle_pem):
        assert verifies(tmp_path, chain, roots)


def test_when_a_root_is_retired_only_latecomers_are_led_to_it(tmp_path: Path) -> None:
    old = pki.new_authority(tmp_path).bundle_pem
    authority = rotated(tmp_path)
    usual = authority.issue(KEY.public_key(), pki.CART, pki.now()).chain_pem
    late = authority.issue(KEY.public_key(), pki.CART, pki.now(), for_latecomers=True).chain_pem
    assert not verifies(tmp_path, usual, old)
    assert verifies(tmp_path, late, old)
    assert verifies(tmp_path, usual, authority.bundle_pem)
    assert old in authority.client_roots_pem
    assert old not in authority.bundle_pem


def test_a_host_may_sleep_through_two_changes(tmp_path: Path) -> None:
    old = pki.new_authority(tmp_path).bundle_pem
    rotated(tmp_path)
    authority = rotated(tmp_path)
    late = authority.issue(KEY.public_key(), pki.CART, pki.now(), for_latecomers=True).chain_pem
    assert len(x509.load_pem_x509_certificates(late)) == 4
    assert verifies(tmp_path, late, old)
    checked(key_pem(KEY), late, old, pki.CART, pki.now())


def test_nothing_leads_to_a_compromised_root(tmp_path: Path) -> None:
    old = pki.new_authority(tmp_path).bundle_pem
    authority = rotated(tmp_path, 3)
    authority.revoke(None, pki.now(), compromised=True)
    for again in (authority, pki.new_authority(tmp_path)):
        late = again.issue(KEY.public_key(), pki.CART, pki.now(), for_latecomers=True).chain_pem
        assert not verifies(tmp_path, late, old)
        assert again.client_roots_pem == again.bundle_pem


def test_a_root_that_was_dropped_before_it_signed_is_no_link(tmp_path: Path) -> None:
    old = pki.new_authority(tmp_path).bundle_pem
    authority = rotated(tmp_path, 1)
    dropped = authority.roots.items[1]
    authority.revoke(dropped.id, pki.now(), compromised=False)
    for step in STEPS[:2]:
        step(authority, pki.now())
    chain = authority.issue(KEY.public_key(), pki.CART, pki.now()).chain_pem
    assert verifies(tmp_path, chain, old)
    assert not verifies(tmp_path, chain, dropped.certificate_pem.encode())


def test_an_agent_takes_the_shortest_way_to_a_root_that_it_trusts(tmp_path: Path) -> None:
    old = pki.new_authority(tmp_path).bundle_pem
    authority = rotated(tmp_path, 2)
    key = new_key()
    chain = authority.issue(key.public_key(), pki.CART, pki.now()).chain_pem
    first, second = authority.roots.items
    for roots, expected in ((old, first), (authority.bundle_pem, second), (second.certificate_pem.encode(), second)):
        assert checked(key_pem(key), chain, roots, pki.CART, pki.now()).root == expected.fingerprint
    with pytest.raises(SvidError, match="does not lead to a root that this host trusts"):
        checked(key_pem(key), chain, pki.new_authority(tmp_path / "other").bundle_pem, pki.CART, pki.now())


def test_a_step_out_of_order_changes_nothing_on_disk(tmp_path: Path) -> None:
    authority = rotated(tmp_path, 1)
    before = {each.name: each.read_bytes() for each in (tmp_path / "ca").iterdir()}
    for step in (STEPS[0], STEPS[2], STEPS[3]):
        with pytest.raises(StepError):
            step(authority, pki.now())
    assert {each.name: each.read_bytes() for each in (tmp_path / "ca").iterdir()} == before
