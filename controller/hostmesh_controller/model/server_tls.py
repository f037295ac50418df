"""TLS as a server speaks it: at a Gateway, or at the ingress listener of a Sidecar."""

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.paths import FilePath
from hostmesh_controller.model.schema import Flag, Spec, at_most_one, fault

CIPHER_SUITES: Final = frozenset(
    {"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384"}
    | {"ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305"}
    | {"ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA"}
    | {"AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA"}
)
"""What Envoy knows; Istio accepts others and leaves them out, and so must the translation."""

TlsVersion = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]


class TlsCertificate(Spec):
    """Files on the gateway's host."""

    server_certificate: FilePath = ""
    private_key: FilePath = ""
    ca_certificates: FilePath = ""


_OWN_CERTIFICATES: Final = (
    ("server_certificate", "serverCertificate"),
    ("private_key", "privateKey"),
    ("ca_certificates", "caCertificates"),
    ("tls_certificates", "tlsCertificates"),
    ("credential_name", "credentialName"),
    ("credential_names", "credentialNames"),
)


# One that is none would be refused by Envoy, and the whole listener with it.
_SPKI: Final = re.compile(r"[A-Za-z0-9+/]{43}=")
_HASH: Final = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){31}")


def _spki(value: str) -> str:
    if not _SPKI.fullmatch(value):
        raise fault("value", f"{value!r} is no SHA-256 of a public key in base64: 44 characters, the last one '='")
    return value


def _hash(value: str) -> str:
    if not _HASH.fullmatch(value):
        raise fault("value", f"{value!r} is no SHA-256 of a certificate: 64 hexadecimal digits, or 32 pairs with ':'")
    return value


class ServerTls(Spec):
    """Certificates come from Secrets (`credential_name`) or from files on the host; never from both.

    TLS_AUTO is TLSV1_2 at least and TLSV1_3 at most. Unknown `cipher_suites` are left out, as Istio does.
    """

    https_redirect: Flag = False
    mode: Literal["PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"] = (
        "PASSTHROUGH"
    )
    server_certificate: FilePath = ""
    private_key: FilePath = ""
    ca_certificates: FilePath = ""
    ca_crl: FilePath = ""
    tls_certificates: Annotated[tuple[TlsCertificate, ...], Field(min_length=1, max_length=2)] | None = None
    credential_name: str | None = None
    credential_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] | None = None
    ca_cert_credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    verify_certificate_spki: tuple[Annotated[str, AfterValidator(_spki)], ...] = ()
    verify_certificate_hash: tuple[Annotated[str, AfterValidator(_hash)], ...] = ()
    min_protocol_version: TlsVersion = "TLS_AUTO"
    max_protocol_version: TlsVersion = "TLS_AUTO"
    cipher_suites: tuple[str, ...] = ()
    ecdh_curves: tuple[str, ...] = ()
    insecure_skip_verify: Flag = False

    @property
    def credentials(self) -> tuple[str, ...]:
        """The names of the Secrets with the server's certificates."""
        return self.credential_names or ((self.credential_name,) if self.credential_name else ())

    @property
    def passes_through(self) -> bool:
        """Whether TLS is left to the service behind."""
        return self.mode in {"PASSTHROUGH", "AUTO_PASSTHROUGH"}

    @model_validator(mode="after")
    def _one_source(self) -> "ServerTls":
        at_most_one(self, "tls_certificates", "credential_names")
        at_most_one(self, "credential_name", "credential_names")
        if self.mode == "ISTIO_MUTUAL":
            for field, written in _OWN_CERTIFICATES:
                if getattr(self, field):
                    raise fault("one-of", "mode ISTIO_MUTUAL uses the mesh's own certificates; remove this", written)
            return self
        files = bool(self.server_certificate and self.private_key)
        if files + bool(self.credentials) + bool(self.tls_certificates) > 1:
            raise fault(
                "one-of",
                "only one of credentialName, credentialNames, serverCertificate with privateKey, and tlsCertificates "
                "may be set",
            )
        return self

    @model_validator(mode="after")
    def _files_are_complete(self) -> "ServerTls":
        if self.passes_through or self.mode == "ISTIO_MUTUAL" or self.credentials:
            return self
        if self.mode != "SIMPLE" and not self.ca_certificates:
            raise fault("missing", f"mode {self.mode} needs caCertificates (or a credentialName)", "caCertificates")
        if self.tls_certificates is None:
            _check_pair(self.mode, self.server_certificate, self.private_key)
        for index, one in enumerate(self.tls_certificates or ()):
            _check_pair(self.mode, one.server_certificate, one.private_key, "tlsCertificates", index)
        return self

    @model_validator(mode="after")
    def _revocation_fits(self) -> "ServerTls":
        if self.ca_crl and self.credential_name:
            raise fault("one-of", "the revocation list belongs into the Secret, as ca.crl; remove this", "caCrl")
        if self.ca_crl and self.mode == "SIMPLE":
            raise fault("one-of", "mode SIMPLE asks for no client certificate that could be revoked", "caCrl")
        return self


def _check_pair(mode: str, certificate: str, key: str, *where: str | int) -> None:
    cure = "" if where else " (or a credentialName)"
    if not certificate:
        raise fault("missing", f"mode {mode} needs serverCertificate{cure}", *where, "serverCertificate")
    if not key:
        raise fault("missing", f"mode {mode} needs privateKey{cure}", *where, "privateKey")
