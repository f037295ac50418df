"""Secret: certificates and keys for gateways and for calls to services outside. Its fields stand beside metadata.

No message says a word of a value: messages are logged, and shown to more people than may read the key.
"""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Final

from pydantic import Field, PlainSerializer, PlainValidator, model_validator

from hostmesh_controller.model.pem import check_certificates, check_key, check_ocsp_staple, check_revocations
from hostmesh_controller.model.redaction import REDACTED
from hostmesh_controller.model.schema import Spec, fault
from hostmesh_controller.suggest import did_you_mean

TLS_TYPE: Final = "kubernetes.io/tls"
_TYPES: Final = (TLS_TYPE, "Opaque")
_CERTIFICATES: Final = ("tls.crt", "cert")
_KEYS: Final = ("tls.key", "key")
_ROOTS: Final = ("ca.crt", "cacert")
_REVOCATIONS: Final = ("ca.crl", "tls.crl", "crl")
_STAPLE: Final = "tls.ocsp-staple"
_KNOWN: Final = (*_CERTIFICATES, *_KEYS, *_ROOTS, *_REVOCATIONS, _STAPLE)
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9./-]{1,63}")


def _type(value: object) -> str:
    if isinstance(value, str) and value in _TYPES:
        return value
    if isinstance(value, str) and value.startswith("kubernetes.io/") and _PLAIN_WORD.fullmatch(value):
        raise fault("not-supported", f"type {value} has no meaning for hosts: expected {' or '.join(_TYPES)}")
    raise fault("value", f"expected one of {', '.join(_TYPES)}")


def _data(value: object) -> Mapping[str, str]:
    for key, text in _texts(value).items():
        try:
            b64decode("".join(text.split()), validate=True)
        except (Base64Error, ValueError):
            raise fault("base64", "expected bytes in base64; plain text belongs into stringData", key) from None
    return _texts(value)


def _texts(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise fault("type", "expected a mapping of keys such as tls.crt to their values")
    for key, text in value.items():
        if key not in _KNOWN:
            # The name is the user's, but a file that is indented wrongly has its key in it.
            name = repr(key) if _PLAIN_WORD.fullmatch(key) else "this key"
            near = did_you_mean(key, _KNOWN) if name != "this key" else ""
            raise fault("unknown-field", f"{name} means nothing here{near}: there are {', '.join(_KNOWN)}")
        if not isinstance(text, str):
            raise fault("type", "expected a text", key)
        if text.startswith(REDACTED):
            raise fault("redacted", "the value was left out where this Secret was read; give it again", key)
    return dict(value)


def _as_written(value: Mapping[str, str]) -> dict[str, str]:
    return dict(value)


_Data = Annotated[Mapping[str, str], PlainValidator(_data), PlainSerializer(_as_written)]
_StringData = Annotated[Mapping[str, str], PlainValidator(_texts), PlainSerializer(_as_written)]


class SecretSpec(Spec):
    """`string_data` is text, and wins over `data`, which is base64. Read it by the properties."""

    at_top: ClassVar[bool] = True
    refused: ClassVar[Mapping[str, str]] = {"immutable": "objects of hostmesh can always be changed"}

    type: Annotated[str, PlainValidator(_type)] = "Opaque"
    data: _Data = Field(default_factory=dict)
    string_data: _StringData = Field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SecretSpec(type={self.type!r})"

    __str__ = __repr__

    def _value(self, names: tuple[str, ...]) -> bytes:
        """Return the first of them that is not empty, or b""."""
        for name in names:
            if text := self.string_data.get(name):
                return text.encode()
            if encoded := self.data.get(name):
                return b64decode("".join(encoded.split()))
        return b""

    def _path(self, names: tuple[str, ...]) -> tuple[str, ...]:
        for field, values in (("stringData", self.string_data), ("data", self.data)):
            for name in names:
                if values.get(name):
                    return field, name
        return ()

    @property
    def certificate(self) -> bytes:
        """The certificate chain in PEM, the leaf first; b"" if there is none."""
        return self._value(_CERTIFICATES)

    @property
    def key(self) -> bytes:
        """The private key in PEM; b"" if there is none."""
        return self._value(_KEYS)

    @property
    def roots(self) -> bytes:
        """The CA certificates in PEM; b"" if there are none."""
        return self._value(_ROOTS)

    @property
    def revocations(self) -> bytes:
        """The revocation lists in PEM; b"" if there are none."""
        return self._value(_REVOCATIONS)

    @property
    def ocsp_staple(self) -> bytes:
        """The OCSP answer in DER; b"" if there is none."""
        return self._value((_STAPLE,))

    @model_validator(mode="after")
    def _is_whole(self) -> "SecretSpec":
        if self.type == TLS_TYPE and not (self.certificate and self.key):
            raise fault("missing", f"type {TLS_TYPE} needs tls.crt and tls.key")
        if bool(self.certificate) != bool(self.key):
            there, missing = ("certificate", "its key") if self.certificate else ("key", "its certificate")
            raise fault("missing", f"there is a {there}, but not {missing}")
        if not self.certificate and not self.roots:
            raise fault("missing", "give a certificate with its key (tls.crt, tls.key), or CA certificates (ca.crt)")
        return self

    @model_validator(mode="after")
    def _values_are_what_they_say(self) -> "SecretSpec":
        if self.certificate:
            self._checked(_CERTIFICATES, lambda: check_certificates(self.certificate, chain=True))
            self._checked(_KEYS, lambda: check_key(self.key, self.certificate))
        if self.roots:
            self._checked(_ROOTS, lambda: check_certificates(self.roots, chain=False))
        if self.revocations:
            self._checked(_REVOCATIONS, lambda: check_revocations(self.revocations))
        if self.ocsp_staple:
            self._checked((_STAPLE,), lambda: check_ocsp_staple(self.ocsp_staple))
        return self

    def _checked(self, names: tuple[str, ...], check: Callable[[], None]) -> None:
        try:
            check()
        except ValueError as error:
            raise fault("certificate", str(error), *self._path(names)) from None
