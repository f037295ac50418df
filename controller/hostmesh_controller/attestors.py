"""The attestors as controller.toml has them, over the files that it names.

Files are read when they are needed, so that a new authority counts without a restart; joins are rare. At the start
they are read once, so that what is wrong with them is said then.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from hostmesh_controller.admission import KeyAloneAttestor
from hostmesh_controller.attest.clouds import Allowed, AwsAttestor, AzureAttestor, GcpAttestor
from hostmesh_controller.attest.evidence import Attestor, EvidenceError
from hostmesh_controller.attest.ssh import SshAttestor, read_authorities
from hostmesh_controller.attest.x509pop import X509Attestor
from hostmesh_controller.config_attest import Trust
from hostmesh_controller.config_reader import ConfigError

MAX_FILE_BYTES: Final = 1 << 20


def attestors(trust: Mapping[str, Trust], pins: Callable[[str], Sequence[str]]) -> Mapping[str, Attestor]:
    """Return the attestors by kind.

    Args:
        trust: the tables below [attest].
        pins: returns the fingerprints of the SSH keys that are registered for a host.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    authorities = partial(_ssh_authorities, trust["ssh"].files) if "ssh" in trust else tuple
    found: dict[str, Attestor] = {"ssh": SshAttestor(authorities, pins)}
    if "x509pop" in trust:
        found["x509pop"] = X509Attestor(partial(_certificates, trust["x509pop"].files))
    for kind in ("aws", "azure", "gcp"):
        if kind in trust:
            found[kind] = _cloud(kind, trust[kind])
    if "key_alone" in trust:
        found["key_alone"] = KeyAloneAttestor()
    try:
        for kind, each in trust.items():
            for path in each.files:
                _READERS[kind](path)
    except EvidenceError as error:
        raise ConfigError([f"[attest]: {error}"]) from error
    return found


def _cloud(kind: str, trust: Trust) -> Attestor:
    # Azure writes subscriptions in either case.
    owners = tuple(each.lower() for each in trust.owners) if kind == "azure" else trust.owners
    allowed = Allowed(owners, trust.regions)
    if kind == "gcp":
        return GcpAttestor(partial(_text, trust.files[0]), allowed)
    certificates = partial(_certificates, trust.files)
    return AwsAttestor(certificates, allowed) if kind == "aws" else AzureAttestor(certificates, allowed)


def _certificates(files: Sequence[Path]) -> list[x509.Certificate]:
    return [certificate for path in files for certificate in _read_certificates(path)]


def _ssh_authorities(files: Sequence[Path]) -> list[str]:
    return [key for path in files for key in _read_ssh(path)]


def _read_certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_text(path).encode())
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"{path}: no certificates in PEM: {error}") from error


def _read_ssh(path: Path) -> list[str]:
    try:
        return read_authorities(_text(path))
    except ValueError as error:
        raise EvidenceError(f"{path}: {error}") from error


def _read_keys(path: Path) -> object:
    try:
        return jwt.PyJWKSet.from_json(_text(path))
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{path}: no keys (JWKS) in JSON: {error}") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        # Part of a file would be authorities that are left out without a word.
        if len(data) > MAX_FILE_BYTES:
            raise EvidenceError(f"{path}: is larger than {MAX_FILE_BYTES} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise EvidenceError(f"{path}: cannot be read: {error}") from error


_READERS: Mapping[str, Callable[[Path], object]] = {
    "x509pop": _read_certificates,
    "ssh": _read_ssh,
    "aws": _read_certificates,
    "azure": _read_certificates,
    "gcp": _read_keys,
}
