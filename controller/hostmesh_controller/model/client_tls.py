"""TLS from a proxy to a service, as a DestinationRule asks for it."""

from typing import Final, Literal

from pydantic import model_validator

from hostmesh_controller.model.paths import FilePath
from hostmesh_controller.model.schema import Flag, Spec, fault

_FILES: Final = (
    ("client_certificate", "clientCertificate"),
    ("private_key", "privateKey"),
    ("ca_certificates", "caCertificates"),
    ("ca_crl", "caCrl"),
)
_CONFIG_MAP: Final = "configmap://"


class ClientTls(Spec):
    """TLS towards the service. Paths are of files on the calling host; None of them set: the system's roots.

    `credential_name` is of a stored credential, which then has all of the certificates; `ca_crl` lists revoked ones.
    """

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: FilePath | None = None
    private_key: FilePath | None = None
    ca_certificates: FilePath | None = None
    ca_crl: FilePath | None = None
    credential_name: str | None = None
    subject_alt_names: tuple[str, ...] = ()
    sni: str | None = None
    insecure_skip_verify: Flag | None = None

    @model_validator(mode="after")
    def _files_fit_the_mode(self) -> "ClientTls":
        if self.mode == "ISTIO_MUTUAL":
            self._refuse_files("mode ISTIO_MUTUAL uses the mesh's own certificates; remove this")
            if self.credential_name:
                message = "mode ISTIO_MUTUAL uses the mesh's own certificates; remove this"
                raise fault("one-of", message, "credentialName")
        elif self.credential_name and self.mode != "DISABLE":
            self._refuse_files("credentialName has all of the certificates; remove this or credentialName")
        elif self.mode == "MUTUAL":
            for field, written in _FILES[:2]:
                if not getattr(self, field):
                    raise fault("missing", f"mode MUTUAL needs {written}", written)
        return self

    def _refuse_files(self, reason: str) -> None:
        for field, written in _FILES:
            if getattr(self, field):
                raise fault("one-of", reason, written)

    @model_validator(mode="after")
    def _what_is_skipped_is_not_asked_for(self) -> "ClientTls":
        if not self.insecure_skip_verify or self.mode not in {"SIMPLE", "MUTUAL"}:
            return self
        asked = [("ca_certificates", "caCertificates"), ("subject_alt_names", "subjectAltNames")]
        if self.mode == "SIMPLE":
            asked.append(("credential_name", "credentialName"))
        for field, written in asked:
            if getattr(self, field):
                raise fault("one-of", "insecureSkipVerify verifies nothing; remove this or insecureSkipVerify", written)
        return self

    @model_validator(mode="after")
    def _credential_is_stored(self) -> "ClientTls":
        name = self.credential_name or ""
        if name.startswith(_CONFIG_MAP):
            raise fault("not-supported", f"{name!r}: hosts have no ConfigMaps; name a credential", "credentialName")
        return self
