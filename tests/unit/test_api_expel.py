"""Expelling and readmitting by API and CLI: what operators, the host itself and other hosts see of it."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, Resource

from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_api.v1.hostmesh_pb2 import HostConfig, HostReport, WorkloadLease
from hostmesh_api.v1.hostmesh_pb2_grpc import ReportingStub
from hostmesh_controller import xds
from hostmesh_controller.clones import Sighting
from hostmesh_controller.hub import Hub
from hostmesh_controller.mesh import HostRuntime, Mesh
from hostmesh_controller.server import AdsServer
from hostmesh_controller.xds import expelled
from running_controller import START_S, App, Process, running_app, running_process
from unit.test_api_agents import Agent, admin, configured, join, register

HOSTS = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1}
spec: {addresses: [10.0.0.1, 10.0.0.9]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h2}
spec: {addresses: [10.0.0.2]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w1}
spec: {address: 10.0.0.1, labels: {app: s}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w2}
spec: {address: 10.0.0.2, labels: {app: s}}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {selector: {app: s}, ports: [{port: 80, name: http}]}
"""
CLUSTER = "outbound|80||s.default.svc.cluster.local"


async def joined(app: App, *hosts: str) -> None:
    """Make hosts join as far as the mesh sees it, with a certificate of an hour."""
    for host in hosts:
        registrar = app.controller.registrar
        record = await registrar.enrolments.begin(host)
        assert registrar.enrolments.extend(record, datetime.now(UTC) + timedelta(hours=1))
        await registrar.states.joined(host)


async def until(app: App, holds: Any) -> None:
    async with asyncio.timeout(START_S):
        while not holds(app.controller.hub.mesh):
            await app.root.get("/v1/version")


def addresses(mesh: Mesh) -> set[str]:
    """Return who is behind the service, as the other host sees it."""
    found = xds.resource(mesh, "h2", wire.ENDPOINT_TYPE, CLUSTER)
    assert found is not None
    return {each for each in ("10.0.0.1", "10.0.0.2") if each.encode() in found.body}


def severed(mesh: Mesh) -> list[str]:
    found = xds.resource(mesh, "h2", wire.HOST_CONFIG_TYPE, "self")
    assert found is not None
    return list(HostConfig.FromString(Resource.FromString(found.body).resource.value).expelled_addresses)


def denied(mesh: Mesh, name: str = expelled.HTTP) -> bytes:
    found = xds.resource(mesh, "h2", wire.EXTENSION_TYPE, name)
    assert found is not None
    return TypedExtensionConfig.FromString(Resource.FromString(found.body).resource.value).typed_config.value


async def test_an_expelled_host_is_called_by_nobody_denied_by_all_and_its_connections_are_closed(
    tmp_path: Path,
) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOSTS)
        await joined(app, "h1", "h2")
        await until(app, lambda mesh: mesh.runtime_of("h2").joined and mesh.runtime_of("h1").joined)
        assert addresses(app.controller.hub.mesh) == {"10.0.0.1", "10.0.0.2"}
        record = app.controller.registrar.enrolments.current("h1")
        assert record is not None
        answer = await app.root.post("/v1/hosts/h1/expel", json={"reason": "lost laptop"})
        assert (answer.status_code, answer.json()["state"]) == (200, "expelled")
        await until(app, lambda mesh: mesh.expulsions.hosts)
        mesh = app.controller.hub.mesh
        assert addresses(mesh) == {"10.0.0.2"}
        assert severed(mesh) == ["10.0.0.1", "10.0.0.9"]
        for name in (expelled.HTTP, expelled.NETWORK):
            assert f"CN={record.id}".encode() in denied(mesh, name)
        # An address that it has no longer may be another's soon.
        await app.apply(HOSTS.replace("[10.0.0.1, 10.0.0.9]", "[10.0.0.1]"))
        await until(app, lambda mesh: severed(mesh) == ["10.0.0.1"])
        # What was issued is denied for its life, whatever becomes of the host.
        await app.root.delete("/v1/hosts/h1", params={"workloads": "true"})
        await until(app, lambda mesh: "h1" not in mesh.hosts and not mesh.runtime_of("h1").joined)
        assert record.id.encode() in denied(app.controller.hub.mesh)
        assert severed(app.controller.hub.mesh) == []


def test_an_address_that_another_host_has_too_is_not_cut_off() -> None:
    """Checks refuse two hosts with one address; where it is so all the same, the other one must not suffer."""
    objects = [obj("Host", name, {"addresses": ["10.0.0.1", own]}) for name, own in (("h1", "10.0.0.3"), ("h2", "::2"))]
    out = HostRuntime(True, expelled=True)
    assert mesh_of(objects, {"h1": out}).expulsions.addresses == ("10.0.0.3",)
    assert mesh_of(objects, {"h1": out, "h2": out}).expulsions.addresses == ("10.0.0.1", "10.0.0.3", "::2")


