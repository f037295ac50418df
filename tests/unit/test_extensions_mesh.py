"""Which hosts EnvoyFilters and WasmPlugins are for, whom their changes touch, and what is made only once."""

from typing import Any

import pytest

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.checks.world import World
from hostmesh_controller.mesh import Mesh, update
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.validate import validate
from hostmesh_controller.xds.messages import as_json, message_of

SERVICE = "outbound|80||db.default.svc.cluster.local"
PLUGIN = "extensions.istio.io/wasmplugin/default.mine"


def hosts(**apps: str) -> list[ApiObject]:
    """Return a host with one workload for each name; the value is its label."""
    found: list[ApiObject] = []
    for index, (name, app) in enumerate(apps.items(), start=1):
        address = f"10.9.0.{index}"
        found.append(obj("Host", name, {"addresses": [address]}))
        spec = {"address": address, "labels": {"app": app}, "serviceAccount": "one"}
        found.append(obj("WorkloadEntry", name, spec))
    ports = [{"name": "http", "port": 80}, {"name": "tcp", "port": 3306}]
    return [*found, obj("Service", "db", {"selector": {"app": "db"}, "ports": ports})]


def cluster_filter(name: str = "mine", app: str = "web", **value: Any) -> ApiObject:
    match = {"context": "SIDECAR_OUTBOUND", "cluster": {"service": "db.default.svc.cluster.local"}}
    patch = {"applyTo": "CLUSTER", "match": match, "patch": {"operation": "MERGE", "value": value}}
    return obj("EnvoyFilter", name, {"workloadSelector": {"labels": {"app": app}}, "configPatches": [patch]})


def plugin(app: str = "db", **spec: Any) -> ApiObject:
    return obj("WasmPlugin", "mine", {"url": "file:///x.wasm", "selector": {"matchLabels": {"app": app}}, **spec})


def changed(mesh: Mesh, *items: ApiObject) -> tuple[Mesh, Any]:
    return update(mesh, {item.key: item for item in items}, mesh.vips, mesh.runtime)


def cluster(mesh: Mesh, host: str, name: str = SERVICE) -> Any:
    return xds.resource(mesh, host, wire.CLUSTER_TYPE, name)


def test_hosts_with_the_same_filters_share_what_is_patched_and_others_have_what_was_made() -> None:
    plain = mesh_of(hosts(web="web", web2="web", other="other", db="db"))
    mesh, _ = changed(plain, cluster_filter(alt_stat_name="mine"))
    assert cluster(mesh, "web") is cluster(mesh, "web2")
    assert cluster(mesh, "web").version != cluster(mesh, "other").version
    assert cluster(mesh, "other") is cluster(plain, "other")
    # A filter for something else leaves the very same resource.
    elsewhere, _ = changed(plain, cluster_filter(app="db", alt_stat_name="mine"))
    assert xds.resource(elsewhere, "db", wire.VIRTUAL_HOST_TYPE, "80/db") is not None
    assert cluster(elsewhere, "web") is cluster(plain, "web")


def test_a_cluster_that_is_asked_for_by_address_is_patched_as_its_services() -> None:
    mesh = mesh_of([*hosts(web="web", db="db"), cluster_filter(alt_stat_name="mine")])
    found = message_of(cluster(mesh, "web", "tcp|240.240.0.1:3306"))
    assert found is not None
    assert as_json(found)["altStatName"] == "mine"


def test_an_edited_filter_touches_its_hosts_alone_and_one_of_no_consequence_keeps_versions() -> None:
    mesh = mesh_of([*hosts(web="web", other="other"), cluster_filter(alt_stat_name="a")])
    after, touched = changed(mesh, cluster_filter(alt_stat_name="b"))
    assert touched.hosts == {"web"}
    assert touched.services == {"host:web"}
    assert not touched.everything
    same = xds.resource(after, "web", wire.LISTENER_TYPE, "0.0.0.0_80")
    before = xds.resource(mesh, "web", wire.LISTENER_TYPE, "0.0.0.0_80")
    assert same is not None
    assert before is not None
    assert same.version == before.version


