"""What this host shows to prove who it is, made for the controller's nonce."""

import http.client
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote, urlsplit

from hostmesh_agent import keyroom
from hostmesh_agent.svid import SvidError
from hostmesh_api.proof import JOIN, SSH_NAMESPACE, audience, azure_nonce, statement
from hostmesh_api.v1.hostmesh_pb2 import JoinRequest, SshEvidence, X509Evidence

MAX_FILE_BYTES: Final = 1 << 20
SIGN_WITHIN_S: Final = 10.0
METADATA_WITHIN_S: Final = 5.0
"""The metadata service is on the machine's own link; where there is none, nobody answers."""
MAX_DOCUMENT_BYTES: Final = 64 * 1024


class EvidenceError(Exception):
    """The evidence cannot be had; the message says why and who must act."""


class Evidence(Protocol):
    """One way to prove who this host is."""

    def make(self, nonce: bytes, csr_der: bytes) -> JoinRequest:
        """Return the evidence's fields of a request to join; may block.

        Raises:
            EvidenceError: it cannot be had.
        """
        ...


@dataclass(frozen=True, slots=True)
class MachineCertificate:
    """An existing certificate and its key, PEM."""

    certificate: Path
    key: Path

    def make(self, nonce: bytes, csr_der: bytes) -> JoinRequest:
        said = statement(JOIN, nonce, csr_der)
        try:
            chain, signature = keyroom.machine_proof(_read(self.key), _read(self.certificate), said)
        except SvidError as error:
            raise EvidenceError(f"{self.certificate}, {self.key}: {error}") from error
        return JoinRequest(x509pop=X509Evidence(chain_der=chain, signature=signature))


@dataclass(frozen=True, slots=True)
class SshHostKey:
    """The host's SSH key; `certificate` is the .pub file of its certificate, None: the key itself is registered."""

    key: Path
    certificate: Path | None = None

    def make(self, nonce: bytes, csr_der: bytes) -> JoinRequest:
        command = ["ssh-keygen", "-Y", "sign", "-q", "-n", SSH_NAMESPACE, "-f", str(self.key)]
        said = statement(JOIN, nonce, csr_der)
        try:
            done = subprocess.run(command, input=said, capture_output=True, timeout=SIGN_WITHIN_S, check=False)
        except FileNotFoundError as error:
            raise EvidenceError("ssh-keygen is not installed: install openssh-client") from error
        except subprocess.TimeoutExpired as error:
            raise EvidenceError(
                f"ssh-keygen did not sign within {SIGN_WITHIN_S:g} s: has {self.key} a pass phrase?"
            ) from error
        if done.returncode != 0:
            raise EvidenceError(
                f"ssh-keygen cannot sign with {self.key}: {done.stderr.decode(errors='replace').strip()}"
            )
        line = "" if self.certificate is None else _read(self.certificate).decode(errors="replace").strip()
        return JoinRequest(ssh=SshEvidence(certificate=line, signature=done.stdout.decode(errors="replace")))


@dataclass(frozen=True, slots=True)
class KeyAlone:
    """Nothing: an operator compares the fingerprint of the key."""

    def make(self, nonce: bytes, csr_der: bytes) -> JoinRequest:  # noqa: ARG002 - as all evidence
        return JoinRequest(key_alone=True)


@dataclass(frozen=True, slots=True)
class AwsInstance:
    """The instance identity document of AWS, over IMDSv2. It cannot be made for a nonce."""

    metadata: str = "http://169.254.169.254"

    def make(self, nonce: bytes, csr_der: bytes) -> JoinRequest:  # noqa: ARG002 - as all evidence
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        token = ask(self.metadata, "PUT", "/latest/api/token", lifetime).decode("ascii", "replace").strip()
        session = {"X-aws-ec2-metadata-token": token}
        document = ask(self.metadata, "GET", "/latest/dynamic/instance-identity/rsa2048", session)
        return JoinRequest(aws=document)


@dataclass(frozen=True, slots=True)
class GcpInstance:
    """An identity token of GCP's metadata service, for an audience that is the nonce."""

    metadata: str = "http://metadata.google.internal"

    def make(self, nonce: bytes, csr_der: bytes) -> JoinRequest:
        path = "/computeMetadata/v1/instance/service-accounts/default/identity"
        query = f"?audience={quote(audience(nonce, csr_der), safe='')}&format=full"
        token = ask(self.metadata, "GET", path + query, {"Metadata-Flavor": "Google"})
        return JoinRequest(gcp=token.decode("ascii", "replace").strip())


@dataclass(frozen=True, slots=True)
class AzureInstance:
    """The attested document of Azure's metadata service, with a nonce of ten digits."""

    metadata: str = "http://169.254.169.254"

    def make(self, nonce: bytes, csr_der: bytes) -> JoinRequest:
        path = f"/metadata/attested/document?api-version=2020-09-01&nonce={azure_nonce(nonce, csr_der)}"
        answer = ask(self.metadata, "GET", path, {"Metadata": "true"})
        try:
            document = json.loads(answer)
            signature = document["signature"]
            if not isinstance(signature, str) or document.get("encoding") != "pkcs7":
                raise ValueError("its encoding is not pkcs7")
        except (ValueError, KeyError, TypeError) as error:
            raise EvidenceError(f"{self.metadata} gave no attested document: {error}") from error
        return JoinRequest(azure=signature.encode())


CLOUDS: Final[Mapping[str, Callable[..., Evidence]]] = {
    "aws": AwsInstance,
    "gcp": GcpInstance,
    "azure": AzureInstance,
}


def ask(base: str, method: str, path: str, headers: Mapping[str, str], within_s: float = METADATA_WITHIN_S) -> bytes:
    """Call the metadata service. Not through a proxy, and wherever it redirects to is not followed.

    Raises:
        EvidenceError: it does not answer, or not with what was asked for.
    """
    place = urlsplit(base)
    if place.scheme != "http" or not place.hostname:
        raise EvidenceError(f"{base!r} is not the http://HOST[:PORT] of a metadata service")
    connection = http.client.HTTPConnection(place.hostname, place.port or 80, timeout=within_s)
    try:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        body = answer.read(MAX_DOCUMENT_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise EvidenceError(
            f"the metadata service {base} does not answer: {error}: is this an instance of that cloud?"
        ) from error
    finally:
        connection.close()
    if answer.status != 200 or len(body) > MAX_DOCUMENT_BYTES:
        raise EvidenceError(
            f"the metadata service {base} answered {answer.status} to {method} {path.partition('?')[0]}"
        )
    return body


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise EvidenceError(f"{path}: cannot be read: {error.strerror}") from error
