"""An intermediate whose key is made here and never leaves, signed by a PKI engine in Vault's style over HTTPS.

POST URL/v1/MOUNT/root/sign-intermediate   X-Vault-Token: …   {"csr": …, "ttl": …}
◀── {"data": {"certificate": …, "issuing_ca": …, "ca_chain": [… up to the root]}}
"""

import json
import ssl
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from hostmesh_controller.authority_certificates import intermediate_request, issued_by
from hostmesh_controller.authority_files import AuthorityError, read_secret
from hostmesh_controller.authority_roots import Source
from hostmesh_controller.authority_upstream import Demand, Obtained, UnusableError, usable

TIMEOUT_S: Final = 10.0
"""For each step; the whole may take three times as long."""
_MAX_ANSWER_BYTES: Final = 1024 * 1024
_MAX_REASON_CHARS: Final = 300


class Vault:
    """A mount of a PKI engine. The token is read anew for each request: others may exchange it."""

    source: Final = Source.VAULT

    def __init__(
        self, url: str, mount: str, token_file: Path, ca_file: Path | None, ttl: timedelta, demand: Demand
    ) -> None:
        """`ca_file` holds the roots by which the signer's own certificate is good; None: the system's."""
        self._url = f"{url.rstrip('/')}/v1/{mount}/root/sign-intermediate"
        self._mount = mount
        self._token_file = token_file
        self._ca_file = ca_file
        self._ttl = ttl
        self._demand = demand

    def news(self) -> bool:
        """It has none before it is asked."""
        return False

    def obtain(self, trust_domain: str, now: datetime) -> Obtained:
        """Make a key and have it signed; see `Upstream.obtain`."""
        key = ec.generate_private_key(ec.SECP256R1())
        csr = intermediate_request(key, trust_domain).public_bytes(Encoding.PEM).decode()
        asked = {
            "csr": csr,
            "format": "pem",
            "use_csr_values": True,
            "max_path_length": 0,
            "ttl": f"{int(self._ttl.total_seconds())}s",
        }
        chain = _chain(self._ask(asked), self._url)
        roots = [each for each in chain if each.issuer == each.subject and issued_by(each, each)]
        if not roots:
            msg = f"{self._url}: the chain of the answer ends without a root: give the mount its root's certificate too"
            raise AuthorityError(msg)
        try:
            return usable(key, chain, roots, self._demand, now)
        except UnusableError as error:
            raise AuthorityError(f"{self._url} signed what cannot be used: {error}") from error

    def _ask(self, asked: Mapping[str, object]) -> Mapping[str, Any]:
        token = read_secret(self._token_file).decode(errors="replace").strip()
        if not token.isascii() or not token.isprintable() or not token:
            raise AuthorityError(f"{self._token_file} holds no token: one line of printable characters")
        try:
            status, body = self._post(asked, token)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise AuthorityError(f"{self._url} cannot be reached: {_reason(str(error))}") from error
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            document = {}
        if status != httpx.codes.OK:
            errors = document.get("errors", ())
            told = "; ".join(map(str, errors)) if isinstance(errors, list) else ""
            msg = f"{self._url} refused with status {status}: {_reason(told) or 'without a reason'}"
            if status == httpx.codes.FORBIDDEN:
                msg += f" (the token in {self._token_file} must allow `update` on {self._mount}/root/sign-intermediate)"
            raise AuthorityError(msg)
        return document

    def _post(self, asked: Mapping[str, object], token: str) -> tuple[int, bytes]:
        try:
            verify = ssl.create_default_context(cafile=None if self._ca_file is None else str(self._ca_file))
        except (OSError, ssl.SSLError) as error:
            raise AuthorityError(f"{self._ca_file} (ca.ca_file) cannot be used: {error}") from error
        # The environment's proxies and credentials are for other traffic.
        with (
            httpx.Client(verify=verify, timeout=TIMEOUT_S, trust_env=False) as client,
            client.stream("POST", self._url, json=asked, headers={"X-Vault-Token": token}) as answer,
        ):
            body, deadline = b"", time.monotonic() + 3 * TIMEOUT_S
            for part in answer.iter_bytes():
                body += part
                if len(body) > _MAX_ANSWER_BYTES or time.monotonic() > deadline:
                    raise AuthorityError(f"{self._url} answers too much ({len(body)} bytes) or too slowly")
            return answer.status_code, body


def _chain(document: Mapping[str, Any], url: str) -> list[x509.Certificate]:
    data = document.get("data")
    data = data if isinstance(data, dict) else {}
    above = data.get("ca_chain") or [data.get("issuing_ca")]
    texts = [data.get("certificate"), *(above if isinstance(above, list) else [above])]
    try:
        found = [x509.load_pem_x509_certificate(each.encode()) for each in texts if isinstance(each, str)]
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise AuthorityError(f"{url} answers with certificates that cannot be read") from error
    if len(found) < 2 or not isinstance(texts[0], str):
        raise AuthorityError(f"{url} answers without `certificate` and `ca_chain`: is it a PKI engine?")
    return list(dict.fromkeys(found))


def _reason(text: str) -> str:
    """Return others' words, bounded, and without what would drive a terminal."""
    return "".join(each if each.isprintable() else " " for each in text)[:_MAX_REASON_CHARS]