def test_a_filter_that_an_older_version_took_and_this_one_cannot_read_changes_nothing() -> None:
    bad = {"applyTo": "CLUSTER", "patch": {"operation": "MERGE", "value": {"connect_timeout": "soon"}}}
    mesh = mesh_of([*hosts(web="web", db="db"), obj("EnvoyFilter", "bad", {"configPatches": [bad]})])
    assert cluster(mesh, "web").version == cluster(mesh_of(hosts(web="web", db="db")), "web").version


def test_what_is_removed_is_not_there_and_a_removed_virtual_host_is_nobody() -> None:
    def removed(apply_to: str, **match: Any) -> ApiObject:
        patch = {"applyTo": apply_to, "match": match, "patch": {"operation": "REMOVE"}}
        return obj("EnvoyFilter", f"no-{apply_to.lower().replace('_', '-')}", {"configPatches": [patch]})

    mesh = mesh_of(
        [
            *hosts(web="web", db="db"),
            removed("CLUSTER", cluster={"name": SERVICE}),
            removed("VIRTUAL_HOST", routeConfiguration={"vhost": {"name": "db.default.svc.cluster.local:80"}}),
            removed("LISTENER", listener={"name": "0.0.0.0_80"}),
        ]
    )
    assert cluster(mesh, "web") is None
    assert xds.resource(mesh, "web", wire.LISTENER_TYPE, "0.0.0.0_80") is None
    found = xds.resource(mesh, "web", wire.VIRTUAL_HOST_TYPE, "80/db")
    assert found is not None
    assert xds.is_absent(found)
    assert xds.resource(mesh, "web", wire.LISTENER_TYPE, "virtualOutbound") is not None


def test_a_plugin_is_given_to_the_hosts_that_it_is_for_and_to_no_others() -> None:
    mesh = mesh_of([*hosts(web="web", db="db"), plugin()])
    assert xds.resource(mesh, "db", wire.EXTENSION_TYPE, PLUGIN) is not None
    assert xds.resource(mesh, "web", wire.EXTENSION_TYPE, PLUGIN) is None
    assert xds.resource(mesh, "db", wire.EXTENSION_TYPE, "extensions.istio.io/wasmplugin/default.none") is None
    assert "object:WasmPlugin/default/mine" in xds.dependencies(mesh, "db", wire.EXTENSION_TYPE, PLUGIN)


def test_an_edited_plugin_changes_its_configuration_and_no_listener() -> None:
    mesh = mesh_of([*hosts(web="web", db="db"), plugin()])
    after, touched = changed(mesh, plugin(pluginConfig={"a": 1}))
    assert touched.hosts == {"db"}
    assert "object:WasmPlugin/default/mine" in touched.services

    def versions(of: Mesh) -> list[str]:
        names = xds.wildcard(of, "db", wire.LISTENER_TYPE)
        found = (xds.resource(of, "db", wire.LISTENER_TYPE, name) for name in names)
        return [each.version for each in found if each is not None]

    assert versions(after) == versions(mesh)
    one, other = (xds.resource(each, "db", wire.EXTENSION_TYPE, PLUGIN) for each in (mesh, after))
    assert one is not None
    assert other is not None
    assert one.version != other.version


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"url": "http://example.com/x.wasm"}, "unverified-module"),
        ({"type": "NETWORK", "match": [{"ports": [{"number": 80}]}]}, "ineffective-match"),
    ],
)
def test_a_plugin_that_is_doubtful_is_warned_of(spec: dict[str, Any], code: str) -> None:
    assert code in {each.code for each in validate([plugin(**spec)], World("cluster.local"))}
    assert not {each.code for each in validate([plugin(sha256="0" * 64)], World("cluster.local"))} & {code}
