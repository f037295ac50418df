"""A spare copy of the host's identity: one file with a checksum, from which any other that is damaged is made anew.

A disk that loses one sector, or a person that edits one file, must not cost a visit. Pure: bytes in, bytes out.
"""

import base64
import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

FILE: Final = "spare.json"
FORMAT: Final = 1
_PARTS: Final = ("host", "key", "chain", "bundle")


@dataclass(frozen=True, slots=True)
class Spare:
    """The content of host.json and of the three files of the identity."""

    host: bytes
    key: bytes = field(repr=False)
    chain: bytes = field(repr=False)
    bundle: bytes = field(repr=False)


def encode(spare: Spare) -> bytes:
    parts = {name: base64.b64encode(getattr(spare, name)).decode() for name in _PARTS}
    return json.dumps({"format": FORMAT, **parts, "checksum": _checksum(parts)}, indent=1).encode() + b"\n"


def decode(data: bytes) -> Spare:
    """Read a copy.

    Raises:
        ValueError: it is damaged, or another agent's.
    """
    try:
        document: dict[str, Any] = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r} is not the one that this agent reads ({FORMAT})")
        parts = {name: str(document[name]) for name in _PARTS}
        if document["checksum"] != _checksum(parts):
            raise ValueError("the checksum does not match")
        return Spare(**{name: base64.b64decode(parts[name], validate=True) for name in _PARTS})
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no spare copy ({type(error).__name__})") from error


def _checksum(parts: dict[str, str]) -> str:
    digest = blake2b(digest_size=16)
    for name in _PARTS:
        digest.update(f"{name}={parts[name]}\n".encode())
    return digest.hexdigest()
