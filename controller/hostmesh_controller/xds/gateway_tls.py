"""TLS that ends at a gateway: which certificate is shown, what is demanded of clients, and what is negotiated."""

from collections.abc import Iterable
from typing import Final

from envoy.config.core.v3.base_pb2 import DataSource, TransportSocket
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    SubjectAltNameMatcher,
    TlsParameters,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, DownstreamTlsContext
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_api import wire
from hostmesh_controller.mesh.gateways import Served, terminates_https
from hostmesh_controller.model.server_tls import CIPHER_SUITES, ServerTls
from hostmesh_controller.names import canonical_address
from hostmesh_controller.xds import tls
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.file_secrets import certificate_name, roots_name
from hostmesh_controller.xds.sources import ads_secret, secret

HTTP: Final = ("h2", "http/1.1")
MESH_TCP: Final = ("istio-peer-exchange", *HTTP)
"""What Istio's gateways take of mesh proxies where bytes are passed on."""
_VERSIONS: Final = {
    "TLSV1_0": TlsParameters.TLSv1_0,
    "TLSV1_1": TlsParameters.TLSv1_1,
    "TLSV1_2": TlsParameters.TLSv1_2,
    "TLSV1_3": TlsParameters.TLSv1_3,
}
_VALIDATING: Final = frozenset({"MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL"})


def downstream(served: Served, slug: str, trust: tls.Trust) -> TransportSocket:
    """Return the TLS of a server that does not pass it through.

    Args:
        served: the server.
        slug: the directory of the certificate of the gateway's workload, for mode ISTIO_MUTUAL.
        trust: whose identities mode ISTIO_MUTUAL takes.
    """
    settings = served.server.tls
    assert settings is not None
    mutual = settings.mode == "ISTIO_MUTUAL"
    common = CommonTlsContext(alpn_protocols=MESH_TCP if mutual and not terminates_https(served.server) else HTTP)
    if mutual:
        if trust.tls13:
            common.tls_params.tls_minimum_protocol_version = TlsParameters.TLSv1_3
            common.tls_params.tls_maximum_protocol_version = TlsParameters.TLSv1_3
        directory = f"{tls.CERTIFICATES}/{slug}"
        common.tls_certificate_sds_secret_configs.append(secret(wire.SVID_SECRET, directory))
    else:
        common.tls_certificate_sds_secret_configs.extend(map(ads_secret, _certificates(served, settings)))
        set_parameters(common, settings)
    if settings.mode in _VALIDATING:
        _verify(common, served, settings, trust)
    context = DownstreamTlsContext(
        common_tls_context=common,
        require_client_certificate=BoolValue(value=settings.mode in {"MUTUAL", "ISTIO_MUTUAL"}),
    )
    return TransportSocket(name=tls.TLS, typed_config=any_of(context))


def _certificates(served: Served, settings: ServerTls) -> Iterable[str]:
    if served.credentials:
        return served.credentials
    if settings.tls_certificates is not None:
        return [certificate_name(each.server_certificate, each.private_key) for each in settings.tls_certificates]
    return [certificate_name(settings.server_certificate, settings.private_key)]


def _verify(common: CommonTlsContext, served: Served, settings: ServerTls, trust: tls.Trust) -> None:
    context = demands(settings)
    for name in settings.subject_alt_names:
        context.match_typed_subject_alt_names.extend(_exactly(name))
    if settings.mode == "ISTIO_MUTUAL":
        if not settings.subject_alt_names:
            for anyone in trust.callers:
                context.match_typed_subject_alt_names.add(san_type=SubjectAltNameMatcher.URI, matcher=anyone)
        roots = secret(wire.ROOTS_SECRET, wire.ROOTS)
    else:
        roots = ads_secret(served.roots or roots_name(settings.ca_certificates))
    common.combined_validation_context.CopyFrom(
        CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=context, validation_context_sds_secret_config=roots
        )
    )


def demands(settings: ServerTls) -> CertificateValidationContext:
    """Return what is demanded of clients' certificates besides their roots and names."""
    context = CertificateValidationContext(
        verify_certificate_spki=settings.verify_certificate_spki,
        verify_certificate_hash=settings.verify_certificate_hash,
    )
    if settings.ca_crl:
        context.crl.CopyFrom(DataSource(filename=settings.ca_crl))
    if settings.insecure_skip_verify:
        context.trust_chain_verification = CertificateValidationContext.ACCEPT_UNTRUSTED
    return context


def _exactly(name: str) -> list[SubjectAltNameMatcher]:
    """Return what a subject alternative name may be: Istio does not ask which kind of name it is."""
    address = canonical_address(name)
    kinds = [SubjectAltNameMatcher.IP_ADDRESS] if address else [SubjectAltNameMatcher.DNS]
    if "://" in name:
        kinds = [SubjectAltNameMatcher.URI]
    elif "@" in name:
        kinds = [SubjectAltNameMatcher.EMAIL]
    return [SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=address or name)) for kind in kinds]


def set_parameters(common: CommonTlsContext, settings: ServerTls) -> None:
    """Set versions, ciphers and curves as far as they are said."""
    # What is not said is Envoy's: TLS 1.2 and 1.3, with its own ciphers and curves.
    parameters = TlsParameters(
        cipher_suites=[each for each in dict.fromkeys(settings.cipher_suites) if each in CIPHER_SUITES],
        ecdh_curves=settings.ecdh_curves,
    )
    if settings.min_protocol_version in _VERSIONS:
        parameters.tls_minimum_protocol_version = _VERSIONS[settings.min_protocol_version]
    if settings.max_protocol_version in _VERSIONS:
        parameters.tls_maximum_protocol_version = _VERSIONS[settings.max_protocol_version]
    if parameters.ByteSize():
        common.tls_params.CopyFrom(parameters)
