"""What a host signs to prove that it holds a key. Pure.

The text names its purpose, holds the controller's nonce and the digest of the certificate request that comes with it.
So a signature is good for one thing, once, and whoever steals it on the way gets a certificate for a key that they do
not have.
"""

import hashlib
from typing import Final

SSH_NAMESPACE: Final = "hostmesh"
"""Of SSH signatures (`ssh-keygen -Y sign -n hostmesh`): one made for anything else is worth nothing here."""
JOIN: Final = "join"
REATTEST: Final = "reattest"
_HEADER: Final = b"hostmesh proof 1\n"
_AZURE_DIGITS: Final = 10


def csr_digest(csr_der: bytes) -> bytes:
    """Return what binds a nonce to a certificate request."""
    return hashlib.sha256(csr_der).digest()


def statement(purpose: str, nonce: bytes, csr_der: bytes) -> bytes:
    """Return the bytes to sign."""
    return _HEADER + b"".join(
        f"{name} {value}\n".encode()
        for name, value in (("purpose", purpose), ("nonce", nonce.hex()), ("csr", csr_digest(csr_der).hex()))
    )


def audience(nonce: bytes, csr_der: bytes) -> str:
    """Return the audience for which a GCP instance must ask its identity token."""
    return f"hostmesh:{hashlib.sha256(statement(JOIN, nonce, csr_der)).hexdigest()}"


def azure_nonce(nonce: bytes, csr_der: bytes) -> str:
    """Return the nonce that an Azure instance must ask to be attested with: ten digits, more there is no room for."""
    number = int.from_bytes(hashlib.sha256(statement(JOIN, nonce, csr_der)).digest())
    return f"{number % 10**_AZURE_DIGITS:0{_AZURE_DIGITS}d}"
