"""The routes of one VirtualService, as Envoy gets them."""

from typing import Any

from envoy.config.route.v3.route_components_pb2 import HeaderMatcher, Route
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from golden.objects import mesh_of, obj
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.routes import virtual_service_routes

CALLER = Viewer(namespace="default", labels=(frozenset({("app", "web"), ("version", "v1")}),))
SERVICE = {"selector": {"app": "one"}, "ports": [{"name": "http", "port": 8484}, {"name": "http-2", "port": 8485}]}


def to(host: str = "one", **more: Any) -> dict[str, Any]:
    return {"route": [{"destination": {"host": host, "port": {"number": 8484}}}], **more}


def the_mesh(*more: ApiObject) -> Mesh:
    return mesh_of(
        [obj("Service", "one", SERVICE), obj("Service", "two", {"ports": [{"name": "http", "port": 81}]}), *more]
    )


def routes(
    *https: dict[str, Any],
    viewer: Viewer = CALLER,
    port: int = 8080,
    gateways: tuple[str, ...] = ("mesh",),
    more: tuple[ApiObject, ...] = (),
    tls: bool = False,
) -> list[Route]:
    item = obj("VirtualService", "acme", {"hosts": ["one"], "gateways": ["mesh", "some-gateway"], "http": list(https)})
    return virtual_service_routes(the_mesh(item, *more), viewer, item, port, gateways, tls=tls)


def route(http: dict[str, Any], **more: Any) -> Route:
    (found,) = routes(http, **more)
    return found


def read(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def match(**wanted: Any) -> dict[str, Any]:
    return read(route(to(match=[wanted])).match)


def header(**wanted: Any) -> HeaderMatcher:
    (found,) = route(to(match=[wanted])).match.headers
    return found
