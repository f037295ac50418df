"""TLS that a DestinationRule asks for towards a service outside the mesh."""

from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource, TransportSocket
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    SubjectAltNameMatcher,
    TlsCertificate,
    TlsParameters,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, UpstreamTlsContext
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from hostmesh_controller.model.destination_rule import ClientTls
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.tls import TLS

SYSTEM_ROOTS: Final = "/etc/ssl/certs/ca-certificates.crt"
"""Where Debian keeps them, and Istio's default."""


def origination(client: ClientTls, hostname: str, *, http2: bool) -> TransportSocket:
    """Return TLS of mode SIMPLE or MUTUAL with files of the calling host.

    Args:
        client: what the rule says.
        hostname: the service's, which is the server name and the accepted name unless the rule has others.
        http2: what to negotiate.
    """
    name = client.sni or hostname
    common = CommonTlsContext(
        tls_params=TlsParameters(
            tls_minimum_protocol_version=TlsParameters.TLSv1_2, tls_maximum_protocol_version=TlsParameters.TLSv1_3
        ),
        alpn_protocols=["h2"] if http2 else [],
    )
    if client.client_certificate and client.private_key:
        common.tls_certificates.append(
            TlsCertificate(
                certificate_chain=DataSource(filename=client.client_certificate),
                private_key=DataSource(filename=client.private_key),
            )
        )
    if not client.insecure_skip_verify:
        accepted = client.subject_alt_names or (name,)
        common.validation_context.CopyFrom(
            CertificateValidationContext(
                trusted_ca=DataSource(filename=client.ca_certificates or SYSTEM_ROOTS),
                match_typed_subject_alt_names=[_matcher(item) for item in accepted],
            )
        )
    return TransportSocket(name=TLS, typed_config=any_of(UpstreamTlsContext(common_tls_context=common, sni=name)))


def _matcher(name: str) -> SubjectAltNameMatcher:
    kind = SubjectAltNameMatcher.URI if "://" in name else SubjectAltNameMatcher.DNS
    return SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=name))
