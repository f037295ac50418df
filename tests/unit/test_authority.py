"""The authority: what its certificates say, what OpenSSL thinks of them, and what survives a crash."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

import pki
from hostmesh_api.identity import ControllerIdentity
from hostmesh_controller.authority import Authority, AuthorityError
from hostmesh_controller.authority_server import ServerCertificate

KEY = ec.generate_private_key(ec.SECP256R1())


def test_a_leaf_says_who_it_is_for_and_nothing_else(tmp_path: Path) -> None:
    authority, at = pki.new_authority(tmp_path), pki.now()
    issued = authority.issue(KEY.public_key(), pki.CART, at)
    leaf, intermediate = x509.load_pem_x509_certificates(issued.chain_pem)
    extensions = {each.oid: each for each in leaf.extensions}
    names = extensions[x509.SubjectAlternativeName.oid]
    constraints = extensions[x509.BasicConstraints.oid]
    usage = extensions[x509.KeyUsage.oid]
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(names.value) == [x509.UniformResourceIdentifier(pki.CART.uri)]
    assert names.critical
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert set(purposes) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert {x509.SubjectKeyIdentifier.oid, x509.AuthorityKeyIdentifier.oid} <= extensions.keys()
    assert leaf.public_key() == KEY.public_key()
    assert leaf.issuer == intermediate.subject
    assert len(leaf.subject) == 0


def test_a_leaf_begins_two_minutes_ago_and_lives_72_hours(tmp_path: Path) -> None:
    at = pki.now().replace(microsecond=0)
    issued = pki.new_authority(tmp_path).issue(KEY.public_key(), pki.CART, at)
    leaf = pki.leaf(issued.chain_pem)
    assert leaf.not_valid_before_utc == issued.not_before == at - timedelta(minutes=2)
    assert leaf.not_valid_after_utc == issued.not_after == at + timedelta(hours=72)


def test_a_leaf_never_outlives_its_issuer(tmp_path: Path) -> None:
    authority, at = pki.new_authority(tmp_path), pki.now()
    issued = authority.issue(KEY.public_key(), pki.CART, at, timedelta(days=10_000))
    leaf, intermediate = x509.load_pem_x509_certificates(issued.chain_pem)
    assert leaf.not_valid_after_utc == intermediate.not_valid_after_utc


def test_serials_are_positive_different_and_of_32_digits(tmp_path: Path) -> None:
    authority, at = pki.new_authority(tmp_path), pki.now()
    serials = {authority.issue(KEY.public_key(), pki.CART, at).serial for _ in range(50)}
    assert len(serials) == 50
    assert {len(serial) for serial in serials} == {32}
    chain = authority.issue(KEY.public_key(), pki.CART, at)
    assert int(chain.serial, 16) == pki.leaf(chain.chain_pem).serial_number > 0


@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_accepts_the_chain_in_its_strict_mode(tmp_path: Path, purpose: str) -> None:
    authority, at = pki.new_authority(tmp_path / "state"), pki.now()
    for name, identity in (("host", pki.HOST), ("cart", pki.CART)):
        (tmp_path / name).write_bytes(authority.issue(KEY.public_key(), identity, at).chain_pem)
        (tmp_path / "root").write_bytes(authority.bundle_pem)
        command = [
            "openssl",
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            "root",
            "-untrusted",
            name,
            name,
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr


def test_only_the_controller_gets_addresses(tmp_path: Path) -> None:
    authority, at = pki.new_authority(tmp_path), pki.now()
    with pytest.raises(ValueError, match="only the controller's certificate has addresses"):
        authority.issue(KEY.public_key(), pki.CART, at, addresses=["10.0.0.1"])


def test_another_trust_domain_gets_nothing(tmp_path: Path) -> None:
    authority, at = pki.new_authority(tmp_path), pki.now()
    with pytest.raises(ValueError, match=r"outside of the trust domain cluster\.local"):
        authority.issue(KEY.public_key(), ControllerIdentity("other.example"), at)


def test_a_second_start_finds_the_same_authority(tmp_path: Path) -> None:
    first, second = pki.new_authority(tmp_path), pki.new_authority(tmp_path)
    assert first.root_der == second.root_der
    assert pki.leaf(first.bundle_pem).serial_number == pki.leaf(second.bundle_pem).serial_number


def test_starts_at_the_same_time_agree_on_one_authority(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        authorities = list(pool.map(lambda _: pki.new_authority(tmp_path), range(8)))
    assert len({each.root_der for each in authorities}) == 1


def test_its_files_are_closed_to_others(tmp_path: Path) -> None:
    pki.new_authority(tmp_path)
    directory = tmp_path / "ca"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {each.name: each.stat().st_mode & 0o777 for each in directory.iterdir()} == {
        "bundle.pem": 0o600,
        "root.pem": 0o600,
        "roots.json": 0o600,
        "intermediate.pem": 0o600,
        "lock": 0o600,
    }


def test_a_crash_before_the_intermediate_is_finished(tmp_path: Path) -> None:
    root_der = pki.new_authority(tmp_path).root_der
    (tmp_path / "ca/intermediate.pem").unlink()
    (tmp_path / "ca/intermediate.new").write_bytes(b"half a fi")
    assert pki.new_authority(tmp_path).root_der == root_der
    assert not (tmp_path / "ca/intermediate.new").exists()


def test_a_crash_before_the_root_is_finished_with_a_new_root(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(mode=0o700)
    (tmp_path / "ca/root.new").write_bytes(b"-----BEGIN PRIV")
    assert pki.new_authority(tmp_path).root_der


def test_a_lost_root_is_refused_and_not_replaced(tmp_path: Path) -> None:
    pki.new_authority(tmp_path)
    (tmp_path / "ca/root.pem").unlink()
    with pytest.raises(AuthorityError, match=r"root\.pem is missing .* restore it from a backup"):
        pki.new_authority(tmp_path)
    assert not (tmp_path / "ca/root.pem").exists()


def test_a_damaged_root_names_file_and_cure(tmp_path: Path) -> None:
    pki.new_authority(tmp_path)
    path = tmp_path / "ca/root.pem"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(AuthorityError, match=r"root\.pem is damaged .* restore it from a backup"):
        pki.new_authority(tmp_path)


def test_a_damaged_intermediate_says_that_it_can_be_removed(tmp_path: Path) -> None:
    pki.new_authority(tmp_path)
    (tmp_path / "ca/intermediate.pem").write_bytes(b"")
    with pytest.raises(AuthorityError, match=r"intermediate\.pem is damaged .* remove it"):
        pki.new_authority(tmp_path)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    pki.new_authority(tmp_path / "a")
    pki.new_authority(tmp_path / "b")
    own, foreign = ((tmp_path / each / "ca/root.pem").read_bytes() for each in "ab")
    cut = b"-----BEGIN CERT"
    (tmp_path / "a/ca/root.pem").write_bytes(own[: own.index(cut)] + foreign[foreign.index(cut) :])
    with pytest.raises(AuthorityError, match="do not belong together"):
        pki.new_authority(tmp_path / "a")


def test_another_trust_domain_in_the_configuration_is_refused(tmp_path: Path) -> None:
    pki.new_authority(tmp_path)
    with pytest.raises(AuthorityError, match="set trust_domain back"):
        pki.new_authority(tmp_path, "other.example")


@pytest.mark.parametrize("name", ["ca", "ca/root.pem"])
def test_keys_that_others_may_read_are_refused_with_the_command_that_cures(tmp_path: Path, name: str) -> None:
    pki.new_authority(tmp_path)
    (tmp_path / name).chmod(0o750)
    with pytest.raises(AuthorityError, match=r"open to others \(mode 0750\): run `chmod go= "):
        pki.new_authority(tmp_path)


def test_an_expired_root_says_so(tmp_path: Path) -> None:
    pki.new_authority(tmp_path, at=pki.now() - timedelta(days=3651))
    with pytest.raises(AuthorityError, match="expired at"):
        pki.new_authority(tmp_path)


def test_the_intermediate_is_renewed_at_half_of_its_life_under_the_same_root(tmp_path: Path) -> None:
    authority, at = pki.new_authority(tmp_path), pki.now()

    def intermediate(days: int) -> x509.Certificate:
        issued = authority.issue(KEY.public_key(), pki.CART, at + timedelta(days=days))
        return x509.load_pem_x509_certificates(issued.chain_pem)[1]

    first, root_der = intermediate(0), authority.root_der
    assert intermediate(182) == first
    second = intermediate(183)
    assert second.public_key() != first.public_key()
    assert second.not_valid_after_utc > at + timedelta(days=540)
    restarted = pki.new_authority(tmp_path, at=at + timedelta(days=183))
    assert restarted.root_der == root_der == authority.root_der
    assert intermediate(184) == second


def test_a_full_disk_does_not_stop_signing_while_the_intermediate_is_good(tmp_path: Path) -> None:
    authority, at = pki.new_authority(tmp_path), pki.now()
    (tmp_path / "ca/intermediate.new").mkdir()  # so that writing fails, for root too
    later = at + timedelta(days=300)
    assert authority.issue(KEY.public_key(), pki.CART, later).not_after > later
    with pytest.raises(AuthorityError, match="cannot be written"):
        authority.issue(KEY.public_key(), pki.CART, at + timedelta(days=366))
    (tmp_path / "ca/intermediate.new").rmdir()
    assert authority.issue(KEY.public_key(), pki.CART, at + timedelta(days=366)).serial


def test_the_servers_certificate_has_the_addresses_and_is_renewed_by_itself(tmp_path: Path) -> None:
    at = pki.now()
    clock = [at]
    server = ServerCertificate(pki.new_authority(tmp_path), ["10.0.0.1", "fd00::1", "mesh.example"], lambda: clock[0])
    first = server.current()
    names = pki.leaf(first.chain_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1", "fd00::1"]
    assert names.get_values_for_type(x509.DNSName) == ["mesh.example"]
    assert pki.uris(pki.leaf(first.chain_pem)) == ["spiffe://cluster.local/hostmesh/controller"]
    clock[0] = at + timedelta(hours=35)
    assert server.current() is first
    clock[0] = at + timedelta(hours=37)
    second = server.current()
    assert second is not first
    assert second.key_pem != first.key_pem


def test_an_authority_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    pki.new_authority(tmp_path)
    os.chown(tmp_path / "ca", 65534, 65534)
    with pytest.raises(AuthorityError, match="belongs to uid 65534"):
        Authority.load_or_create(tmp_path, pki.TRUST_DOMAIN, pki.now())
