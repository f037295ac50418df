"""The cold copy: all that a host may call, as pages of bytes that are the same for all hosts that see the same. Pure.

Envoy holds what is used. The rest is for the time when the controller is away: the agent keeps it on disk. A page holds
the services of one bucket of host names, compressed; pages are resources of a type of their own on the host's stream,
`config/BUCKET` (virtual hosts and clusters) and `endpoints/BUCKET`, so that an endpoint that moves costs a small page.

What is in a page is a resource's content without what differs between those who ask: its name (which is the first field
of all three messages), the domain of a virtual host, and the directory of the caller's certificate. `resource_of` and
`with_caller` put these back, byte for byte as the controller sends the same thing hot, so that it has the same version.
"""

import zlib
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as WireResource
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from hostmesh_api.delta.messages import Resource
from hostmesh_api.v1.hostmesh_pb2 import ColdContent, ColdPage

BUCKETS: Final = 128
"""Of 5,000 services each has 40: 2 KB for their endpoints. A stream holds the version of each page."""
CONFIG: Final = "config"
ENDPOINTS: Final = "endpoints"
ANY_CALLER: Final = "ns.-.sa.-"
"""Stands for the directory of the caller's certificate; no identity has that one."""
_CERTIFICATES: Final = "certs/"
_VERSION_BYTES: Final = 6
_MAX_PAGE_BYTES: Final = 64 * 2**20
"""Of a page without compression: a thousand times the usual one. More is no page of ours."""


def version_of(content: bytes) -> str:
    """Return the version of a resource by its content: 48 bits, 8 characters.

    Versions are compared within one name only, and endpoint pushes must stay small.
    """
    return urlsafe_b64encode(blake2b(content, digest_size=_VERSION_BYTES).digest()).decode()


def bucket_of(hostname: str) -> int:
    """Return in which bucket a service is."""
    return int.from_bytes(blake2b(hostname.encode(), digest_size=4).digest(), "big") % BUCKETS


def page_name(kind: str, bucket: int) -> str:
    return f"{kind}/{bucket:02x}"


PAGE_NAMES: Final = tuple(page_name(kind, bucket) for kind in (CONFIG, ENDPOINTS) for bucket in range(BUCKETS))


def without_leading(content: bytes, numbers: Iterable[int]) -> bytes:
    """Return a message that was serialized in the order of its fields without the first ones, which are strings."""
    skipped = frozenset(numbers)
    at = 0
    while at < len(content):
        tag, after = _varint(content, at)
        if tag & 7 != 2 or tag >> 3 not in skipped:
            break
        length, after = _varint(content, after)
        at = after + length
    return content[at:]


def resource_of(type_url: str, name: str, rest: bytes, domain: str = "") -> Resource:
    """Return the resource whose content is `rest` below its name, and its domain where it is a virtual host."""
    content = _text(1, name) + (_text(2, domain) if domain else b"") + rest
    version = version_of(content)
    wire = WireResource(
        name=name,
        version=version,
        resource=Any(type_url=type_url, value=content),
        aliases=[name] if domain else [],
    )
    return Resource(name, version, wire.SerializeToString(deterministic=True))


def with_caller(content: bytes, slug: str) -> bytes:
    """Return a message in which paths of certificates are those of the caller whose directory is `slug`."""
    held, told = f"{_CERTIFICATES}{ANY_CALLER}".encode(), f"{_CERTIFICATES}{slug}".encode()
    return _replaced(content, held, told)


def _replaced(message: bytes, held: bytes, told: bytes) -> bytes:
    """Replace the beginning of texts, however deep in a message they are; lengths around them follow."""
    if held not in message:
        return message
    if message.startswith(held):
        return told + message[len(held) :]
    parts: list[bytes] = []
    at = 0
    while at < len(message):
        tag, after = _varint(message, at)
        match tag & 7:
            case 0:
                _, end = _varint(message, after)
            case 1:
                end = after + 8
            case 5:
                end = after + 4
            case 2:
                length, after = _varint(message, after)
                inside = _replaced(message[after : after + length], held, told)
                parts += (_number(tag), _number(len(inside)), inside)
                at = after + length
                continue
            case kind:
                raise ValueError(f"wire type {kind}")
        parts.append(message[at:end])
        at = end
    return b"".join(parts)


def encode_page(name: str, content: ColdContent) -> Resource:
    """Return a page as resource; its version follows from what is in it, not from how it was compressed."""
    plain = content.SerializeToString(deterministic=True)
    page = ColdPage(services=len(content.services), zlib=zlib.compress(plain, 6))
    version = version_of(plain)
    wire = WireResource(name=name, version=version)
    wire.resource.Pack(page)
    return Resource(name, version, wire.SerializeToString(deterministic=True))


def decode_page(body: bytes) -> ColdContent:
    """Return what is in a page that came as `body`.

    Raises:
        ValueError: it is none.
    """
    page = ColdPage()
    try:
        if not WireResource.FromString(body).resource.Unpack(page):
            raise ValueError("not a page of the cold copy")
        unpacking = zlib.decompressobj()
        plain = unpacking.decompress(page.zlib, _MAX_PAGE_BYTES)
        if not unpacking.eof:
            raise ValueError("a page of the cold copy is cut off or too large")
        return ColdContent.FromString(plain)
    except (zlib.error, DecodeError) as error:
        raise ValueError(f"not a page of the cold copy: {error}") from error


def _text(number: int, text: str) -> bytes:
    data = text.encode()
    return _number(number << 3 | 2) + _number(len(data)) + data


def _number(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    result = shift = 0
    while at < len(data):
        byte = data[at]
        result |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return result, at
    raise ValueError("cut off")
