"""SSH host keys and certificates as evidence, made by the real ssh-keygen."""

import base64
import subprocess
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

import pytest

import pki
from hostmesh_agent import keys
from hostmesh_agent.evidence import EvidenceError as NoEvidenceError
from hostmesh_agent.evidence import SshHostKey
from hostmesh_api.proof import JOIN, SSH_NAMESPACE, statement
from hostmesh_api.v1.hostmesh_pb2 import HostFacts, JoinRequest, SshEvidence
from hostmesh_controller.attest import sshsig
from hostmesh_controller.attest.evidence import Attested, EvidenceError, Shown
from hostmesh_controller.attest.ssh import SshAttestor, read_authorities
from machines import ssh_certificate, ssh_fingerprint, ssh_key

NONCE = b"n" * 56
CSR = keys.request()[1]


def shown(key: Path, certificate: Path | None = None, hostname: str = "web-1") -> Shown:
    """What a host with that key shows, as its agent makes it."""
    request = SshHostKey(key, certificate).make(NONCE, CSR)
    request.MergeFrom(JoinRequest(csr_der=CSR, nonce=NONCE, facts=HostFacts(hostname=hostname)))
    return Shown(request)


def signed(key: Path, said: bytes, namespace: str = SSH_NAMESPACE, *more: str) -> str:
    command = ["ssh-keygen", "-Y", "sign", "-q", "-n", namespace, *more, "-f", str(key)]
    return subprocess.run(command, input=said, capture_output=True, check=True).stdout.decode()


def verify(
    what: Shown, pins: Collection[str] = (), authorities: Collection[str] = (), at: timedelta = timedelta()
) -> Attested:
    attestor = SshAttestor(lambda: authorities, lambda host: pins if host == "web-1" else ())
    return attestor.verify(what, pki.now() + at)


def why_not(
    what: Shown, pins: Collection[str] = (), authorities: Collection[str] = (), at: timedelta = timedelta()
) -> str:
    with pytest.raises(EvidenceError) as raised:
        verify(what, pins, authorities, at)
    return str(raised.value)


def of(key: Path, text: str, certificate: str = "") -> Shown:
    evidence = SshEvidence(certificate=certificate, signature=text)
    return Shown(JoinRequest(csr_der=CSR, nonce=NONCE, facts=HostFacts(hostname="web-1"), ssh=evidence))


@pytest.mark.parametrize(("kind", "bits"), [("ed25519", None), ("ecdsa", 256), ("ecdsa", 521), ("rsa", 2048)])
def test_a_pinned_host_key_is_the_host_that_it_is_registered_for(tmp_path: Path, kind: str, bits: int | None) -> None:
    key = ssh_key(tmp_path / "key", kind, bits)
    attested = verify(shown(key), [ssh_fingerprint(key)])
    assert attested.names == [{"principal": "web-1"}]
    assert attested.approved
    assert ssh_fingerprint(key) in attested.summary
    assert "is not registered for host 'web-2'" in why_not(shown(key, hostname="web-2"), [ssh_fingerprint(key)])
    assert "is not registered for host 'web-1'" in why_not(shown(key), [ssh_fingerprint(ssh_key(tmp_path / "other"))])


def test_a_signature_for_another_namespace_purpose_or_nonce_proves_nothing(tmp_path: Path) -> None:
    key = ssh_key(tmp_path / "key")
    pins, said = [ssh_fingerprint(key)], statement(JOIN, NONCE, CSR)
    assert verify(of(key, signed(key, said)), pins)
    # git and file are what others sign for.
    for wrong in (signed(key, said, "git"), signed(key, said + b"x"), signed(key, statement(JOIN, b"m" * 56, CSR))):
        assert "not made for this" in why_not(of(key, wrong), pins)


def test_the_signature_is_of_the_key_that_is_believed(tmp_path: Path) -> None:
    """A certificate of another key beside one's own signature, and another's key blob inside the signature."""
    ca, host, thief = ssh_key(tmp_path / "ca"), ssh_key(tmp_path / "host"), ssh_key(tmp_path / "thief")
    certificate = ssh_certificate(ca, host, "web-1").read_text()
    mine = signed(thief, statement(JOIN, NONCE, CSR))
    assert "not of the host's key" in why_not(of(thief, mine, certificate), authorities=[ssh_fingerprint(ca)])
    blobs = [base64.b64decode((tmp_path / f"{name}.pub").read_text().split()[1]) for name in ("thief", "host")]
    body = base64.b64decode("".join(mine.splitlines()[1:-1]))
    swapped = base64.b64encode(body.replace(blobs[0], blobs[1])).decode()
    text = f"-----BEGIN SSH SIGNATURE-----\n{swapped}\n-----END SSH SIGNATURE-----\n"
    assert "not of the host's key" in why_not(of(thief, text), [ssh_fingerprint(host)])


