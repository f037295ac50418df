"""TLS that a DestinationRule asks for towards a service outside the mesh."""

from collections.abc import Iterable

from envoy.config.core.v3.base_pb2 import DataSource, TransportSocket
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import (
    CertificateValidationContext,
    SubjectAltNameMatcher,
    TlsParameters,
)
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, UpstreamTlsContext
from envoy.type.matcher.v3.string_pb2 import StringMatcher

from hostmesh_controller.mesh.gateways import ROOTS_SUFFIX
from hostmesh_controller.model.destination_rule import ClientTls
from hostmesh_controller.names import canonical_address
from hostmesh_controller.xds.cluster_target import Outbound
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.file_secrets import SYSTEM, certificate_name, roots_name
from hostmesh_controller.xds.sources import ads_secret, stored_secret
from hostmesh_controller.xds.tls import TLS


def origination(client: ClientTls, target: Outbound) -> TransportSocket:
    """Return TLS of mode SIMPLE or MUTUAL, with files of the calling host or a stored credential.

    The server name is the rule's. Without one it is that of each request (see `cluster_http`), and for bytes the
    service's. Accepted names are the rule's, else the ServiceEntry's; with neither any certificate of the authority is
    accepted where the rule has a server name, and else only one that has the server name.
    """
    name = client.sni or ("" if target.http or target.service.is_wildcard else target.name.hostname)
    common = CommonTlsContext(
        tls_params=TlsParameters(
            tls_minimum_protocol_version=TlsParameters.TLSv1_2, tls_maximum_protocol_version=TlsParameters.TLSv1_3
        ),
        alpn_protocols=["h2"] if target.is_http2 else [],
    )
    accepted = client.subject_alt_names or target.service.subject_alt_names
    if not accepted and not client.sni and name:
        accepted = (name,)
    _show(common, client, target.namespace)
    if target.verifies:
        _verify(common, client, target.namespace, accepted)
    else:
        common.validation_context.SetInParent()
    return TransportSocket(name=TLS, typed_config=any_of(UpstreamTlsContext(common_tls_context=common, sni=name)))


def _show(common: CommonTlsContext, client: ClientTls, namespace: str) -> None:
    if client.mode != "MUTUAL":
        return
    if client.credential_name:
        common.tls_certificate_sds_secret_configs.append(stored_secret(client.credential_name, namespace))
    elif client.client_certificate and client.private_key:
        name = certificate_name(client.client_certificate, client.private_key)
        common.tls_certificate_sds_secret_configs.append(ads_secret(name))


def _verify(common: CommonTlsContext, client: ClientTls, namespace: str, accepted: Iterable[str]) -> None:
    context = CertificateValidationContext(match_typed_subject_alt_names=[_matcher(item) for item in accepted])
    if client.ca_crl:
        context.crl.CopyFrom(DataSource(filename=client.ca_crl))
    if client.credential_name:
        roots = stored_secret(client.credential_name + ROOTS_SUFFIX, namespace)
    else:
        roots = ads_secret(roots_name(client.ca_certificates or SYSTEM))
    common.combined_validation_context.CopyFrom(
        CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=context, validation_context_sds_secret_config=roots
        )
    )


def _matcher(name: str) -> SubjectAltNameMatcher:
    address = canonical_address(name)
    if address is not None:
        kind = SubjectAltNameMatcher.IP_ADDRESS
    else:
        kind = SubjectAltNameMatcher.URI if "://" in name else SubjectAltNameMatcher.DNS
    return SubjectAltNameMatcher(san_type=kind, matcher=StringMatcher(exact=address or name))
