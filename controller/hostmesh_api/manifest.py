"""What is said of an artifact, and signed: which bytes are which version. Pure.

The bytes of the manifest are what is signed (Ed25519), so nobody has to agree on how JSON is written. A controller
keeps artifacts as COMPONENT/VERSION/MACHINE/{artifact,manifest.json,manifest.sig} in its mirror; the key is the
operator's, and no controller has it.
"""

import base64
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

ARTIFACT: Final = "artifact"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
COMPONENTS: Final = ("envoy",)
MAX_BYTES: Final = 1 << 30
"""Of an artifact: ten times Envoy."""
MAX_MANIFEST_BYTES: Final = 4096
SIGNATURE_BYTES: Final = 64
KEY_BYTES: Final = 32
VERSION: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}([-+~][0-9A-Za-z.]{1,32})?")
_MACHINE: Final = re.compile(r"[a-z0-9_]{1,32}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = {"component", "version", "machine", "sha256", "size_bytes", "least"}


@dataclass(frozen=True, slots=True)
class Manifest:
    """One artifact. `least`: once this version is everywhere, no lower one is taken from a controller; "": any is."""

    component: str
    version: str
    machine: str
    sha256: str
    size_bytes: int
    least: str = ""

    def encode(self) -> bytes:
        """Return the bytes to sign."""
        said: dict[str, Any] = {
            "component": self.component,
            "version": self.version,
            "machine": self.machine,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
        }
        return (json.dumps(said | ({"least": self.least} if self.least else {}), indent=1) + "\n").encode()


def parse(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ValueError: it is none; the text says why.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ValueError(f"it has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(said, dict) or said.keys() - _KEYS or (_KEYS - {"least"}) - said.keys():
        raise ValueError(f"it must have {', '.join(sorted(_KEYS - {'least'}))}, and may have least")
    size = said.pop("size_bytes")
    if not all(isinstance(each, str) for each in said.values()):
        raise ValueError("all but size_bytes must be strings")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_BYTES:
        raise ValueError(f"size_bytes must be from 1 to {MAX_BYTES}")
    found = Manifest(size_bytes=size, **said)
    checks = (
        (found.component in COMPONENTS, "component"),
        (VERSION.fullmatch(found.version), "version"),
        (_MACHINE.fullmatch(found.machine), "machine"),
        (_SHA256.fullmatch(found.sha256), "sha256"),
        (not found.least or VERSION.fullmatch(found.least), "least"),
    )
    for holds, name in checks:
        if not holds:
            raise ValueError(f"{name} is {said[name]!r}")
    if found.least and order_of(found.least) > order_of(found.version):
        raise ValueError(f"least is {found.least}, which is above {found.version} itself")
    return found


def place(component: str, version: str, machine: str) -> PurePosixPath:
    """Return the directory of an artifact below a mirror.

    Raises:
        ValueError: these are no such names; they may come from a peer.
    """
    if component not in COMPONENTS or not VERSION.fullmatch(version) or not _MACHINE.fullmatch(machine):
        raise ValueError("no such artifact")
    return PurePosixPath(component, version, machine)


def decode_key(text: str) -> bytes:
    """Return a public key that is written in base64.

    Raises:
        ValueError: it is none.
    """
    key = base64.b64decode(text.encode(), validate=True)
    if len(key) != KEY_BYTES:
        raise ValueError(f"it has {len(key)} bytes, an Ed25519 key has {KEY_BYTES}")
    return key


def order_of(version: str) -> tuple[tuple[int, ...], bool, str]:
    """Return what versions are compared by: numbers, and a version with "-" or "~" comes before the one without."""
    numbers = re.match(r"[0-9.]+", version)
    core = numbers[0] if numbers else ""
    rest = version[len(core) :]
    parts = [int(each) for each in core.split(".") if each]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts), not rest.startswith(("-", "~")), rest
