"""Certificates in files of the calling host, as secrets that Envoy follows when the files change.

The names are Istio's (`file-cert:CHAIN~KEY`, `file-root:ROOTS`) and say all there is: what is sent is where to read.
"""

from pathlib import PurePosixPath
from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource, WatchedDirectory
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import CertificateValidationContext, TlsCertificate
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from hostmesh_api import wire

SYSTEM: Final = "system"
"""Stands for the roots that the host's operating system trusts."""
_CERTIFICATE: Final = "file-cert:"
_ROOTS: Final = "file-root:"
_BETWEEN: Final = "~"


def certificate_name(chain: str, key: str) -> str:
    """Return the name of the secret of a certificate chain and its key, by their paths."""
    return f"{_CERTIFICATE}{chain}{_BETWEEN}{key}"


def roots_name(path: str) -> str:
    """Return the name of the secret of trusted roots; `SYSTEM` for the operating system's."""
    return f"{_ROOTS}{path}"


def is_file_secret(name: str) -> bool:
    return name.startswith((_CERTIFICATE, _ROOTS))


def file_secret(name: str) -> Secret | None:
    """Return the secret of a name, or None if it is no file secret's."""
    if name.startswith(_ROOTS):
        path = name.removeprefix(_ROOTS)
        path = wire.SYSTEM_ROOTS if path == SYSTEM else path
        if not path:
            return None
        context = CertificateValidationContext(trusted_ca=_file(path), watched_directory=_watched(path))
        return Secret(name=name, validation_context=context)
    chain, between, key = name.removeprefix(_CERTIFICATE).partition(_BETWEEN)
    if not name.startswith(_CERTIFICATE) or not (chain and between and key):
        return None
    certificate = TlsCertificate(
        certificate_chain=_file(chain), private_key=_file(key), watched_directory=_watched(chain)
    )
    return Secret(name=name, tls_certificate=certificate)


def _file(path: str) -> DataSource:
    return DataSource(filename=path)


def _watched(path: str) -> WatchedDirectory:
    return WatchedDirectory(path=str(PurePosixPath(path).parent))
