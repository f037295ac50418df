"""A host's SSH key: pinned for the host by its fingerprint, or certified as a host's by an SSH authority. Pure."""

import base64
import binascii
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import SSHCertificate, SSHCertificateType, ssh_key_fingerprint

from hostmesh_api.proof import SSH_NAMESPACE
from hostmesh_controller.attest import sshsig
from hostmesh_controller.attest.evidence import Attested, EvidenceError, Shown, printable
from hostmesh_controller.attest.signatures import PublicKey, key_problem

MAX_PRINCIPALS: Final = 64
_MAX_LINE: Final = 8192


@dataclass(frozen=True, slots=True)
class SshAttestor:
    """Looks at host keys.

    `authorities` returns the fingerprints of the keys that certify hosts; `pins` those that the operator registered
    for the host of that name.
    """

    authorities: Callable[[], Collection[str]]
    pins: Callable[[str], Collection[str]]

    def verify(self, shown: Shown, now: datetime) -> Attested:
        evidence = shown.request.ssh
        signature = sshsig.read(evidence.signature)
        identity = signature.identity
        if evidence.certificate:
            identity = sshsig.read_identity(_blob(evidence.certificate))
        names = self._certified(identity, now) if isinstance(identity, SSHCertificate) else []
        key = _key(identity)
        if not sshsig.signed(signature, key, SSH_NAMESPACE, shown.statement):
            raise EvidenceError("the signature is not of the host's key, or not made for this")
        print_ = fingerprint_of(key)
        if isinstance(identity, SSHCertificate):
            who = identity.key_id.decode(errors="replace")
            return Attested("ssh", names, printable(f"SSH host certificate {who!r}, key {print_}"))
        if print_ not in self.pins(shown.wanted):
            raise EvidenceError(f"the key {print_} is not registered for host {printable(shown.wanted)!r}")
        return Attested("ssh", [{"principal": shown.wanted}], f"SSH host key {print_}", approved=True)

    def _certified(self, certificate: SSHCertificate, now: datetime) -> list[dict[str, str]]:
        """Return the names of a host's certificate that an authority of ours signed."""
        _check_authority(certificate, self.authorities())
        if certificate.type is not SSHCertificateType.HOST:
            raise EvidenceError("the SSH certificate is a user's, not a host's")
        if certificate.critical_options:
            raise EvidenceError("the SSH certificate has critical options, which host certificates do not")
        if not certificate.valid_after <= now.timestamp() < certificate.valid_before:
            raise EvidenceError("the SSH certificate is not valid at this time")
        names = [each.decode(errors="replace").lower() for each in certificate.valid_principals]
        if not 1 <= len(names) <= MAX_PRINCIPALS:
            raise EvidenceError(f"the SSH certificate has {len(names)} principals: 1 to {MAX_PRINCIPALS} are taken")
        return [{"principal": each, "principal_label": each.partition(".")[0]} for each in names]


def fingerprint_of(key: PublicKey) -> str:
    """Return a key's fingerprint as `ssh-keygen -l` shows it."""
    return "SHA256:" + base64.b64encode(ssh_key_fingerprint(key, hashes.SHA256())).rstrip(b"=").decode()


def read_authorities(text: str) -> list[str]:
    """Return the fingerprints of the keys in a file, one public key a line, as sshd's TrustedUserCAKeys has them.

    Raises:
        ValueError: a line is no public key.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            identity = sshsig.read_identity(_blob(line))
        except EvidenceError as error:
            raise ValueError(f"line {number}: {error}") from error
        if isinstance(identity, SSHCertificate):
            raise ValueError(f"line {number}: a certificate, where the public key of an authority is expected")
        found.append(fingerprint_of(identity))
    return found


def _check_authority(certificate: SSHCertificate, trusted: Collection[str]) -> None:
    try:
        authority = certificate.signature_key()
        problem = key_problem(authority)
        if problem is not None:
            raise EvidenceError(f"the SSH authority has {problem}")
        assert isinstance(authority, PublicKey)
        if fingerprint_of(authority) not in trusted:
            raise EvidenceError(
                f"the SSH certificate is of an authority that is not configured: {fingerprint_of(authority)}"
            )
        if isinstance(authority, rsa.RSAPublicKey) and not _is_sha2(certificate, authority):
            raise EvidenceError("the SSH certificate is signed with SHA-1")
        certificate.verify_cert_signature()
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, AssertionError) as error:
        raise EvidenceError("the SSH certificate is not signed by its authority") from error


def _is_sha2(certificate: SSHCertificate, authority: rsa.RSAPublicKey) -> bool:
    """Tell whether an RSA authority signed with SHA-2: the signature is last, and its algorithm stands before it."""
    blob = _blob(certificate.public_bytes().decode())
    before = blob[: -((authority.key_size + 7) // 8) - 4]
    return before.endswith((b"rsa-sha2-256", b"rsa-sha2-512"))


def _key(identity: SSHCertificate | PublicKey) -> PublicKey:
    key = identity.public_key() if isinstance(identity, SSHCertificate) else identity
    assert isinstance(key, PublicKey)
    return key


def _blob(line: str) -> bytes:
    """Return what a line of a .pub file holds in base64."""
    words = line.split(None, 2) if len(line) <= _MAX_LINE else []
    try:
        return base64.b64decode(words[1], validate=True)
    except (IndexError, binascii.Error, ValueError) as error:
        raise EvidenceError("no SSH public key") from error
