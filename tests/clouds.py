"""Clouds of our own: authorities that sign instance documents in the clouds' formats, and metadata services."""

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

import http_servers
import pki
from machines import SERVER, Issued, authority, key_pem

PROJECT = "my-project-1"
ACCOUNT = "123456789012"
INSTANCE = "i-0123456789abcdef0"
SUBSCRIPTION = "8d10da13-8125-4ba9-a717-bf7490507b3d"
MACHINE = "02aab8a4-74ef-476e-8182-f6d2ba4166a6"
AUTHORITY = authority("Cloud Root")
GCP_INSTANCE = {
    "/computeMetadata/v1/instance/zone": b"projects/739419398126/zones/europe-west3-a",
    "/computeMetadata/v1/instance/id": b"152986662232938449",
    "/computeMetadata/v1/instance/machine-type": b"projects/739419398126/machineTypes/e2-medium",
}
AZURE_COMPUTE = {"location": "westeurope", "zone": "2", "vmId": MACHINE, "vmSize": "Standard_B2s", "tags": ""}


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


REGION = AUTHORITY.issue("Amazon Web Services LLC", key=rsa_key(), usage=None)
"""Stands for a region's certificate: no authority is looked for above it."""
AZURE_ISSUER = AUTHORITY.issue("Azure TLS CA 1", ca=True)
AZURE = AZURE_ISSUER.issue("metadata.azure.com", ["metadata.azure.com"], key=rsa_key(), usage=SERVER)
GOOGLE = rsa_key()


def aws_document(**changes: Any) -> bytes:
    document = {
        "accountId": ACCOUNT,
        "architecture": "x86_64",
        "availabilityZone": "eu-central-1b",
        "billingProducts": None,
        "imageId": "ami-0123",
        "instanceId": INSTANCE,
        "instanceType": "t3.micro",
        "pendingTime": (pki.now() - timedelta(minutes=2)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "privateIp": "10.0.0.7",
        "region": "eu-central-1",
        "version": "2017-09-30",
    }
    return json.dumps({**document, **changes}, indent=2).encode()


def azure_document(nonce: str, at: datetime | None = None, **changes: Any) -> bytes:
    moment, form = at or pki.now(), "%m/%d/%y %H:%M:%S -0000"
    document = {
        "licenseType": "",
        "nonce": nonce,
        "plan": {"name": "", "product": "", "publisher": ""},
        "sku": "22_04-lts",
        "subscriptionId": SUBSCRIPTION,
        "timeStamp": {
            "createdOn": moment.strftime(form),
            "expiresOn": (moment + timedelta(hours=6)).strftime(form),
        },
        "vmId": MACHINE,
    }
    return json.dumps({**document, **changes}).encode()


def gcp_claims(audience: str, at: datetime | None = None, **changes: Any) -> dict[str, Any]:
    moment = int((at or pki.now()).timestamp())
    claims = {
        "iss": "https://accounts.google.com",
        "iat": moment,
        "exp": moment + 3600,
        "aud": audience,
        "sub": "107517467455664443765",
        "azp": "107517467455664443765",
        "google": {
            "compute_engine": {
                "project_id": PROJECT,
                "project_number": 739419398126,
                "zone": "europe-west3-a",
                "instance_id": "152986662232938449",
                "instance_name": "vm-7",
                "instance_creation_timestamp": moment - 100,
            }
        },
    }
    return {**claims, **changes}


def gcp_token(claims: Mapping[str, Any], key: rsa.RSAPrivateKey = GOOGLE, kid: str = "k1") -> str:
    return jwt.encode(dict(claims), key, algorithm="RS256", headers={"kid": kid})


def jwks(key: rsa.RSAPrivateKey = GOOGLE, kid: str = "k1") -> str:
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return json.dumps({"keys": [{**public, "kid": kid, "use": "sig", "alg": "RS256"}]})


def signed(content: bytes, signer: Issued, *more: Issued, attributes: bool = True) -> bytes:
    """Return the content in PKCS #7, base64 in lines as the metadata services give it."""
    assert isinstance(signer.key, rsa.RSAPrivateKey)
    builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
    builder = builder.add_signer(signer.certificate, signer.key, hashes.SHA256())
    for each in more:
        builder = builder.add_certificate(each.certificate)
    lean = pkcs7.PKCS7Options.NoCapabilities if attributes else pkcs7.PKCS7Options.NoAttributes
    options = [pkcs7.PKCS7Options.Binary, lean]
    return base64.encodebytes(builder.sign(Encoding.DER, options))


def signed_by_openssl(content: bytes, signer: Issued, directory: Path, *options: str) -> bytes:
    """Return the same, made by openssl; with `-stream` in BER of indefinite length, as AWS writes it."""
    (directory / "signer.pem").write_bytes(signer.pem + key_pem(signer.key))
    command = ["openssl", "cms", "-sign", "-binary", "-nodetach", "-outform", "DER", "-md", "sha256"]
    command += ["-signer", str(directory / "signer.pem"), *options]
    return base64.encodebytes(subprocess.run(command, input=content, capture_output=True, check=True).stdout)


@dataclass
class Metadata:
    """A metadata service of each cloud, as strict as the real ones about headers."""

    aws: bytes = field(default_factory=lambda: signed(aws_document(), REGION))
    requests: list[str] = field(default_factory=list)
    status: int = 200

    def answer(
        self, method: str, path: str, query: Mapping[str, list[str]], headers: Mapping[str, str]
    ) -> bytes | None:
        """Return what is answered; None: refused."""
        if "X-Forwarded-For" in headers:
            return None
        if (method, path) == ("PUT", "/latest/api/token"):
            return b"SESSION" if headers.get("X-aws-ec2-metadata-token-ttl-seconds") else None
        if (method, path) == ("GET", "/latest/dynamic/instance-identity/rsa2048"):
            return self.aws if headers.get("X-aws-ec2-metadata-token") == "SESSION" else None
        if (method, path) == ("GET", "/latest/dynamic/instance-identity/document"):
            return aws_document() if headers.get("X-aws-ec2-metadata-token") == "SESSION" else None
        if path in GCP_INSTANCE:
            return GCP_INSTANCE[path] if headers.get("Metadata-Flavor") == "Google" else None
        if path == "/metadata/instance/compute":
            whole = headers.get("Metadata") == "true" and "api-version" in query
            return json.dumps(AZURE_COMPUTE).encode() if whole else None
        if path == "/computeMetadata/v1/instance/service-accounts/default/identity":
            whole = headers.get("Metadata-Flavor") == "Google" and query.get("format") == ["full"]
            return gcp_token(gcp_claims(query["audience"][0])).encode() if whole else None
        if path == "/metadata/attested/document":
            if headers.get("Metadata") != "true" or "api-version" not in query or len(query["nonce"][0]) > 10:
                return None
            document = signed(azure_document(query["nonce"][0]), AZURE)
            return json.dumps({"encoding": "pkcs7", "signature": document.decode().replace("\n", "")}).encode()
        return None


@contextmanager
def serving(metadata: Metadata) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._do("GET")

        def do_PUT(self) -> None:
            self._do("PUT")

        def _do(self, method: str) -> None:
            asked = urlsplit(self.path)
            metadata.requests.append(f"{method} {asked.path}")
            headers = dict(self.headers.items())
            body = metadata.answer(method, asked.path, parse_qs(asked.query), headers)
            self.send_response(400 if body is None else metadata.status)
            self.send_header("Content-Length", str(len(body or b"")))
            if metadata.status == 302:
                self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(body or b"")

    with http_servers.serving(Handler) as port:
        yield f"http://127.0.0.1:{port}"
