"""What a configuration means: workloads, endpoints, modes, identities, visibility."""

from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.objects import SETTINGS, all_ready, mesh_of, obj
from hostmesh_api import wire
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, Touched, build, host_dependency, update
from hostmesh_controller.mesh.compiled import virtual_hostnames
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.records import Endpoint, Mode
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.mesh.visibility import service_at, service_named
from hostmesh_controller.model.objects import ApiObject

ADDRESS = "10.0.0.1"
A = "a.default.svc.cluster.local"


def host(name: str = "one", *addresses: str, **more: Any) -> ApiObject:
    return obj("Host", name, {"addresses": list(addresses or (ADDRESS,)), **more})


def workload(name: str, address: str = ADDRESS, namespace: str = "default", **more: Any) -> ApiObject:
    return obj("WorkloadEntry", name, {"address": address, "labels": {"app": "a"}, **more}, namespace)


def service(name: str = "a", namespace: str = "default", *, export: str = "", **port: Any) -> ApiObject:
    ports = [{"name": "http", "port": 80, **port}]
    annotations = {"networking.istio.io/exportTo": export} if export else {}
    return obj("Service", name, {"selector": {"app": "a"}, "ports": ports}, namespace, annotations=annotations)


def policy(name: str, mode: str, namespace: str = "default", **more: Any) -> ApiObject:
    age = more.pop("age", 0)
    return obj("PeerAuthentication", name, {"mtls": {"mode": mode}, **more}, namespace, age=age)


def endpoints(mesh: Mesh, name: str = "a", namespace: str = "default") -> list[Endpoint]:
    found = service_named(mesh, f"{name}.{namespace}.svc.cluster.local", Viewer(namespace))
    assert found is not None
    return [each for member in mesh.endpoints_of(found).members.values() for each in member.endpoints.values()]


