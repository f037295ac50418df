"""Signs artifacts with a key that no controller has."""

import base64
import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hostmesh_api import manifest
from hostmesh_controller.cli.failure import CliError

_CHUNK_BYTES: Final = 1 << 20


def new_key(path: Path) -> str:
    """Make a private key and return its public one, in base64. A file that is there is not touched."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
    except OSError as error:
        raise CliError(f"error: {path}: {error.strerror}") from None
    return _public(key)


def put(
    artifacts: Sequence[Path],
    key_file: Path,
    mirror: Path,
    *,
    component: str,
    version: str,
    machine: str,
    least: str = "",
) -> Path:
    """Copy a program, or packages, into a mirror with manifest and signature; return the directory there."""
    key = _private(key_file)
    try:
        kinds = _kinds(artifacts, component, version)
        where = mirror / manifest.place(component, version, machine)
        where.mkdir(parents=True, exist_ok=True)
        drafts = {kind: where / f".{manifest.file_name(kind)}.{os.getpid()}" for kind in kinds}
        for kind, draft in drafts.items():
            shutil.copyfile(kinds[kind], draft)
        files = {kind: manifest.File(_sha256(draft), draft.stat().st_size) for kind, draft in drafts.items()}
        program = files.pop("", manifest.File("", 0))
        names = component, version, machine
        said = manifest.Manifest(*names, program.sha256, program.size_bytes, least, files)
        # What the agent would refuse is refused here.
        manifest.parse(said.encode())
        # The manifest last: until it is there the controller offers nothing new.
        for kind, draft in drafts.items():
            draft.replace(where / manifest.file_name(kind))
        (where / manifest.SIGNATURE).write_bytes(key.sign(said.encode()))
        (where / manifest.MANIFEST).write_bytes(said.encode())
    except OSError as error:
        raise CliError(f"error: {error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise CliError(f"error: {component} {version} for {machine}: {error}") from None
    return where


def _kinds(artifacts: Sequence[Path], component: str, version: str) -> dict[str, Path]:
    """Return the files by the kind of package, "" for a program. Raises ValueError."""
    if component != manifest.AGENT:
        if len(artifacts) != 1:
            raise ValueError("it is one program")
        return {"": artifacts[0]}
    found: dict[str, Path] = {}
    for each in artifacts:
        kind = each.suffix.lstrip(".")
        if kind not in manifest.KINDS or kind in found:
            raise ValueError(f"{each}: name one .deb and one .rpm at most, as `make packages` makes them")
        name = manifest.PACKAGES[component]
        if not each.name.startswith((f"{name}_{version}_", f"{name}-{version}-")):
            raise ValueError(f"{each}: by its name it is not {name} {version}")
        found[kind] = each
    return found


def _private(path: Path) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise CliError(f"error: {path}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CliError(f"error: {path}: not a private key in PEM: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CliError(f"error: {path}: not an Ed25519 key; make one with: hostmesh rollout key FILE")
    return key


def _public(key: Ed25519PrivateKey) -> str:
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
