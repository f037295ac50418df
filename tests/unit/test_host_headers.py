"""What a host header stands for on a port."""

import pytest
from envoy.config.route.v3.route_components_pb2 import VirtualHost

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.names import VirtualHostName
from hostmesh_controller.xds.messages import message_of

MESH = mesh_of(
    [
        obj("Host", "one", {"addresses": ["10.0.0.1"]}),
        obj("Service", "web", {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 8080}]}),
        obj(
            "VirtualService",
            "outside",
            {"hosts": ["outside.example.com"], "http": [{"route": [{"destination": {"host": "web"}}]}]},
        ),
    ]
)


def cluster(port: int, header: str) -> str | None:
    name = str(VirtualHostName(port, header))
    found = xds.resource(MESH, "one", wire.VIRTUAL_HOST_TYPE, name)
    assert found is not None
    host = message_of(found)
    if host is None:
        return None
    assert isinstance(host, VirtualHost)
    # Envoy looks the answer up by the header that it asked for.
    assert list(host.domains) == [header]
    return host.routes[0].route.cluster


@pytest.mark.parametrize(
    "header", ["web", "web:8080", "web:12345", "web.default.svc.cluster.local:1", "web.default:80"]
)
def test_the_port_of_a_host_header_does_not_count(header: str) -> None:
    assert cluster(8080, header) == "outbound|8080||web.default.svc.cluster.local"


def test_nor_does_it_for_a_host_that_a_virtual_service_alone_has() -> None:
    assert cluster(80, "outside.example.com:8080") == "outbound|8080||web.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("port", "header"), [(8080, "web:x"), (8080, "web:99999"), (8080, "nobody:8080"), (81, "web:8080")]
)
def test_what_is_no_port_or_no_service_there_is_answered_404(port: int, header: str) -> None:
    assert cluster(port, header) is None
