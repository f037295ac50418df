"""Signed messages of clouds (CMS, PKCS #7): the content, once the signature is checked. Pure.

Only what clouds make is taken: one signer, RSA with SHA-2, the content inside. AWS writes BER of indefinite length.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asn1crypto import cms
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from hostmesh_controller.attest.chains import MAX_CHAIN, read_chain
from hostmesh_controller.attest.evidence import EvidenceError

MAX_BYTES: Final = 16 * 1024
"""A document with its chain has about 6,000."""
_DIGESTS: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_SIGNATURES: Final = ("rsassa_pkcs1v15", "sha256_rsa", "sha384_rsa", "sha512_rsa")


@dataclass(frozen=True, slots=True)
class Signer:
    """Whom a message says it is from. `certificates` are those inside; `serial` and `issuer` tell which is the one."""

    certificates: Sequence[x509.Certificate]
    issuer: bytes
    serial: int

    def is_of(self, certificate: x509.Certificate) -> bool:
        """Tell whether a certificate is the one that is named."""
        return certificate.serial_number == self.serial and certificate.issuer.public_bytes() == self.issuer


def content_of(text: bytes, certificate_of: Callable[[Signer], x509.Certificate]) -> bytes:
    """Return the content of a message, signed by the certificate that `certificate_of` finds to be trusted.

    Args:
        text: base64.
        certificate_of: returns the certificate of a signer, or raises EvidenceError.

    Raises:
        EvidenceError: no such message, or not signed so.
    """
    if len(text) > MAX_BYTES:
        raise EvidenceError(f"a signed document of {len(text)} bytes: at most {MAX_BYTES} are taken")
    try:
        return _content(base64.b64decode(b"".join(text.split()), validate=True), certificate_of)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, binascii.Error) as error:
        raise EvidenceError(f"a signed document that cannot be read: {type(error).__name__}") from error


def _content(der: bytes, certificate_of: Callable[[Signer], x509.Certificate]) -> bytes:
    info = cms.ContentInfo.load(der, strict=True)
    if info["content_type"].native != "signed_data":
        raise EvidenceError("not a signed document")
    signed = info["content"]
    if len(signed["signer_infos"]) != 1 or signed["encap_content_info"]["content_type"].native != "data":
        raise EvidenceError("a signed document with other than one signer of its data")
    content = bytes(signed["encap_content_info"]["content"])
    signer = signed["signer_infos"][0]
    digest = str(signer["digest_algorithm"]["algorithm"].native)
    if digest not in _DIGESTS or signer["signature_algorithm"]["algorithm"].native not in _SIGNATURES:
        raise EvidenceError("a document signed with another algorithm than RSA and SHA-2")
    key = certificate_of(_signer(signed, signer)).public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise EvidenceError("a document signed with another kind of key than RSA")
    data = _signed_data(signer, content, digest)
    try:
        key.verify(bytes(signer["signature"]), data, padding.PKCS1v15(), _DIGESTS[digest])
    except InvalidSignature as error:
        raise EvidenceError("a document whose signature is not its signer's") from error
    return content


def _signer(signed: Any, signer: Any) -> Signer:
    if signer["sid"].name != "issuer_and_serial_number":
        raise EvidenceError("a document whose signer is not named by issuer and serial number")
    sid = signer["sid"].chosen
    inside = [bytes(each.chosen.dump()) for each in signed["certificates"] or ()]
    certificates = read_chain(inside) if 0 < len(inside) <= MAX_CHAIN else []
    return Signer(certificates, bytes(sid["issuer"].dump()), int(sid["serial_number"].native))


def _signed_data(signer: Any, content: bytes, digest: str) -> bytes:
    """Return what is signed: the content, or attributes that hold its digest."""
    attributes = signer["signed_attrs"]
    if not attributes:
        return content
    found = {str(each["type"].native): each["values"] for each in attributes}
    if len(found) != len(attributes) or not {"content_type", "message_digest"} <= set(found):
        raise EvidenceError("a signed document whose attributes are not as they must be")
    own = hashlib.new(digest, content).digest()
    one_each = len(found["content_type"]) == len(found["message_digest"]) == 1
    if not one_each or found["content_type"][0].native != "data":
        raise EvidenceError("a signed document whose attributes are not as they must be")
    if not hmac.compare_digest(own, bytes(found["message_digest"][0])):
        raise EvidenceError("a signed document whose content was changed")
    # Signed as a SET, whatever its tag is inside the message (RFC 5652, section 5.4).
    return bytes(attributes.untag().dump(force=True))
