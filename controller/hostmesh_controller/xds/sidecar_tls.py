"""TLS that ends at a Sidecar's ingress, with certificates in files of the host."""

from envoy.config.core.v3.base_pb2 import TransportSocket
from envoy.extensions.transport_sockets.tls.v3.tls_pb2 import CommonTlsContext, DownstreamTlsContext
from google.protobuf.wrappers_pb2 import BoolValue

from hostmesh_controller.model.server_tls import ServerTls
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.file_secrets import certificate_name, roots_name
from hostmesh_controller.xds.gateway_tls import HTTP, demands, set_parameters
from hostmesh_controller.xds.sources import ads_secret
from hostmesh_controller.xds.tls import TLS


def from_files(settings: ServerTls) -> TransportSocket:
    """Return the TLS of mode SIMPLE, MUTUAL or OPTIONAL_MUTUAL."""
    common = CommonTlsContext(alpn_protocols=HTTP)
    certificate = certificate_name(settings.server_certificate, settings.private_key)
    common.tls_certificate_sds_secret_configs.append(ads_secret(certificate))
    set_parameters(common, settings)
    if settings.mode != "SIMPLE":
        common.combined_validation_context.CopyFrom(_validation(settings))
    required = BoolValue(value=settings.mode == "MUTUAL")
    context = DownstreamTlsContext(common_tls_context=common, require_client_certificate=required)
    return TransportSocket(name=TLS, typed_config=any_of(context))


def _validation(settings: ServerTls) -> CommonTlsContext.CombinedCertificateValidationContext:
    return CommonTlsContext.CombinedCertificateValidationContext(
        default_validation_context=demands(settings),
        validation_context_sds_secret_config=ads_secret(roots_name(settings.ca_certificates)),
    )
