"""What is said of an artifact, and signed: which bytes are which version. Pure.

The bytes of the manifest are what is signed (Ed25519), so nobody has to agree on how JSON is written. A controller
keeps artifacts as COMPONENT/VERSION/MACHINE/{artifact,manifest.json,manifest.sig} in its mirror; the key is the
operator's, and no controller has it. Envoy is one program; another agent comes as packages, one for each package
manager: artifact.deb and artifact.rpm.
"""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

ARTIFACT: Final = "artifact"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
ENVOY: Final = "envoy"
AGENT: Final = "agent"
COMPONENTS: Final = (ENVOY, AGENT)
PACKAGES: Final = {AGENT: "hostmesh-agent", ENVOY: "hostmesh-envoy"}
"""The package that a component is in."""
KINDS: Final = ("deb", "rpm")
"""Of packages."""
MAX_BYTES: Final = 1 << 30
"""Of an artifact: ten times Envoy."""
MAX_MANIFEST_BYTES: Final = 4096
SIGNATURE_BYTES: Final = 64
KEY_BYTES: Final = 32
VERSION: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}([-+~][0-9A-Za-z.]{1,32})?")
_MACHINE: Final = re.compile(r"[a-z0-9_]{1,32}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_NAMES: Final = {"component", "version", "machine"}
_FILE: Final = {"sha256", "size_bytes"}


@dataclass(frozen=True, slots=True)
class File:
    """What is fetched."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a component for one kind of machine.

    Attributes:
        sha256, size_bytes: of the program; "" and 0 where it comes as packages.
        least: once this version is everywhere, no lower one is taken from a controller; "": any is.
        packages: by their kind.
    """

    component: str
    version: str
    machine: str
    sha256: str = ""
    size_bytes: int = 0
    least: str = ""
    packages: Mapping[str, File] = field(default_factory=dict)

    def file(self, kind: str = "") -> File:
        """Return a package's file, or the program's. Raises KeyError: there is none."""
        return self.packages[kind] if kind or not self.sha256 else File(self.sha256, self.size_bytes)

    def encode(self) -> bytes:
        """Return the bytes to sign."""
        said: dict[str, Any] = {"component": self.component, "version": self.version, "machine": self.machine}
        if self.packages:
            files = {kind: self.packages[kind] for kind in sorted(self.packages)}
            said["packages"] = {k: {"sha256": f.sha256, "size_bytes": f.size_bytes} for k, f in files.items()}
        else:
            said |= {"sha256": self.sha256, "size_bytes": self.size_bytes}
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
    if not isinstance(said, dict):
        raise ValueError("it must have component, version and machine")
    wanted = _NAMES | ({"packages"} if said.get("component") == AGENT else _FILE)
    if said.keys() - wanted - {"least"} or wanted - said.keys():
        raise ValueError(f"it must have {', '.join(sorted(wanted))}, and may have least")
    packages = _packages(said.pop("packages")) if "packages" in said else {}
    program = _file(said) if "sha256" in said else File("", 0)
    texts = {name: said[name] for name in said.keys() - _FILE}
    if not all(isinstance(each, str) for each in texts.values()):
        raise ValueError("all but size_bytes must be strings")
    found = Manifest(sha256=program.sha256, size_bytes=program.size_bytes, packages=packages, **texts)
    checks = (
        (found.component in COMPONENTS, "component"),
        (VERSION.fullmatch(found.version), "version"),
        (not packages or is_package_version(found.version), "version"),
        (_MACHINE.fullmatch(found.machine), "machine"),
        (not found.least or VERSION.fullmatch(found.least), "least"),
    )
    for holds, name in checks:
        if not holds:
            raise ValueError(f"{name} is {said[name]!r}")
    if found.least and order_of(found.least) > order_of(found.version):
        raise ValueError(f"least is {found.least}, which is above {found.version} itself")
    return found


def _packages(said: Any) -> dict[str, File]:
    if not isinstance(said, dict) or not said or said.keys() - set(KINDS):
        raise ValueError(f"packages must have one of {', '.join(KINDS)}")
    for each in said.values():
        if not isinstance(each, dict) or each.keys() != _FILE:
            raise ValueError(f"each of packages must have {' and '.join(sorted(_FILE))}")
    return {kind: _file(each) for kind, each in said.items()}


def _file(said: Mapping[str, Any]) -> File:
    sha256, size = said["sha256"], said["size_bytes"]
    if not isinstance(sha256, str):
        raise ValueError("all but size_bytes must be strings")
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 is {sha256!r}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_BYTES:
        raise ValueError(f"size_bytes must be from 1 to {MAX_BYTES}")
    return File(sha256, size)


def is_package_version(version: str) -> bool:
    """Tell whether packages can have a version: what follows a "-" is not a part of it, for Debian as for rpm."""
    return VERSION.fullmatch(version) is not None and "-" not in version


def file_name(kind: str = "") -> str:
    """Return how a file is called in the mirror. Raises ValueError: there is no such kind."""
    if kind and kind not in KINDS:
        raise ValueError("no such package")
    return f"{ARTIFACT}.{kind}" if kind else ARTIFACT


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
