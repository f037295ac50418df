"""A host with a good certificate, and an agent that lies: it gets what is its own, and changes nothing of others'."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from enrolling import status_of
from golden.certificates import Authority
from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import HostReport, WorkloadLease
from hostmesh_api.v1.hostmesh_pb2_grpc import ReportingStub
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.mesh.gateways import credential_name
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.translation import reachable
from running_controller import START_S, Process, running_process
from unit.test_api_agents import Agent, admin, join, register

PAIR = Authority("Site").pair("shop.example.com")
KEY = PAIR.key.splitlines()[1].encode()
MARK = b"only-for-other"
"""Is in what is the other host's alone."""
OWN_TYPES = (wire.HOST_CONFIG_TYPE, wire.LISTENER_TYPE, wire.SECRET_TYPE, wire.EXTENSION_TYPE)

OBJECTS: list[ApiObject] = [
    obj("Host", "mine", {"addresses": ["10.0.0.1"]}),
    obj("Host", "other", {"addresses": ["10.0.0.2"]}),
    obj("WorkloadEntry", "mine", {"address": "10.0.0.1", "labels": {"app": "mine"}, "serviceAccount": "mine"}),
    obj(
        "WorkloadEntry",
        "other",
        {"address": "10.0.0.2", "labels": {"app": "other"}, "serviceAccount": MARK.decode()},
        "edge",
    ),
    obj("Service", "mine", {"selector": {"app": "mine"}, "ports": [{"port": 8080, "name": "http"}]}),
    obj("Service", "other", {"selector": {"app": "other"}, "ports": [{"port": 9090, "name": "http"}]}, "edge"),
    obj(
        "Gateway",
        "edge",
        {
            "selector": {"app": "other"},
            "servers": [
                {
                    "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
                    "hosts": ["shop.example.com"],
                    "tls": {"mode": "SIMPLE", "credentialName": "shop"},
                }
            ],
        },
        "edge",
    ),
    obj(
        "VirtualService",
        "edge",
        {
            "hosts": ["shop.example.com"],
            "gateways": ["edge"],
            "http": [{"route": [{"destination": {"host": "other", "port": {"number": 9090}}}]}],
        },
        "edge",
    ),
    obj("Secret", "shop", {"stringData": {"tls.crt": PAIR.certificate, "tls.key": PAIR.key}}, "edge"),
    obj(
        "WasmPlugin",
        "plugin",
        {"url": f"https://{MARK.decode()}.example/x.wasm", "selector": {"matchLabels": {"app": "other"}}},
        "edge",
    ),
]


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return mesh_of(OBJECTS)


def names_of_other(mesh: Mesh) -> list[tuple[str, str]]:
    found = [(asked.type_url, asked.name) for asked, _ in reachable(mesh, "other")]
    found += [(wire.HOST_CONFIG_TYPE, name) for name in ("other", "*", "host/other", "")]
    found += [(wire.SECRET_TYPE, name) for name in ("shop", "*", "kubernetes://shop", credential_name("shop", "edge"))]
    return found


def test_no_name_of_another_hosts_leads_to_what_is_its_alone(mesh: Mesh) -> None:
    names = names_of_other(mesh)
    got = {name: xds.resource(mesh, "other", *name) for name in names}
    # It would be no test if the other host had nothing of the kind.
    assert {name[0] for name, each in got.items() if each and (MARK in each.body or KEY in each.body)} >= {
        wire.HOST_CONFIG_TYPE,
        wire.LISTENER_TYPE,
        wire.SECRET_TYPE,
        wire.EXTENSION_TYPE,
    }
    for type_url, name in names:
        found = xds.resource(mesh, "mine", type_url, name)
        if found is None:
            continue
        assert KEY not in found.body, name
        if type_url in OWN_TYPES or name.startswith("inbound|"):
            assert MARK not in found.body, name


def test_a_wildcard_gives_a_host_its_own(mesh: Mesh) -> None:
    for type_url in (*OWN_TYPES, wire.CLUSTER_TYPE, wire.ENDPOINT_TYPE, wire.ROUTE_TYPE):
        for name in xds.wildcard(mesh, "mine", type_url):
            found = xds.resource(mesh, "mine", type_url, name)
            assert found is not None
            assert KEY not in found.body
            assert MARK not in found.body, name
    assert xds.wildcard(mesh, "mine", wire.SECRET_TYPE) == ()


# With a process and its ports


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_process(tmp_path_factory.mktemp("controller")) as process:
        yield process


