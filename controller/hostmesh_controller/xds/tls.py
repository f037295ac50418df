"""TLS between proxies: who is shown, who is accepted, and how it is told from a program's own TLS.

A client offers protocols that only a mesh proxy offers (Istio's names). The server's filter chains match on them, so
that a program's own TLS is not taken for the mesh's; and the one that is negotiated tells the server's HTTP code.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2 import RawBuffer
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    SubjectAltNameMatcher,
    TlsParameters,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, DownstreamTlsContext, UpstreamTlsContext
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_api import wire
from hostmesh_controller.mesh.records import Settings
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.sources import secret

CERTIFICATES: Final = "certs"
TLS: Final = "envoy.transport_sockets.tls"
RAW: Final = "envoy.transport_sockets.raw_buffer"

OFFER_HTTP1: Final = ("istio-http/1.1", "istio", "http/1.1")
OFFER_HTTP2: Final = ("istio-h2", "istio", "h2")
OFFER_DETECTED: Final = ("istio-http/1.1", "istio")
"""HTTP of the version that the program speaks, unknown when the cluster is made.

A server whose port is declared as HTTP would take a version that is negotiated for the one that is spoken: so none is.
"""
OFFER_TCP: Final = ("istio-peer-exchange", "istio")
SERVE_HTTP: Final = ("h2", "http/1.1")
SERVE_TCP: Final = OFFER_TCP
MESH_HTTP: Final = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
"""What a mesh proxy offers first when it speaks HTTP: tells the HTTP chain of a detected port from the TCP one."""
MESH_ANY: Final = ("istio", "istio-peer-exchange", *MESH_HTTP)

_VERSIONS: Final = TlsParameters(
    tls_minimum_protocol_version=TlsParameters.TLSv1_2, tls_maximum_protocol_version=TlsParameters.TLSv1_3
)
"""Envoy's clients stop at 1.2 unless told."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Who is let in with the mesh's mutual TLS: identities of the domain and of its aliases. `tls13`: no older TLS."""

    domain: str
    aliases: tuple[str, ...] = ()
    tls13: bool = False

    @property
    def callers(self) -> list[StringMatcher]:
        return [StringMatcher(prefix=f"spiffe://{each}/") for each in dict.fromkeys((self.domain, *self.aliases))]


def trust_of(settings: Settings, config: MeshConfigSpec) -> Trust:
    version = config.mesh_mtls.min_protocol_version
    return Trust(settings.trust_domain, config.trust_domain_aliases, version == "TLSV1_3")


def downstream(slug: str, trust: Trust, serve: Iterable[str]) -> TransportSocket:
    """Return what a workload shows to its callers, and its demand for a certificate.

    Args:
        slug: the directory of the workload's certificate.
        trust: whose identities callers must have.
        serve: protocols to negotiate, the preferred first.
    """
    context = DownstreamTlsContext(
        common_tls_context=_common(f"{CERTIFICATES}/{slug}", serve, map(_uri, trust.callers)),
        require_client_certificate=BoolValue(value=True),
    )
    if trust.tls13:
        context.common_tls_context.tls_params.tls_minimum_protocol_version = TlsParameters.TLSv1_3
    return TransportSocket(name=TLS, typed_config=any_of(context))


def upstream(slug: str, identities: Iterable[str], server_name: str, offer: Iterable[str]) -> TransportSocket:
    """Return mutual TLS to a service: only the exact identities are accepted; with none, any that a root vouches for.

    `slug` is the directory of the caller's certificate. It makes the cluster of a caller with another identity another
    one, so that Envoy leaves no connection in its pool that was opened under the old identity.
    """
    accepted = [_uri(StringMatcher(exact=identity)) for identity in identities]
    context = UpstreamTlsContext(common_tls_context=_common(f"{CERTIFICATES}/{slug}", offer, accepted), sni=server_name)
    return TransportSocket(name=TLS, typed_config=any_of(context))


def with_aliases(identities: Iterable[str], trust_domain: str, aliases: Iterable[str]) -> set[str]:
    """Return SPIFFE IDs, and for those of the trust domain or an alias of it the same of all of these domains."""
    domains = tuple(f"spiffe://{each}/" for each in (trust_domain, *aliases))
    result = set(identities)
    for identity in tuple(result):
        own = next((each for each in domains if identity.startswith(each)), None)
        if own is not None:
            result.update(each + identity.removeprefix(own) for each in domains)
    return result


def plaintext() -> TransportSocket:
    return TransportSocket(name=RAW, typed_config=any_of(RawBuffer()))


def nobody(trust_domain: str) -> str:
    """Return an identity that is never issued: a service without workloads in the mesh accepts it alone."""
    return f"spiffe://{trust_domain}/nobody"


def _common(directory: str, protocols: Iterable[str], accepted: Iterable[SubjectAltNameMatcher]) -> CommonTlsContext:
    return CommonTlsContext(
        tls_params=_VERSIONS,
        tls_certificate_sds_secret_configs=[secret(wire.SVID_SECRET, directory)],
        combined_validation_context=CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=CertificateValidationContext(match_typed_subject_alt_names=accepted),
            validation_context_sds_secret_config=secret(wire.ROOTS_SECRET, wire.ROOTS),
        ),
        alpn_protocols=protocols,
    )


def _uri(matcher: StringMatcher) -> SubjectAltNameMatcher:
    return SubjectAltNameMatcher(san_type=SubjectAltNameMatcher.URI, matcher=matcher)
