"""JSON Web Tokens for tests, signed (and forged) by hand."""

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value: int, size: int = 0) -> str:
    return base64url(value.to_bytes(size or (value.bit_length() + 7) // 8))


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    return ".".join(base64url(json.dumps(part).encode()) for part in (header, claims))


def claims_of(issuer: str, **more: Any) -> dict[str, Any]:
    """Return claims that hold for an hour; a claim that is given as None is left out."""
    now = int(time.time())
    found = {"iss": issuer, "sub": "somebody", "iat": now, "exp": now + 3600, **more}
    return {name: value for name, value in found.items() if value is not None}


@cache
def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """Return a key; of one name always the same."""
    return rsa.generate_private_key(65537, 2048)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    """Return a key; of one name always the same."""
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Signer:
    """Signs with RS256, or with ES256. `kid` names its key."""

    kid: str
    elliptic: bool = False
    more: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public key, as a member of a key set."""
        return {**self._key(), "kid": self.kid, "alg": self.algorithm, "use": "sig", **self.more}

    @property
    def algorithm(self) -> str:
        return "ES256" if self.elliptic else "RS256"

    def _key(self) -> dict[str, Any]:
        if self.elliptic:
            point = ec_key(self.kid).public_key().public_numbers()
            return {"kty": "EC", "crv": "P-256", "x": number(point.x, 32), "y": number(point.y, 32)}
        public = rsa_key(self.kid).public_key().public_numbers()
        return {"kty": "RSA", "n": number(public.n), "e": number(public.e)}

    @property
    def private_jwk(self) -> dict[str, Any]:
        private = rsa_key(self.kid).private_numbers()
        return {**self.jwk, "d": number(private.d), "p": number(private.p), "q": number(private.q)}

    def public_pem(self) -> bytes:
        return (
            rsa_key(self.kid)
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def token(self, issuer: str, *, kid: str | None = "", **claims: Any) -> str:
        """Return a signed token; see `claims_of`. `kid` is the signer's own unless given, None is none."""
        name = self.kid if kid == "" else kid
        header = {"alg": self.algorithm, "typ": "JWT", **({"kid": name} if name else {})}
        text = unsigned(header, claims_of(issuer, **claims))
        return f"{text}.{base64url(self._signature(text.encode()))}"

    def _signature(self, data: bytes) -> bytes:
        if not self.elliptic:
            return rsa_key(self.kid).sign(data, padding.PKCS1v15(), hashes.SHA256())
        r, s = decode_dss_signature(ec_key(self.kid).sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32) + s.to_bytes(32)


def key_set(*keys: Signer | dict[str, Any]) -> str:
    return json.dumps({"keys": [key.jwk if isinstance(key, Signer) else key for key in keys]})


def without_signature(issuer: str, **claims: Any) -> str:
    """Return a token of the algorithm `none`."""
    return unsigned({"alg": "none", "typ": "JWT"}, claims_of(issuer, **claims)) + "."


def signed_with_secret(secret: bytes, issuer: str, kid: str | None = None, **claims: Any) -> str:
    """Return a token of HS256: of whoever has the secret, which may be a public key that a verifier takes for one."""
    header = {"alg": "HS256", "typ": "JWT", **({"kid": kid} if kid else {})}
    text = unsigned(header, claims_of(issuer, **claims))
    return f"{text}.{base64url(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"
