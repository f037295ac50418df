"""How Envoy is run: which ProxyConfig holds for a host, and what of it and of MeshConfig reaches the agent."""

from typing import Any

import pytest

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_api.v1.hostmesh_pb2 import EnvoySettings, HostConfig
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh, build, update
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.messages import message_of

OBJECTS = [
    obj("Host", "one", {"addresses": ["10.0.0.1"]}),
    obj("Host", "two", {"addresses": ["10.0.0.2"]}),
    obj("WorkloadEntry", "a", {"address": "10.0.0.1", "labels": {"app": "a"}}, "shop"),
    obj("WorkloadEntry", "b", {"address": "10.0.0.2", "labels": {"app": "b"}}, "shop"),
]


def config(name: str, namespace: str, concurrency: int | None = None, *, age: int = 0, **labels: str) -> ApiObject:
    spec: dict[str, Any] = {} if concurrency is None else {"concurrency": concurrency}
    if labels:
        spec["selector"] = {"matchLabels": labels}
    return obj("ProxyConfig", name, spec, namespace, age=age)


def settings(mesh: Mesh, host: str = "one") -> EnvoySettings:
    found = xds.resource(mesh, host, wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    assert found is not None
    message = message_of(found)
    assert isinstance(message, HostConfig)
    return message.envoy


ROOT = config("root", "istio-system", 1)
SPACE = config("space", "shop", 2)
OWN = config("own", "shop", 3, app="a")
MESH = obj("MeshConfig", "default", {"defaultConfig": {"concurrency": 9}})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], None),
        ([MESH], 9),
        ([MESH, ROOT], 1),
        ([MESH, ROOT, SPACE], 2),
        ([MESH, ROOT, SPACE, OWN], 3),
        ([SPACE, config("own", "shop", app="a")], 2),
        ([config("young", "shop", 5, age=9), config("old", "shop", 4, age=1)], 4),
        ([config("all", "shop", 0)], 0),
        ([config("other", "elsewhere", 7)], None),
    ],
)
def test_the_nearest_proxy_config_says_how_many_threads_envoy_has(given: list[ApiObject], expected: int | None) -> None:
    found = settings(mesh_of([*OBJECTS, *given]))
    assert (found.concurrency if found.HasField("concurrency") else None) == expected


def test_how_long_envoy_drains_is_istios_default_or_what_the_mesh_says() -> None:
    default = settings(mesh_of(OBJECTS))
    assert (default.drain_s, default.termination_drain_ms) == (45, 5000)
    spec = {"defaultConfig": {"drainDuration": "7s", "terminationDrainDuration": "1500ms"}}
    own = settings(mesh_of([*OBJECTS, obj("MeshConfig", "default", spec)]))
    assert (own.drain_s, own.termination_drain_ms) == (7, 1500)


def test_a_changed_proxy_config_touches_the_hosts_of_its_namespace_and_gives_what_a_new_build_gives() -> None:
    before = mesh_of([*OBJECTS, obj("Host", "far", {"addresses": ["10.0.0.3"], "namespace": "elsewhere"})])
    for change, touched_hosts in ((OWN, {"one", "two"}), (ROOT, {"one", "two", "far"})):
        after, touched = update(before, {change.key: change}, before.vips, before.runtime)
        assert touched.hosts == touched_hosts
        assert after == build(before.settings, after.objects.values(), before.vips, before.runtime)
    assert settings(update(before, {OWN.key: OWN}, before.vips, before.runtime)[0]).concurrency == 3
