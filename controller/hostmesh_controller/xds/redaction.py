"""Secrets as people may see them: without private keys, of which a digest tells whether two are the same."""

from hashlib import sha256

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from hostmesh_controller.model.redaction import DIGEST_CHARS, redacted_text


def without_keys(secret: Secret) -> Secret:
    """Return a copy in which nothing is secret. Files stay, they are told by their paths."""
    result = Secret()
    result.CopyFrom(secret)
    if result.HasField("tls_certificate"):
        _hide(result.tls_certificate.private_key)
        _hide(result.tls_certificate.password)
    if result.HasField("generic_secret"):
        _hide(result.generic_secret.secret)
    for key in result.session_ticket_keys.keys if result.HasField("session_ticket_keys") else ():
        _hide(key)
    return result


def _hide(source: DataSource) -> None:
    content = source.inline_bytes or source.inline_string.encode()
    if content:
        source.inline_string = redacted_text(sha256(content).hexdigest()[:DIGEST_CHARS])