async def test_a_readmitted_host_is_called_again_when_it_has_joined_and_not_before(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOSTS)
        await joined(app, "h1", "h2")
        await app.root.post("/v1/hosts/h1/expel", json={})
        await until(app, lambda mesh: mesh.expulsions.hosts)
        answer = await app.root.post("/v1/hosts/h1/readmit", json={})
        assert (answer.status_code, answer.json()["state"]) == (200, "joined")
        assert (await app.root.post("/v1/hosts/h1/readmit", json={})).status_code == 409
        assert addresses(app.controller.hub.mesh) == {"10.0.0.2"}
        await joined(app, "h1")
        await until(app, lambda mesh: not mesh.expulsions.hosts)
        assert addresses(app.controller.hub.mesh) == {"10.0.0.1", "10.0.0.2"}
        assert severed(app.controller.hub.mesh) == []
        assert denied(app.controller.hub.mesh).count(b"CN=") == 1


async def test_who_expelled_whom_and_why_is_in_the_audit_log_and_tokens_of_the_host_are_revoked(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOSTS)
        token = (await app.root.post("/v1/tokens", json={"host": "h1"})).json()
        await app.root.post("/v1/hosts/h1/expel", json={"reason": "why not"})
        await app.root.post("/v1/hosts/h1/readmit", json={})
        records = (await app.root.get("/v1/audit", params={"limit": 3})).json()["items"]
        told = [(each["action"], each["object"], each["actor"]) for each in records]
        assert told == [
            ("host.readmit", "host/h1", "root"),
            ("token.revoke", f"token/{token['id']}", "root"),
            ("host.expel", "host/h1", "root"),
        ]
        assert records[2]["after"]["reason"] == "why not"
        shown = (await app.root.get("/v1/hosts/h2")).json()
        assert (shown["state"], shown["denied_because"]) == ("registered", None)


@pytest.mark.parametrize("role", ["viewer", "editor"])
async def test_only_an_administrator_expels_and_readmits(tmp_path: Path, role: str) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOSTS)
        headers = await app.as_role(role)
        for verb in ("expel", "readmit"):
            answer = await app.outside.post(f"/v1/hosts/h1/{verb}", json={}, headers=headers)
            assert answer.status_code == 403
        assert app.controller.registrar.enrolments.standing("h1").refusal is None
        assert (await app.root.post("/v1/hosts/nobody/expel", json={})).status_code == 404
        assert (await app.root.post("/v1/hosts/h1/expel", json={"reason": "x" * 501})).status_code == 422


# With a process and its ports


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_process(tmp_path_factory.mktemp("controller")) as process:
        yield process


async def test_the_stream_of_an_expelled_host_is_cut_and_not_opened_again(controller: Process) -> None:
    async with admin(controller) as client:
        agent = await join(await register(client, "cut", "10.1.0.1"))
        async with configured(agent) as held:
            async with asyncio.timeout(START_S):
                while wire.HOST_CONFIG_TYPE not in held:
                    await client.get("/v1/version")
            done = await asyncio.to_thread(controller.cli, "host", "expel", "cut", "--reason", "gone bad")
            assert done.stdout == "host/cut expelled\n", done.stderr
            assert not (await client.get("/v1/proxies/cut")).json()["connected"]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await report(agent)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        async with agent.channel() as channel:
            call: Any = channel.stream_stream(f"/{wire.ADS_SERVICE}/{wire.ADS_METHOD}")  # type: ignore[call-arg] # grpc's stubs demand serializers
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call().read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        status = await asyncio.to_thread(controller.cli, "proxy", "status", "cut")
        assert "cut is expelled: gone bad" in status.stdout
        listed = await asyncio.to_thread(controller.cli, "host", "list")
        assert "expelled" in listed.stdout
        done = await asyncio.to_thread(controller.cli, "host", "readmit", "cut")
        assert "may join again" in done.stdout


async def report(agent: Agent) -> None:
    async with agent.channel() as channel:
        stub: Any = ReportingStub(channel)
        await stub.Report(HostReport(leases=[WorkloadLease(namespace="default", name="cut")]), timeout=START_S)


async def test_who_opens_a_stream_is_seen_as_the_agent_that_it_says_it_is() -> None:
    told: list[tuple[str, Sighting]] = []

    async def identify(_context: Any) -> str:
        return "h1"

    async def seen(host: str, sighting: Sighting) -> None:
        told.append((host, sighting))

    mesh = mesh_of([obj("Host", "h1", {"addresses": ["10.0.0.1"]})])
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((AdsServer(Hub(mesh, 1), identify, seen).handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        request = DeltaDiscoveryRequest(type_url=wire.HOST_CONFIG_TYPE, resource_names_subscribe=["self"])
        request.node.id = "h1"
        request.node.metadata.update(dict(zip(wire.AGENT_METADATA, ("agent", "boot", "machine"), strict=True)))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(START_S):
            open_stream: Any = channel.stream_stream(f"/{wire.ADS_SERVICE}/{wire.ADS_METHOD}")  # type: ignore[call-arg] # as above
            call = open_stream()
            await call.write(request.SerializeToString())
            await call.read()
            call.cancel()
    finally:
        await server.stop(None)
    assert told == [("h1", Sighting("agent", "boot", "machine", "127.0.0.1"))]
