"""JSON Web Key Sets: what of one may go to proxies, which only verify.

Public keys alone: the private half of a key is left out, and a symmetric key is no key here at all, since whoever can
verify with it can sign with it, and every proxy has it.
"""

import json
from base64 import urlsafe_b64decode
from binascii import Error as Base64Error
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_BYTES: Final = 256 * 1024
"""Sets of the large providers have some KB; one is part of every listener that uses it."""
MAX_KEYS: Final = 100
_RSA_BITS: Final = range(1024, 8192 + 1)
"""Less is broken; more costs a proxy milliseconds for each request of anybody."""
_CURVES: Final = {"EC": {"P-256": 32, "P-384": 48, "P-521": 66}, "OKP": {"Ed25519": 32}}
_MEMBERS: Final = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
_ALSO: Final = ("kid", "alg", "use", "key_ops", "x5t", "x5t#S256")
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

NOBODYS: Final = (
    '{"keys":[{"kty":"EC","crv":"P-256",'
    '"x":"CxJ9u7aHmqT0jMMXDtrHCmXGl2OZK27tyDuyJv9EEa8","y":"eIU2DOV4Ltwofh69JYwGS0RyE908VXXJEj41BJK63ns"}]}'
)
"""A set with which nothing can be signed, for when there are no keys.

Its x coordinate is the first of the curve among the SHA-256 sums of `hostmesh: nobody's key N`, N = 0, 1, …, and its y
the smaller one: that nobody knows its private key is shown by how it was made (see the tests).
"""


class JwksError(ValueError):
    """The text is no key set; the message says why."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A key that proxies do not get, or not whole; `whole` tells which."""

    index: int
    reason: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Jwks:
    """A set as proxies get it. `keys` names each key (its `kid`, or its type)."""

    text: str
    keys: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()


def read_jwks(text: str | bytes) -> Jwks:
    """Read a set; equal sets have equal texts.

    Raises:
        JwksError: it is none (RFC 7517), is too large, or has a symmetric key and nothing else.
    """
    keys = _keys(text)
    kept: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    for index, key in enumerate(keys):
        problem = _problem(key)
        if problem:
            left_out.append(LeftOut(index, problem))
            continue
        if _PRIVATE & key.keys():
            left_out.append(LeftOut(index, "it has the private half, which proxies do not get", whole=False))
        names = ("kty", *_MEMBERS[key["kty"]], *_ALSO)
        kept.append({name: key[name] for name in names if _is_told(name, key.get(name))})
    found = json.dumps({"keys": kept}, separators=(",", ":")) if kept else NOBODYS
    return Jwks(found, tuple(str(key.get("kid") or key["kty"]) for key in kept), tuple(left_out))


def _keys(text: str | bytes) -> list[Any]:
    if len(text) > MAX_BYTES:
        raise JwksError(f"a key set may have {MAX_BYTES // 1024} KiB at most")
    try:
        document = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, JwksError) else "it is not JSON"
        raise JwksError(f"not a JWKS (RFC 7517): {reason}") from None
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list):
        raise JwksError('not a JWKS (RFC 7517): expected an object with "keys", a list')
    if len(keys) > MAX_KEYS:
        raise JwksError(f"a key set may have {MAX_KEYS} keys at most")
    return keys


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        # Readers differ in which of the two counts.
        raise JwksError("a name is there twice in one object")
    return result


def _problem(key: object) -> str:
    """Return why a key is left out, "" if it is not."""
    if not isinstance(key, Mapping):
        return "it is not an object"
    kind = key.get("kty")
    if kind == "oct":
        return "it is symmetric (oct): whoever has it to verify with can sign with it, too"
    if not isinstance(kind, str) or kind not in _MEMBERS:
        return "its kty is none of RSA, EC and OKP"
    if kind == "RSA":
        return _rsa_problem(key)
    size = _CURVES[kind].get(crv) if isinstance(crv := key.get("crv"), str) else None
    if size is None:
        return f"its crv is none of {', '.join(_CURVES[kind])}"
    for name in _MEMBERS[kind][1:]:
        if len(_bytes(key.get(name))) != size:
            return f"its {name} is not {size} bytes in base64url"
    return ""


def _rsa_problem(key: Mapping[str, Any]) -> str:
    modulus, exponent = _bytes(key.get("n")), _bytes(key.get("e"))
    if not modulus or not 0 < len(exponent) <= 8:
        return "it has no n and e in base64url"
    bits = int.from_bytes(modulus).bit_length()
    return "" if bits in _RSA_BITS else f"it has {bits} bits; it must have {_RSA_BITS[0]} to {_RSA_BITS[-1]}"


def _bytes(value: object) -> bytes:
    if not isinstance(value, str) or not value.isascii():
        return b""
    try:
        return urlsafe_b64decode(value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4))
    except (Base64Error, ValueError):
        return b""


def _is_told(name: str, value: object) -> bool:
    if name == "key_ops":
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return isinstance(value, str)
