"""An intermediate that others made, as files: what is taken, what is refused, and how it is exchanged."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

import pki
from hostmesh_agent.keys import checked, key_pem
from hostmesh_controller.authority import Authority, AuthorityError
from hostmesh_controller.authority_cacerts import CaCerts
from hostmesh_controller.authority_certificates import SigningKey, pem
from hostmesh_controller.authority_upstream import Demand

DEMAND = Demand(pki.TRUST_DOMAIN, ("10.1.0.1", "mesh.example.org"))
KEY = ec.generate_private_key(ec.SECP256R1())
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Terms:
    """What an authority of a test says of itself."""

    ca: bool = True
    path_length: int | None = None
    begin: timedelta = -DAY
    end: timedelta = 300 * DAY
    signs: bool = True
    constraints: x509.NameConstraints | None = None


@dataclass(frozen=True)
class Made:
    key: SigningKey
    certificate: x509.Certificate


def made(name: str, by: Made | None = None, terms: Terms = Terms(), key: SigningKey | None = None) -> Made:
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = pki.now()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + terms.begin)
        .not_valid_after(now + terms.end)
        .add_extension(x509.BasicConstraints(terms.ca, terms.path_length if terms.ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=terms.signs,
                crl_sign=terms.signs,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if terms.constraints is not None:
        builder = builder.add_extension(terms.constraints, critical=True)
    return Made(key, builder.sign(key if by is None else by.key, hashes.SHA256()))


def key_bytes(
    key: SigningKey,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption = NoEncryption(),  # noqa: B008 - it is immutable
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, encryption)


@dataclass(frozen=True)
class Files:
    """What is to be in the directory; `above` is between the intermediate and the root."""

    own: Made
    root: Made
    above: tuple[Made, ...] = ()
    key: bytes = b""
    more_roots: tuple[Made, ...] = ()

    def write(self, directory: Path) -> Path:
        directory.mkdir(mode=0o755, exist_ok=True)
        chain = pem([each.certificate for each in (self.own, *self.above)])
        (directory / "ca-cert.pem").write_bytes(pem([self.own.certificate]))
        (directory / "ca-key.pem").write_bytes(self.key or key_bytes(self.own.key))
        (directory / "ca-key.pem").chmod(0o600)
        # As Istio's own tools make it: the root is at its end.
        (directory / "cert-chain.pem").write_bytes(chain + pem([self.root.certificate]))
        (directory / "root-cert.pem").write_bytes(pem([each.certificate for each in (self.root, *self.more_roots)]))
        return directory


def plain(root: Made | None = None) -> Files:
    root = root or made("corporate root")
    return Files(made("mesh intermediate", root), root)


def authority(tmp_path: Path, at: datetime | None = None) -> Authority:
    upstream = CaCerts(tmp_path / "cacerts", DEMAND)
    return Authority.load_or_create(tmp_path / "state", pki.TRUST_DOMAIN, at or pki.now(), upstream)


def verifies(directory: Path, chain_pem: bytes, roots_pem: bytes) -> bool:
    (directory / "chain").write_bytes(chain_pem)
    (directory / "roots").write_bytes(roots_pem)
    command = ["openssl", "verify", "-CAfile", "roots", "-untrusted", "chain", "chain"]
    return subprocess.run(command, cwd=directory, capture_output=True, timeout=20).returncode == 0


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("kind", ["p256", "p384", "rsa"])
def test_keys_of_each_kind_and_form_sign_leaves_that_verify(tmp_path: Path, kind: str, form: PrivateFormat) -> None:
    keys: dict[str, Callable[[], SigningKey]] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
    }
    root = made("corporate root", key=keys[kind]())
    own = made("mesh intermediate", root, key=keys[kind]())
    Files(own, root, key=key_bytes(own.key, form)).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    assert found.bundle_pem == pem([root.certificate])
    assert verifies(tmp_path, issued.chain_pem, found.bundle_pem)
    assert checked(key_pem(KEY), issued.chain_pem, found.bundle_pem, pki.CART, pki.now())


def test_intermediates_above_it_travel_with_each_leaf_and_the_root_does_not(tmp_path: Path) -> None:
    root = made("corporate root")
    policy = made("policy", root)
    Files(made("mesh intermediate", policy), root, (policy,)).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    names = [each.subject.rfc4514_string() for each in x509.load_pem_x509_certificates(issued.chain_pem)]
    assert names == ["", "CN=mesh intermediate", "CN=policy"]
    assert verifies(tmp_path, issued.chain_pem, found.bundle_pem)


def test_what_was_taken_is_kept_closed_to_others_and_needs_the_files_no_more(tmp_path: Path) -> None:
    plain().write(tmp_path / "cacerts")
    before = authority(tmp_path).issue(KEY.public_key(), pki.CART, pki.now())
    shutil.rmtree(tmp_path / "cacerts")
    found = authority(tmp_path)
    after = found.issue(KEY.public_key(), pki.CART, pki.now())
    assert after.chain_pem.split(b"-----END")[1:] == before.chain_pem.split(b"-----END")[1:]
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "state/ca").iterdir()} == {0o600}
    found.tend(pki.now())
    assert "[ca] dir must hold" in found.problem


ROOT = made("corporate root")
OWN = made("mesh intermediate", ROOT)


def constrained(**names: list[x509.GeneralName]) -> Files:
    permitted, excluded = names.get("permitted"), names.get("excluded")
    own = made("mesh intermediate", ROOT, Terms(constraints=x509.NameConstraints(permitted, excluded)))
    return Files(own, ROOT)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (replace(plain(ROOT), key=key_bytes(KEY)), "the key is not that of the certificate"),
        (replace(plain(ROOT), key=b"junk"), "no private key in PEM"),
        (
            Files(OWN, ROOT, key=key_bytes(OWN.key, encryption=BestAvailableEncryption(b"x"))),
            "is encrypted: the controller has nobody to ask",
        ),
        (
            replace(
                plain(ROOT),
                key=ed25519.Ed25519PrivateKey.generate().private_bytes(
                    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
                ),
            ),
            "give an RSA or EC key",
        ),
        (Files(made("weak", ROOT, key=rsa.generate_private_key(65537, 1024)), ROOT), "1024 bits is too weak"),
        (Files(made("leaf", ROOT, Terms(ca=False)), ROOT), "CN=leaf' is not that of an authority"),
        (Files(made("shy", ROOT, Terms(signs=False)), ROOT), "lacks keyCertSign"),
        (Files(made("late", ROOT, Terms(begin=-2 * DAY, end=-DAY)), ROOT), "CN=late' expired at"),
        (Files(made("early", ROOT, Terms(begin=DAY)), ROOT), "CN=early' is valid only from"),
        (Files(OWN, made("other root")), "was not issued by any of the roots"),
        (Files(OWN, ROOT, (made("between", ROOT),)), "was not issued by the certificate"),
        (Files(ROOT, ROOT), "is itself a root"),
        (constrained(permitted=[x509.UniformResourceIdentifier("other.org")]), "do not allow URI cluster.local"),
        (constrained(excluded=[x509.UniformResourceIdentifier("cluster.local")]), "do not allow URI cluster.local"),
        (constrained(permitted=[x509.DNSName("example.com")]), "do not allow DNS mesh.example.org"),
        (constrained(permitted=[x509.IPAddress(ip_network("10.2.0.0/16"))]), "do not allow IP 10.1.0.1"),
        (constrained(excluded=[x509.IPAddress(ip_network("10.1.0.0/16"))]), "do not allow IP 10.1.0.1"),
    ],
)
def test_files_that_cannot_sign_for_the_mesh_are_refused_with_the_reason(
    tmp_path: Path, files: Files, reason: str
) -> None:
    files.write(tmp_path / "cacerts")
    with pytest.raises(AuthorityError, match=reason):
        authority(tmp_path)
    # A start with better files begins from nothing.
    plain().write(tmp_path / "cacerts")
    assert authority(tmp_path).bundle_pem


def test_a_path_length_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    root = made("corporate root", terms=Terms(path_length=1))
    policy = made("policy", root)
    Files(made("mesh intermediate", policy), root, (policy,)).write(tmp_path / "cacerts")
    with pytest.raises(AuthorityError, match="CN=corporate root' allows a path length of 1, and 2 authorities"):
        authority(tmp_path)


def test_constraints_that_allow_what_is_needed_are_taken(tmp_path: Path) -> None:
    constrained(
        permitted=[
            x509.UniformResourceIdentifier("cluster.local"),
            x509.DNSName("example.org"),
            x509.IPAddress(ip_network("10.1.0.0/16")),
        ],
        excluded=[x509.DNSName("bank.example.org")],
    ).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    assert verifies(tmp_path, issued.chain_pem, found.bundle_pem)


def test_files_that_others_may_read_or_exchange_are_refused_with_the_command_that_cures(tmp_path: Path) -> None:
    directory = plain().write(tmp_path / "cacerts")
    (directory / "ca-key.pem").chmod(0o640)
    with pytest.raises(AuthorityError, match=r"open to others \(mode 0640\): run `chmod go= .*ca-key.pem`"):
        authority(tmp_path)
    (directory / "ca-key.pem").chmod(0o600)
    directory.chmod(0o777)
    with pytest.raises(AuthorityError, match=r"written by others \(mode 0777\): run `chmod go-w"):
        authority(tmp_path)


@pytest.mark.parametrize("name", ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (plain().write(tmp_path / "cacerts") / name).unlink()
    with pytest.raises(AuthorityError, match=name):
        authority(tmp_path)


# Exchange


def test_another_intermediate_of_the_same_root_signs_at_once(tmp_path: Path) -> None:
    root = made("corporate root")
    plain(root).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    found.tend(pki.now())
    before, bundle = found.signing_until, found.bundle_pem
    second = made("second intermediate", root, Terms(end=200 * DAY))
    Files(second, root).write(tmp_path / "cacerts")
    found.tend(pki.now())
    assert not found.problem
    assert found.signing_until == second.certificate.not_valid_after_utc != before
    assert found.bundle_pem == bundle
    assert authority(tmp_path).signing_until == found.signing_until


def test_another_root_is_trusted_first_and_signs_when_it_is_activated(tmp_path: Path) -> None:
    first, second = made("first root"), made("second root")
    plain(first).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    plain(second).write(tmp_path / "cacerts")
    found.tend(pki.now())
    assert found.bundle_pem == pem([first.certificate, second.certificate])
    for again in (found, authority(tmp_path)):
        issued = again.issue(KEY.public_key(), pki.CART, pki.now())
        assert verifies(tmp_path, issued.chain_pem, pem([first.certificate]))
    found.activate(pki.now())
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    assert verifies(tmp_path, issued.chain_pem, pem([second.certificate]))
    assert not verifies(tmp_path, issued.chain_pem, pem([first.certificate]))
    found.taint(None, pki.now(), timedelta())
    found.revoke(None, pki.now(), compromised=False)
    assert found.bundle_pem == pem([second.certificate])


def test_a_root_of_our_own_hands_over_to_one_of_files_and_vouches_for_it(tmp_path: Path) -> None:
    own = pki.new_authority(tmp_path / "state").bundle_pem
    root = made("corporate root")
    plain(root).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    found.tend(pki.now())
    found.activate(pki.now())
    issued = found.issue(KEY.public_key(), pki.CART, pki.now())
    for roots in (own, pem([root.certificate])):
        assert verifies(tmp_path, issued.chain_pem, roots)


def test_more_roots_in_the_file_are_trusted_too(tmp_path: Path) -> None:
    root, other = made("corporate root"), made("other root")
    replace(plain(root), more_roots=(other,)).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    assert found.bundle_pem == pem([root.certificate, other.certificate])
    replace(plain(root), more_roots=()).write(tmp_path / "cacerts")
    found.tend(pki.now())
    assert found.bundle_pem == pem([root.certificate])


def test_files_that_do_not_fit_leave_the_old_ones_signing_and_raise_the_alarm(tmp_path: Path) -> None:
    plain().write(tmp_path / "cacerts")
    found = authority(tmp_path)
    found.tend(pki.now())
    # Half of a copy: the certificate is new, its key is not yet.
    (tmp_path / "cacerts/ca-cert.pem").write_bytes(pem([made("half", made("root")).certificate]))
    found.tend(pki.now())
    assert "the key is not that of the certificate" in found.problem
    assert found.issue(KEY.public_key(), pki.CART, pki.now())
    plain().write(tmp_path / "cacerts")
    found.tend(pki.now())
    assert not found.problem


def test_nothing_is_signed_beyond_the_intermediates_end(tmp_path: Path) -> None:
    root = made("corporate root")
    own = made("mesh intermediate", root, Terms(end=DAY))
    Files(own, root).write(tmp_path / "cacerts")
    found = authority(tmp_path)
    assert found.issue(KEY.public_key(), pki.CART, pki.now()).not_after == own.certificate.not_valid_after_utc
    with pytest.raises(AuthorityError, match="ended at"):
        found.issue(KEY.public_key(), pki.CART, pki.now() + 2 * DAY)
