"""Machines' certificates as evidence: who is believed, and what each thing that is wrong with one costs."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

import pki
from hostmesh_agent import keys
from hostmesh_agent.evidence import EvidenceError as NoEvidenceError
from hostmesh_agent.evidence import MachineCertificate
from hostmesh_api.proof import JOIN, REATTEST, statement
from hostmesh_api.v1.hostmesh_pb2 import JoinRequest, X509Evidence
from hostmesh_controller.attest.evidence import Attested, EvidenceError, Shown
from hostmesh_controller.attest.x509pop import X509Attestor
from machines import SERVER, Issued, Key, authority, ec_key, key_pem

NONCE = b"n" * 56
ROOT = authority()
CSR = keys.request()[1]


def shown(leaf: Issued, *intermediates: Issued, signer: Key | None = None, said: bytes | None = None) -> Shown:
    """What a host shows that holds the leaf's key, or another one."""
    pem = b"".join(each.pem for each in (leaf, *intermediates))
    own = Issued(leaf.certificate, signer or leaf.key)
    data = statement(JOIN, NONCE, CSR) if said is None else said
    if signer is None:
        chain, signature = keys.machine_proof(key_pem(own.key), pem, data)
    else:
        decoy = ROOT.issue("x", key=signer)
        _, signature = keys.machine_proof(key_pem(signer), decoy.pem, data)
        chain = [each.der for each in (leaf, *intermediates)]
    evidence = X509Evidence(chain_der=chain, signature=signature)
    return Shown(JoinRequest(csr_der=CSR, nonce=NONCE, x509pop=evidence))


def verify(what: Shown, *roots: Issued, at: timedelta = timedelta()) -> Attested:
    trusted = [each.certificate for each in roots or (ROOT,)]
    return X509Attestor(lambda: trusted).verify(what, pki.now() + at)


def why_not(what: Shown, *roots: Issued, at: timedelta = timedelta()) -> str:
    with pytest.raises(EvidenceError) as raised:
        verify(what, *roots, at=at)
    return str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        ec_key,
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
)
def test_who_holds_the_key_of_a_trusted_certificate_is_whom_it_names(make: Callable[[], Key]) -> None:
    leaf = ROOT.issue("WEB-1", ["web-1.Example.org", "www.example.org"], key=make())
    attested = verify(shown(leaf))
    assert attested.names == [
        {"dns": "web-1.example.org", "dns_label": "web-1", "cn": "web-1", "cn_label": "web-1"},
        {"dns": "www.example.org", "dns_label": "www", "cn": "web-1", "cn_label": "web-1"},
    ]
    assert "issued by CN=Corp CA" in attested.summary
    assert (attested.kind, attested.subject, attested.approved) == ("x509pop", "", False)


def test_intermediates_come_along_and_a_common_name_alone_will_do() -> None:
    middle = ROOT.issue("Corp CA 2", ca=True)
    assert verify(shown(middle.issue("db-7.corp"), middle)).names == [{"cn": "db-7.corp", "cn_label": "db-7"}]
    assert verify(shown(middle.issue("db-7.corp"), middle, ROOT)).names
    assert "not trusted" in why_not(shown(middle.issue("db-7.corp")))


def test_a_certificate_without_its_key_proves_nothing() -> None:
    leaf = ROOT.issue("web-1")
    for signer in (ec_key(), rsa.generate_private_key(65537, 2048)):
        assert "signature is not of" in why_not(shown(leaf, signer=signer))


def test_a_signature_for_another_purpose_nonce_or_request_proves_nothing() -> None:
    leaf, other = ROOT.issue("web-1"), keys.request()[1]
    for said in (statement(REATTEST, NONCE, CSR), statement(JOIN, b"m" * 56, CSR), statement(JOIN, NONCE, other), b""):
        assert "signature is not of" in why_not(shown(leaf, said=said))


def test_an_authority_that_is_not_configured_is_nobody() -> None:
    foreign = authority()
    assert "not trusted" in why_not(shown(foreign.issue("web-1")))
    assert "not trusted" in why_not(shown(foreign.issue("web-1"), foreign))
    assert "not trusted" in why_not(shown(ROOT.issue("web-1")), foreign)


