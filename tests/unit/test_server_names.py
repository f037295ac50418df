"""Server names that Envoy is asked to tell: one that it cannot would cost the whole listener."""

from envoy.config.listener.v3.listener_pb2 import Listener

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.messages import message_of


def entry(name: str, host: str, **more: object) -> ApiObject:
    ports = [{"number": 443, "name": "tls", "protocol": "TLS"}]
    return obj("ServiceEntry", name, {"hosts": [host], "ports": ports, **more})


HOST = obj("Host", "edge", {"addresses": ["10.0.0.1"], "capture": {"scope": "all"}})
EDGE = obj("WorkloadEntry", "edge", {"address": "10.0.0.1", "labels": {"app": "edge"}})


def server_names(listener: str, *objects: ApiObject) -> list[str]:
    found = xds.resource(mesh_of([HOST, EDGE, *objects]), "edge", wire.LISTENER_TYPE, listener)
    made = message_of(found) if found else None
    assert isinstance(made, Listener)
    return sorted(name for chain in made.filter_chains for name in chain.filter_chain_match.server_names)


def test_a_wildcard_of_a_part_of_a_label_is_no_server_name() -> None:
    outside = {"location": "MESH_EXTERNAL", "resolution": "NONE"}
    others = [entry("whole", "*.whole.test", **outside), entry("one", "one.test", **outside)]
    part = entry("part", "*-part.test", **outside)
    assert server_names("0.0.0.0_443", *others, part) == ["*.whole.test", "one.test"]


def test_a_service_of_many_names_is_not_passed_on_by_its_name() -> None:
    inside = {"location": "MESH_INTERNAL", "resolution": "STATIC", "endpoints": [{"address": "10.0.0.9"}]}
    port = {"number": 15443, "name": "tls", "protocol": "TLS"}
    server = {"port": port, "hosts": ["*.test"], "tls": {"mode": "AUTO_PASSTHROUGH"}}
    gateway = obj("Gateway", "edge", {"selector": {"app": "edge"}, "servers": [server]})
    names = server_names(
        "0.0.0.0_15443", gateway, entry("many", "*.many.test", **inside), entry("b", "b.test", **inside)
    )
    assert names == ["outbound_.443_._.b.test"]