def config(mesh: Mesh, name: str = "one") -> HostConfig:
    found = xds.resource(mesh, name, wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    assert found is not None
    return HostConfig.FromString(Resource.FromString(found.body).resource.value)


@pytest.mark.parametrize(
    ("port", "ports", "expected"),
    [
        ({}, {}, 80),
        ({"targetPort": 8080}, {}, 8080),
        ({"targetPort": 8080}, {"http": 9090}, 9090),
        ({"targetPort": "web"}, {"web": 7070}, 7070),
        ({"targetPort": "web"}, {"http": 6060, "web": 7070}, 6060),
    ],
)
def test_an_endpoints_port_is_the_workloads_word_then_the_target_port_then_the_port(
    port: dict[str, Any], ports: dict[str, int], expected: int
) -> None:
    mesh = mesh_of([host(), workload("w", ports=ports), service(**port)])
    assert [each.port for each in endpoints(mesh)] == [expected]


def test_a_target_port_that_the_workload_does_not_name_has_no_endpoint() -> None:
    assert endpoints(mesh_of([host(), workload("w"), service(targetPort="web")])) == []


READY = frozenset({("default", "w")})


@pytest.mark.parametrize(
    ("runtime", "mode", "expected"),
    [
        (HostRuntime(True, READY), "PERMISSIVE", [True]),
        (HostRuntime(True, READY), "STRICT", [True]),
        (HostRuntime(True, READY), "DISABLE", [False]),
        (HostRuntime(True, READY, captured=frozenset({80})), "STRICT", [True]),
        (HostRuntime(True, READY, captured=frozenset()), "STRICT", []),
        (HostRuntime(True), "PERMISSIVE", [False]),
        (HostRuntime(True), "STRICT", []),
        (HostRuntime(False, READY), "PERMISSIVE", [False]),
        (HostRuntime(False, READY), "STRICT", []),
        (HostRuntime(False), "DISABLE", [False]),
    ],
)
def test_an_endpoint_is_called_with_mutual_tls_when_it_is_ready_and_in_plaintext_where_that_is_allowed(
    runtime: HostRuntime, mode: str, expected: list[bool]
) -> None:
    mesh = mesh_of([host(), workload("w"), service(), policy("p", mode)], {"one": runtime})
    assert [each.tls for each in endpoints(mesh)] == expected


def test_a_workload_on_no_host_is_a_plaintext_endpoint_and_nobodys_identity() -> None:
    mesh = mesh_of([host(), workload("w", "192.0.2.1"), service(), policy("p", "STRICT")])
    assert [(each.address, each.tls) for each in endpoints(mesh)] == [("192.0.2.1", False)]
    assert mesh.endpoints_of(mesh.services[next(iter(mesh.services))]).identities == ()


def modes(*policies: ApiObject) -> dict[int, Mode]:
    mesh = mesh_of([host(), workload("w", ports={"tcp-x": 90}), service(), *policies])
    return {port.number: port.mode for port in inbound_ports(mesh, "one")}


def test_the_narrowest_policy_holds_and_unset_inherits() -> None:
    mesh_wide = policy("mesh", "STRICT", "istio-system")
    selector = {"matchLabels": {"app": "a"}}
    assert modes() == {80: Mode.PERMISSIVE, 90: Mode.PERMISSIVE}
    assert modes(mesh_wide) == {80: Mode.STRICT, 90: Mode.STRICT}
    assert modes(mesh_wide, policy("ns", "DISABLE"))[80] is Mode.DISABLE
    assert modes(mesh_wide, policy("ns", "UNSET"))[80] is Mode.STRICT
    own = policy("own", "PERMISSIVE", selector=selector, portLevelMtls={"90": {"mode": "DISABLE"}})
    assert modes(mesh_wide, own) == {80: Mode.PERMISSIVE, 90: Mode.DISABLE}
    other = policy("own", "PERMISSIVE", selector={"matchLabels": {"app": "b"}})
    assert modes(mesh_wide, other)[80] is Mode.STRICT


def test_of_two_policies_the_oldest_holds() -> None:
    assert modes(policy("young", "STRICT", age=2), policy("z-old", "DISABLE", age=1))[80] is Mode.DISABLE


def test_a_host_serves_all_its_workloads_under_their_own_identities() -> None:
    mesh = mesh_of(
        [
            host("one", ADDRESS, "10.0.0.2"),
            workload("w1", serviceAccount="x"),
            workload("w2", "10.0.0.2"),
            workload("w3", "10.0.0.2", "other", ports={"tcp": 99}),
            service(targetPort=8080),
        ]
    )
    found = config(mesh)
    assert [(each.namespace, each.name, each.spiffe_id, list(each.ports)) for each in found.workloads] == [
        ("default", "w1", "spiffe://cluster.local/ns/default/sa/x", [8080]),
        ("default", "w2", "spiffe://cluster.local/ns/default/sa/default", [8080]),
        ("other", "w3", "spiffe://cluster.local/ns/other/sa/default", [99]),
    ]
    assert list(found.capture.inbound_ports) == [99, 8080]
    assert [(port.number, port.shared) for port in inbound_ports(mesh, "one")] == [
        (99, False),
        (8080, True),
        (8080, True),
    ]


def test_an_endpoint_that_a_service_entry_lists_takes_no_port_from_a_workload_entry() -> None:
    spec = {
        "hosts": ["alias.test"],
        "location": "MESH_INTERNAL",
        "resolution": "STATIC",
        "ports": [{"number": 80, "name": "http", "targetPort": 8080}, {"number": 81, "name": "tcp"}],
        "endpoints": [{"address": ADDRESS, "ports": {"tcp": 90}}],
    }
    mesh = mesh_of([host(), workload("w"), service(targetPort=8080), obj("ServiceEntry", "alias", spec, "a-namespace")])
    assert {port.number: port.workload.key.name for port in inbound_ports(mesh, "one")} == {
        8080: "w",
        90: f"alias@{ADDRESS}",
    }


@pytest.mark.parametrize(
    ("accounts", "named", "expected"),
    [
        ([], None, "host/one"),
        (["x"], None, "ns/default/sa/x"),
        (["x", "x"], None, "ns/default/sa/x"),
        (["x", "y"], None, "host/one"),
        (["x", "y"], "y", "ns/default/sa/y"),
        (["x", "y"], "default/w0", "ns/default/sa/x"),
        (["x", "y"], "spiffe://cluster.local/ns/default/sa/y", "ns/default/sa/y"),
        (["x"], "somebody-else", "host/one"),
        (["x"], "spiffe://cluster.local/ns/default/sa/victim", "host/one"),
    ],
)
def test_a_host_calls_others_as_its_only_workload_or_as_it_says_and_never_as_anothers(
    accounts: list[str], named: str | None, expected: str
) -> None:
    more = {"outboundIdentity": named} if named else {}
    workloads = [workload(f"w{index}", serviceAccount=account) for index, account in enumerate(accounts)]
    assert config(mesh_of([host(**more), *workloads])).outbound_spiffe_id == f"spiffe://cluster.local/{expected}"


def test_workloads_call_under_their_own_identities_where_the_host_says_so_and_all_else_as_the_host() -> None:
    workloads = [workload(f"w{index}", serviceAccount=account) for index, account in enumerate(("x", "y", "x"))]
    one, two = ("spiffe://cluster.local/ns/default/sa/x", "spiffe://cluster.local/ns/default/sa/y")
    found = config(mesh_of([host(perWorkloadIdentity=True), *workloads]))
    assert found.outbound_identities == [one, two]
    assert found.outbound_spiffe_id == "spiffe://cluster.local/host/one"
    assert config(mesh_of([host(perWorkloadIdentity=True, outboundIdentity="y"), *workloads])).outbound_spiffe_id == two
    # A program that is no workload's does not get the only workload's identity.
    only = config(mesh_of([host(perWorkloadIdentity=True), workloads[0]]))
    assert only.outbound_spiffe_id == "spiffe://cluster.local/host/one"
    assert only.outbound_identities == [one]
    assert config(mesh_of([host(), *workloads])).outbound_identities == []


def test_a_name_is_the_callers_own_then_the_oldest_and_only_what_is_exported() -> None:
    entry = {"hosts": ["shared.example.com"], "ports": [{"number": 80, "name": "http"}], "resolution": "DNS"}
    mesh = mesh_of(
        [
            obj("ServiceEntry", "e", entry, "b", age=2),
            obj("ServiceEntry", "e", entry, "a", age=1),
            obj("ServiceEntry", "e", entry | {"exportTo": ["."]}, "z", age=0),
        ]
    )
    seen = {
        namespace: service_named(mesh, "shared.example.com", Viewer(namespace)) for namespace in ("a", "b", "c", "z")
    }
    assert {key: found.id.namespace for key, found in seen.items() if found} == {"a": "a", "b": "b", "c": "a", "z": "z"}


def test_an_address_is_a_service_if_it_has_the_port_and_the_longest_block_wins() -> None:
    def entry(name: str, number: int, *addresses: str) -> ApiObject:
        spec = {
            "hosts": [f"{name}.example.com"],
            "addresses": list(addresses),
            "ports": [{"number": number, "name": "tcp"}],
        }
        return obj("ServiceEntry", name, spec)

    mesh = mesh_of([entry("wide", 90, "10.0.0.0/8"), entry("narrow", 90, "10.1.0.0/16"), entry("one", 80, "10.1.0.1")])

    def at(address: str, port: int) -> str | None:
        found = service_at(mesh, address, port, Viewer("default"))
        return found.id.source.name if found else None

    assert [at("10.2.0.1", 90), at("10.1.0.2", 90), at("10.1.0.1", 80)] == ["wide", "narrow", "one"]
    assert [at("10.1.0.1", 90), at("192.0.2.1", 90), at("10.2.0.1", 80)] == ["narrow", None, None]


def test_readiness_touches_endpoints_alone() -> None:
    objects = [host(), workload("w"), service()]
    mesh = mesh_of(objects, {"one": HostRuntime(True)})
    after, touched = update(mesh, {}, mesh.vips, {"one": HostRuntime(True, READY)})
    assert (touched.hosts, touched.services, touched.endpoints) == (frozenset(), frozenset(), frozenset({A}))
    name = f"outbound|80||{A}"
    assert xds.resource(after, "one", wire.CLUSTER_TYPE, name) is xds.resource(mesh, "one", wire.CLUSTER_TYPE, name)
    assert xds.resource(after, "one", wire.ENDPOINT_TYPE, name) != xds.resource(mesh, "one", wire.ENDPOINT_TYPE, name)


def test_a_service_touches_the_hosts_that_serve_it_even_if_they_cannot_see_it() -> None:
    mesh = mesh_of([host(namespace="elsewhere"), host("two", "10.0.0.2"), workload("w"), service(export=".")])
    changed = service(export=".", targetPort=8080)
    after, touched = update(mesh, {changed.key: changed}, mesh.vips, mesh.runtime)
    assert "one" in touched.hosts
    assert list(config(after).capture.inbound_ports) == [8080]


def test_a_host_that_moves_to_another_namespace_sees_everything_anew() -> None:
    objects = [host(), workload("w"), service()]
    mesh = mesh_of(objects)
    moved = host(namespace="elsewhere")
    after, touched = update(mesh, {moved.key: moved}, mesh.vips, mesh.runtime)
    name = "80/a"
    assert host_dependency("one") in xds.dependencies(mesh, "one", wire.VIRTUAL_HOST_TYPE, name)
    assert host_dependency("one") in touched.services
    assert xds.resource(after, "one", wire.VIRTUAL_HOST_TYPE, name) != xds.resource(
        mesh, "one", wire.VIRTUAL_HOST_TYPE, name
    )


def test_what_is_stored_again_as_it_was_touches_nobody() -> None:
    objects = [host(), workload("w"), service()]
    mesh = mesh_of(objects)
    again = service()
    after, touched = update(mesh, {again.key: again}, dict(mesh.vips), dict(mesh.runtime))
    assert touched == Touched()
    assert after.services is mesh.services


def test_only_hosts_of_the_configuration_get_anything() -> None:
    mesh = mesh_of([host(), workload("w"), service()])
    assert xds.knows_host(mesh, "one")
    assert not xds.knows_host(mesh, "two")
    for type_url in (wire.HOST_CONFIG_TYPE, wire.LISTENER_TYPE, wire.CLUSTER_TYPE):
        assert xds.wildcard(mesh, "two", type_url) == ()
    assert xds.resource(mesh, "two", wire.ENDPOINT_TYPE, f"outbound|80||{A}") is None
    assert xds.resource(mesh, "one", "type.googleapis.com/google.protobuf.Any", "x") is None


def test_a_mesh_without_anything_is_a_mesh() -> None:
    mesh = build(SETTINGS, [], {}, {})
    assert list(mesh.hosts) == []
    assert all_ready([]) == {}


def test_a_name_that_is_only_for_udp_has_no_virtual_address_and_is_not_answered() -> None:
    ports = [{"name": "udp-log", "port": 514, "protocol": "UDP"}]
    logs = obj("Service", "logs", {"selector": {"app": "logs"}, "ports": ports})
    mixed = obj("Service", "mixed", {"selector": {"app": "logs"}, "ports": [*ports, {"name": "tcp", "port": 514}]})
    assert virtual_hostnames(logs, "cluster.local") == ()
    assert virtual_hostnames(mixed, "cluster.local") == ("mixed.default.svc.cluster.local",)
    listener = xds.resource(mesh_of([host(), logs, mixed]), "one", wire.LISTENER_TYPE, "dns")
    assert listener is not None
    assert b"mixed.default" in listener.body
    assert b"logs.default" not in listener.body


def test_the_agent_is_told_which_ports_demand_mutual_tls_on_all_of_the_hosts_addresses() -> None:
    ports = {"portLevelMtls": {"90": {"mode": "PERMISSIVE"}}, "selector": {"matchLabels": {"app": "a"}}}
    several = [host("one", ADDRESS, "10.0.0.2"), workload("w1", ports={"tcp-x": 90}), workload("w2", "10.0.0.2")]
    strict = policy("p", "STRICT")
    assert list(config(mesh_of([*several, service(targetPort=8080)])).strict_ports) == []
    assert list(config(mesh_of([*several, service(targetPort=8080), strict])).strict_ports) == [90, 8080]
    lenient = obj("PeerAuthentication", "one", {"mtls": {"mode": "STRICT"}, **ports})
    found = config(mesh_of([*several, service(targetPort=8080), strict, lenient]))
    assert list(found.strict_ports) == [8080]
