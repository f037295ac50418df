"""The join string: all that a new host needs to know, in one line to copy.

    hm1.<base64url of: checksum (4) | count (1) | endpoints (1+n each) | token (1+n) | root certificate, DER (2+n)>

The root certificate itself is inside, not its fingerprint: the host verifies the controller in the very first
handshake, and there is no moment of trust on first use. The checksum tells a line that was cut while it was copied
from one that is wrong; it protects nothing.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final, Self

PREFIX: Final = "hm1."
MAX_CHARS: Final = 16_384
"""A P-256 root is about 450 bytes: a real string has about 800 characters."""
_MAX_ENDPOINTS: Final = 32
_CHECKSUM_BYTES: Final = 4
_COMMAND: Final = "hostmesh-agent join "
"""What `hostmesh register` prints is a command; who pastes all of it means the string."""
_CURE: Final = "copy the whole line that `hostmesh register` or `hostmesh token create` printed"
_ENDPOINT: Final = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,255}", re.ASCII)


@dataclass(frozen=True, slots=True)
class JoinString:
    """Where to join, whom to trust there, and the right to do it once.

    Attributes:
        endpoints: `host:port` (`[v6]:port`) of the controllers' join port, in order of preference; at least one.
        root_der: the root certificate, DER.
        token: the one-time join token; a secret, not shown by repr. "": the host proves who it is by evidence.
    """

    endpoints: tuple[str, ...]
    root_der: bytes = field(repr=False)
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.endpoints) <= _MAX_ENDPOINTS:
            msg = f"a join string has 1 to {_MAX_ENDPOINTS} endpoints, not {len(self.endpoints)}"
            raise ValueError(msg)
        for endpoint in self.endpoints:
            require_endpoint(endpoint)
        if self.token and _TOKEN.fullmatch(self.token) is None:
            msg = "a join token has at most 255 characters out of A-Z a-z 0-9 _ -"
            raise ValueError(msg)
        if not 1 <= len(self.root_der) <= 0xFFFF:
            msg = f"a root certificate of {len(self.root_der)} bytes does not fit a join string"
            raise ValueError(msg)

    def encode(self) -> str:
        parts = [bytes([len(self.endpoints)])]
        parts += [_short(endpoint) for endpoint in self.endpoints]
        parts += [_short(self.token), len(self.root_der).to_bytes(2), self.root_der]
        body = b"".join(parts)
        return PREFIX + base64.urlsafe_b64encode(_checksum(body) + body).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read a join string, also one with the command that uses it before it.

        Raises:
            ValueError: it is not one, or not a whole one; the message says what to do, and never shows the token.
        """
        text = text.rpartition(_COMMAND)[2].strip()
        if not text.startswith(PREFIX):
            if re.match(r"hm[0-9]+\.", text):
                msg = f"the join string is of a newer form than {PREFIX!r}: upgrade hostmesh-agent on this host"
                raise ValueError(msg)
            msg = f"this is not a join string (it begins with {PREFIX!r}): {_CURE}"
            raise ValueError(msg)
        if len(text) > MAX_CHARS:
            msg = f"the join string is longer than {MAX_CHARS} characters: {_CURE}"
            raise ValueError(msg)
        body = _body(text[len(PREFIX) :])
        reader = _Reader(body)
        endpoints = tuple(reader.short() for _ in range(reader.number(1)))
        token = reader.short()
        root_der = reader.take(reader.number(2))
        if reader.rest():
            msg = f"the join string has {reader.rest()} bytes too many: {_CURE}"
            raise ValueError(msg)
        return cls(endpoints=endpoints, root_der=root_der, token=token)


def require_endpoint(endpoint: str) -> None:
    """Raise ValueError unless it is `host:port`; IPv6 in brackets."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None or not 1 <= int(match[1]) <= 0xFFFF or len(endpoint) > 0xFF:
        msg = f"endpoint {endpoint!r} is not host:port (IPv6: [address]:port)"
        raise ValueError(msg)


def _short(text: str) -> bytes:
    data = text.encode("ascii")
    return bytes([len(data)]) + data


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]


def _body(encoded: str) -> bytes:
    """Return what stands behind the checksum."""
    try:
        # The altchars of b64decode, not urlsafe_b64decode: only the former can refuse foreign characters.
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        msg = f"the join string was changed when it was copied: {_CURE}"
        raise ValueError(msg) from error
    checksum, body = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        msg = f"the join string was cut or changed when it was copied: {_CURE}"
        raise ValueError(msg)
    return body


class _Reader:
    """Takes fields off the front of the bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            msg = f"the join string ends too early: {_CURE}"
            raise ValueError(msg)
        self._at += count
        return taken

    def number(self, size_bytes: int) -> int:
        return int.from_bytes(self.take(size_bytes))

    def short(self) -> str:
        return self.take(self.number(1)).decode("ascii")

    def rest(self) -> int:
        return len(self._data) - self._at
