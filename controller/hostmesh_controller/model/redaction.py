"""Documents as people may see them: the values of a Secret that are secret are told by a digest.

It tells whether two values are the same and nothing else: keys have far too much chance in them to be guessed by it.
Nobody reads a key back from the controller, administrators neither: whoever gave it has it, and gateways get it.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

DIGEST_CHARS: Final = 16
REDACTED: Final = "(redacted,"
_KIND: Final = "Secret"
_PUBLIC: Final = frozenset({"tls.crt", "cert", "ca.crt", "cacert", "ca.crl", "tls.crl", "crl", "tls.ocsp-staple"})
"""What any client of a gateway sees anyway; all else is taken for secret."""
_VALUES: Final = ("data", "stringData")


def redacted_text(digest: str) -> str:
    return f"{REDACTED} sha256 {digest})"


def redacted(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with the secret values of a Secret replaced; another kind's is returned as it is.

    What is replaced is no value that a Secret could have: it cannot be applied by mistake.
    """
    result = dict(document)
    if document.get("kind") != _KIND:
        return result
    for field in _VALUES:
        values = document.get(field)
        if isinstance(values, Mapping):
            result[field] = {name: _value(name, value) for name, value in values.items()}
        elif values is not None:
            result[field] = _value("", values)
    metadata = document.get("metadata")
    if isinstance(metadata, Mapping) and isinstance(metadata.get("annotations"), Mapping):
        # kubectl keeps the whole document in one; others, keys as they were before.
        result["metadata"] = {**metadata, "annotations": dict(map(_annotation, metadata["annotations"].items()))}
    return result


def _annotation(item: tuple[str, Any]) -> tuple[str, Any]:
    name, value = item
    is_copy = name.endswith("/last-applied-configuration") or "PRIVATE KEY" in str(value)
    return (name, _value("", value)) if is_copy else item


def _value(name: str, value: Any) -> Any:
    if name in _PUBLIC and "PRIVATE KEY" not in str(value):
        return value
    return redacted_text(sha256(str(value).encode()).hexdigest()[:DIGEST_CHARS])