def test_times_usages_and_what_is_no_machine_are_refused() -> None:
    old = ROOT.issue("web-1", begins=pki.now() - timedelta(days=9), life=timedelta(days=8))
    assert "not trusted" in why_not(shown(old))
    assert "not trusted" in why_not(shown(ROOT.issue("web-1")), at=-timedelta(days=2))
    assert "no extended key usage clientAuth" in why_not(shown(ROOT.issue("web-1", usage=SERVER)))
    assert "no extended key usage clientAuth" in why_not(shown(ROOT.issue("web-1", usage=None)))
    assert "that of an authority" in why_not(shown(ROOT.issue("Corp CA 2", ca=True)))


def test_a_machine_is_no_authority_for_others() -> None:
    machine = ROOT.issue("web-1")
    assert "not trusted" in why_not(shown(machine.issue("web-2"), machine))
    forbidden = x509.KeyUsage(True, False, False, False, False, False, True, False, False)
    unsigning = ROOT.issue("Corp CA 2", ca=True, more=[(forbidden, True)])
    assert "not trusted" in why_not(shown(unsigning.issue("web-2"), unsigning))


def test_what_an_authority_may_not_name_it_cannot() -> None:
    bounds = x509.NameConstraints([x509.DNSName("lab.example.org")], None)
    bounded = ROOT.issue("Lab CA", ca=True, more=[(bounds, True)])
    assert verify(shown(bounded.issue("", ["a.lab.example.org"]), bounded))
    assert "not trusted" in why_not(shown(bounded.issue("", ["web-1.example.org"]), bounded))


def test_what_is_critical_and_unknown_is_refused() -> None:
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    assert "not trusted" in why_not(shown(ROOT.issue("web-1", more=[(strange, True)])))


def test_large_and_weak_keys_long_chains_and_huge_certificates_are_refused_before_they_are_used() -> None:
    # 16,384 bits take minutes to make: what is refused is the size, so a key of it is written down, not generated.
    for bits, said in ((1024, "RSA key of 1024 bits"), (16_384, "RSA key of 16384 bits")):
        leaf = ROOT.issue("web-1", key=None)
        numbers = rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) | 1)
        der = _with_key(leaf, numbers)
        evidence = X509Evidence(chain_der=[der], signature=b"\0" * (bits // 8))
        assert said in why_not(Shown(JoinRequest(csr_der=CSR, nonce=NONCE, x509pop=evidence)))
    chain = [ROOT.issue("web-1").der] * 6
    evidence = X509Evidence(chain_der=chain, signature=b"x")
    assert "a chain of 6 certificates" in why_not(Shown(JoinRequest(x509pop=evidence)))
    assert "a chain of 0 certificates" in why_not(Shown(JoinRequest(x509pop=X509Evidence())))
    many = ROOT.issue("web-1", [f"{number}.example.org" for number in range(600)])
    assert "bytes: at most 8192" in why_not(shown(many))
    evidence = X509Evidence(chain_der=[b"\x30\x82junk"])
    assert "cannot be read" in why_not(Shown(JoinRequest(x509pop=evidence)))


def _with_key(leaf: Issued, numbers: rsa.RSAPublicNumbers) -> bytes:
    """Return a certificate for a public key whose private one nobody has."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.certificate.subject)
        .issuer_name(ROOT.certificate.subject)
        .public_key(numbers.public_key())
        .serial_number(7)
        .not_valid_before(pki.now() - timedelta(days=1))
        .not_valid_after(pki.now() + timedelta(days=1))
    )
    assert isinstance(ROOT.key, ec.EllipticCurvePrivateKey)
    return builder.sign(ROOT.key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_summary_of_a_stranger_is_one_line_that_moves_no_cursor() -> None:
    attested = verify(shown(ROOT.issue("web-1\x1b[2J\nroot approved")))
    assert "\x1b" not in attested.summary
    assert "\n" not in attested.summary


def test_an_agent_whose_files_do_not_fit_says_so(tmp_path: Path) -> None:
    leaf = ROOT.issue("web-1")
    (tmp_path / "chain.pem").write_bytes(leaf.pem)
    (tmp_path / "key.pem").write_bytes(key_pem(ec_key()))
    files = MachineCertificate(tmp_path / "chain.pem", tmp_path / "key.pem")
    with pytest.raises(NoEvidenceError, match="not that of the first certificate"):
        files.make(NONCE, CSR)
    (tmp_path / "key.pem").unlink()
    with pytest.raises(NoEvidenceError, match=r"key\.pem: cannot be read: No such file"):
        files.make(NONCE, CSR)
