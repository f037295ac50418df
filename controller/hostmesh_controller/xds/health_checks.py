"""HealthCheck: callers' proxies ask the endpoints that they use whether they are well."""

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.config.core.v3.health_check_pb2 import HealthCheck
from envoy.type.v3.http_pb2 import CodecClientType
from envoy.type.v3.percent_pb2 import Percent
from envoy.type.v3.range_pb2 import Int64Range
from google.protobuf.wrappers_pb2 import BoolValue, UInt32Value

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServicePort
from hostmesh_controller.mesh.take_extensions import checked_host
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.exports import export_to
from hostmesh_controller.model.health_check import HealthCheckSpec, HttpCheck
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.encoding import duration


def check_of(mesh: Mesh, service: Service, port: ServicePort, viewer: Viewer) -> ApiObject | None:
    """Return the HealthCheck of a service's port that a viewer sees: its own namespace's first, then the oldest."""
    found = [
        item
        for item in mesh.of_kind("HealthCheck")
        if checked_host(item, mesh.settings.domain) == service.id.hostname
        and (not _spec(item).ports or port.number in _spec(item).ports)
        and {"*", viewer.namespace} & export_to(_spec(item).export_to, item.key.namespace)
    ]
    return min(found, key=lambda item: item.key.namespace != viewer.namespace, default=None)


def _spec(item: ApiObject) -> HealthCheckSpec:
    assert isinstance(item.spec, HealthCheckSpec)
    return item.spec


def set_health_check(cluster: Cluster, item: ApiObject, service: Service, port: ServicePort) -> None:
    """Make a cluster ask its endpoints; one that has none of its own (ORIGINAL_DST) is left as it is."""
    if cluster.type == Cluster.ORIGINAL_DST:
        return
    spec = _spec(item)
    check = HealthCheck(
        timeout=duration(spec.timeout.total_seconds()),
        interval=duration(spec.interval.total_seconds()),
        # Envoy's own default is a minute for a cluster without traffic, which would find a recovery that late.
        no_traffic_interval=duration(spec.interval.total_seconds()),
        healthy_threshold=UInt32Value(value=spec.healthy_threshold),
        unhealthy_threshold=UInt32Value(value=spec.unhealthy_threshold),
        # The connection of a check is no one of the program's: it must not outlive its endpoint's certificate.
        reuse_connection=BoolValue(value=False),
    )
    if spec.http is not None:
        _http(check.http_health_check, spec.http, service, port)
    elif spec.grpc is not None:
        check.grpc_health_check.service_name = spec.grpc.service
        check.grpc_health_check.authority = service.id.hostname
    else:
        check.tcp_health_check.CopyFrom(HealthCheck.TcpHealthCheck())
    cluster.health_checks.append(check)
    # What is not an endpoint any more is left at once, however well it is.
    cluster.ignore_health_on_host_removal = True
    if not cluster.common_lb_config.HasField("healthy_panic_threshold"):
        # As with outlier detection: one that is not well is not called because others are not well either.
        cluster.common_lb_config.healthy_panic_threshold.CopyFrom(Percent(value=0))


def _http(check: HealthCheck.HttpHealthCheck, http: HttpCheck, service: Service, port: ServicePort) -> None:
    check.path = http.path
    check.host = http.host or service.id.hostname
    check.expected_statuses.extend(Int64Range(start=first, end=last + 1) for first, last in http.ranges)
    for name, value in sorted(http.headers.items()):
        overwrite = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        check.request_headers_to_add.append(
            HeaderValueOption(header=HeaderValue(key=name, value=value), append_action=overwrite)
        )
    if port.protocol.is_http2:
        check.codec_client_type = CodecClientType.HTTP2