async def ask(agent: Agent, *names: tuple[str, str]) -> dict[tuple[str, str], bytes | None]:
    """Ask for names on a stream; return what comes, None for what is said not to be there."""
    wanted, found = set(names), dict[tuple[str, str], bytes | None]()
    async with agent.channel() as channel, asyncio.timeout(START_S):
        open_stream: Any = channel.stream_stream(
            f"/{wire.ADS_SERVICE}/{wire.ADS_METHOD}",
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call = open_stream()
        for type_url in {each for each, _ in names}:
            subscribed = [name for each, name in names if each == type_url]
            await call.write(DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=subscribed))
        while not wanted <= found.keys():
            response = await call.read()
            assert isinstance(response, DeltaDiscoveryResponse)
            type_url = response.type_url
            found |= {(type_url, each.name): each.resource.value for each in response.resources}
            found |= dict.fromkeys((type_url, name) for name in response.removed_resources)
        call.cancel()
    return found


async def test_a_stream_answers_for_what_is_another_hosts_that_it_is_not_there(controller: Process) -> None:
    async with admin(controller) as client:
        mine = await join(await register(client, "mine", "10.2.0.1"))
        other = await join(await register(client, "other", "10.2.0.2"))
        own = (wire.HOST_CONFIG_TYPE, "self")
        config = (await ask(other, own))[own]
        assert config is not None
        assert b"10.2.0.2" in config or b"other" in config
        names = ((wire.HOST_CONFIG_TYPE, "other"), (wire.SECRET_TYPE, credential_name("shop", "edge")), own)
        got = await ask(mine, *names)
        assert got[names[0]] is None
        assert got[names[1]] is None
        found = got[own]
        assert found is not None
        assert b"other" not in found


def service(name: str) -> str:
    spec = f"{{selector: {{app: {name}}}, ports: [{{port: 8080, name: http}}]}}"
    return f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n"


async def test_a_report_changes_nothing_of_another_host_and_moves_no_endpoint(controller: Process) -> None:
    async with admin(controller) as client:
        liar = await join(await register(client, "liar", "10.2.0.3"))
        await join(await register(client, "victim", "10.2.0.4"))
        text = "---\n".join(map(service, ("liar", "victim")))
        await client.post("/v1/apply", json={"sources": [{"name": "s", "text": text}]})
        clusters = (f"outbound|8080||{name}.default.svc.cluster.local" for name in ("liar", "victim"))
        names = tuple((wire.ENDPOINT_TYPE, each) for each in clusters)
        before = (await client.get("/v1/hosts/victim")).json()
        endpoints = await ask(liar, *names)
        lies = [
            WorkloadLease(namespace="default", name="victim", ready=True, captured_ports=[8080]),
            WorkloadLease(namespace="default", name="victim", ready=True, health=WorkloadLease.UNHEALTHY),
            WorkloadLease(namespace="default", name="made-up", ready=True, captured_ports=[1]),
        ]
        report = HostReport(leases=lies)
        report.facts.addresses.extend(["10.2.0.4", "10.2.0.99", "240.240.0.1"])
        report.facts.hostname = "victim"
        async with liar.channel() as channel:
            stub: Any = ReportingStub(channel)
            await stub.Report(report, timeout=START_S)
        assert (await client.get("/v1/hosts/victim")).json() == before
        told = (await client.get("/v1/hosts/liar")).json()
        assert (told["ready"], told["addresses"]) == ([], ["10.2.0.3"])
        revision = (await client.get("/v1/version")).json()["revision"]
        await client.get("/v1/converged", params={"revision": revision})
        assert await ask(liar, *names) == endpoints


async def test_a_member_that_was_expelled_comes_in_again_under_no_name(controller: Process) -> None:
    group = (
        "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: pool}\n"
        "spec: {template: {serviceAccount: pool}}\n"
    )
    async with admin(controller) as client:
        await client.post("/v1/apply", json={"sources": [{"name": "g", "text": group}]})
        made = (await client.post("/v1/tokens", json={"group": "default/pool"})).json()
        text = JoinString.decode(made["join_string"])
        await join(text, name="m1")
        assert (await client.post("/v1/hosts/m1/expel", json={})).status_code == 200
        code, message = await refused(join(text, name="m1"))
        assert (code, "it was expelled" in message) == ("PERMISSION_DENIED", True)
        # Its address is the one it is seen at, and stays its own.
        code, message = await refused(join(text, name="m2"))
        assert (code, "127.0.0.1" in message) == ("FAILED_PRECONDITION", True)
        await client.post("/v1/hosts/m1/readmit", json={})
        await join(text, name="m1")


async def refused(call: Any) -> tuple[str, str]:
    code, message = await status_of(call)
    return code.name, message
