"""Certificates in the messages of the Workload API. Pure: what is PEM on disk is DER there."""

import base64
import re
from collections.abc import Iterable
from typing import Final

from hostmesh_agent.svid import Svid
from hostmesh_api.v1.workload_pb2 import X509SVID, X509BundlesResponse, X509SVIDResponse

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----")
_CERTIFICATE: Final = b"CERTIFICATE"
_KEY: Final = b"PRIVATE KEY"


def svids_response(svids: Iterable[Svid], bundle_pem: bytes) -> X509SVIDResponse:
    """Return the certificates of a caller, each with its key and the roots."""
    bundle = der_of(bundle_pem, _CERTIFICATE)
    return X509SVIDResponse(
        svids=[
            X509SVID(
                spiffe_id=each.identity.uri,
                x509_svid=der_of(each.chain_pem, _CERTIFICATE),
                x509_svid_key=der_of(each.key_pem, _KEY),
                bundle=bundle,
            )
            for each in svids
        ]
    )


def bundles_response(trust_domain: str, bundle_pem: bytes) -> X509BundlesResponse:
    """Return the roots of the trust domain."""
    return X509BundlesResponse(bundles={f"spiffe://{trust_domain}": der_of(bundle_pem, _CERTIFICATE)})


def der_of(pem: bytes, label: bytes) -> bytes:
    """Return the blocks of one kind in PEM as DER, one behind the other."""
    return b"".join(base64.b64decode(body) for kind, body in _BLOCK.findall(pem) if kind == label)