@pytest.mark.parametrize(("kind", "bits"), [("ed25519", None), ("ecdsa", 384), ("rsa", 3072)])
def test_a_host_certificate_of_a_configured_authority_is_believed_for_its_principals(
    tmp_path: Path, kind: str, bits: int | None
) -> None:
    ca, key = ssh_key(tmp_path / "ca", kind, bits), ssh_key(tmp_path / "key")
    certificate = ssh_certificate(ca, key, "web-1.Example.org,web-1", "-V", "-1d:+1d")
    attested = verify(shown(key, certificate), authorities=[ssh_fingerprint(ca)])
    names = [each["principal"] for each in attested.names]
    assert names == ["web-1.example.org", "web-1"]
    assert attested.names[0]["principal_label"] == "web-1"
    assert not attested.approved
    assert read_authorities(f"# ours\n\n{Path(f'{ca}.pub').read_text()}") == [ssh_fingerprint(ca)]


def test_a_certificate_that_is_not_a_hosts_of_ours_and_of_today_is_refused(tmp_path: Path) -> None:
    ca, foreign = ssh_key(tmp_path / "ca"), ssh_key(tmp_path / "foreign")

    def said(name: str, *more: str, by: Path = ca, host: bool = True, at: timedelta = timedelta()) -> str:
        key = ssh_key(tmp_path / name)
        certificate = ssh_certificate(by, key, "web-1", *more, host=host)
        return why_not(shown(key, certificate), [ssh_fingerprint(key)], [ssh_fingerprint(ca)], at)

    assert "authority that is not configured" in said("a", by=foreign)
    assert "a user's, not a host's" in said("b", host=False)
    assert "not valid at this time" in said("c", "-V", "-2d:-1d")
    assert "not valid at this time" in said("d", "-V", "+1d:+2d")
    assert "critical options" in said("e", "-O", "critical:x@example.org=1")
    assert "not valid at this time" in said("f", "-V", "-1d:+1d", at=timedelta(days=2))


def test_a_certificate_of_everybody_is_of_nobody(tmp_path: Path) -> None:
    ca, key = ssh_key(tmp_path / "ca"), ssh_key(tmp_path / "key")
    subprocess.run(["ssh-keygen", "-q", "-s", ca, "-I", "x", "-h", f"{key}.pub"], check=True)
    certificate = tmp_path / "key-cert.pub"
    assert "has 0 principals" in why_not(shown(key, certificate), authorities=[ssh_fingerprint(ca)])


def test_a_changed_certificate_and_one_signed_with_sha1_are_refused(tmp_path: Path) -> None:
    ca, key = ssh_key(tmp_path / "ca", "rsa", 2048), ssh_key(tmp_path / "key")
    certificate = ssh_certificate(ca, key, "web-1", "-t", "rsa-sha2-256")
    authorities = [ssh_fingerprint(ca)]
    assert verify(shown(key, certificate), authorities=authorities)
    kind, text, *_ = certificate.read_text().split()
    blob = base64.b64decode(text)
    for changed, reason in (
        (blob.replace(b"web-1", b"web-2"), "not signed by its authority"),
        # 12 characters become 7, in the two lengths around them too.
        (
            blob.replace(
                (12 + 8 + 256).to_bytes(4) + (12).to_bytes(4) + b"rsa-sha2-256",
                (7 + 8 + 256).to_bytes(4) + (7).to_bytes(4) + b"ssh-rsa",
            ),
            "signed with SHA-1",
        ),
    ):
        assert changed != blob
        line = f"{kind} {base64.b64encode(changed).decode()}"
        text = signed(key, statement(JOIN, NONCE, CSR))
        assert reason in why_not(of(key, text, line), authorities=authorities)


def test_what_is_no_signature_or_key_or_too_large_is_refused(tmp_path: Path) -> None:
    key = ssh_key(tmp_path / "key")
    whole = signed(key, statement(JOIN, NONCE, CSR))
    body = base64.b64decode("".join(whole.splitlines()[1:-1]))

    def armored(data: bytes) -> str:
        return f"-----BEGIN SSH SIGNATURE-----\n{base64.b64encode(data).decode()}\n-----END SSH SIGNATURE-----\n"

    for bad in (
        "",
        "junk",
        whole + "x" * 9000,
        armored(b""),
        armored(b"SSHSIG"),
        armored(body + b"x"),
        armored(body[:-1]),
    ):
        why_not(of(key, bad), [ssh_fingerprint(key)])
    for at in range(0, len(body), 3):
        changed = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        assert why_not(of(key, armored(changed)), [ssh_fingerprint(key)])
    assert "another version" in why_not(of(key, armored(b"SSHSIG" + (2).to_bytes(4) + body[10:])))
    for line in ("junk", "ssh-ed25519 AAAA", "x" * 9000, "ssh-ed25519 " + "A" * 100):
        why_not(of(key, whole, line), [ssh_fingerprint(key)])
    large = (1 << 8191) | 1
    fields = (b"ssh-rsa", (65537).to_bytes(3), b"\0" + large.to_bytes(1024))
    blob = b"".join(len(each).to_bytes(4) + each for each in fields)
    with pytest.raises(EvidenceError, match="RSA key of 8192 bits"):
        sshsig.read_identity(blob)


def test_an_agent_that_cannot_sign_says_why(tmp_path: Path) -> None:
    with pytest.raises(NoEvidenceError, match=r"ssh-keygen cannot sign with .*nothing"):
        SshHostKey(tmp_path / "nothing").make(NONCE, CSR)
