"""A controller process as agents meet it: joining, certificates, reports and configuration over real mutual TLS."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from hostmesh_api.delta import ClientStream
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import (
    HostReport,
    IssueWorkloadRequest,
    JoinRequest,
    JoinResponse,
    RenewHostRequest,
    WorkloadLease,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentStub, IdentityStub, ReportingStub
from hostmesh_api.wire import ADS_METHOD, ADS_SERVICE, CLUSTER_TYPE, HOST_CONFIG_TYPE, LISTENER_TYPE
from running_controller import START_S, Process, running_process, start_controller

ADS = f"/{ADS_SERVICE}/{ADS_METHOD}"


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_process(tmp_path_factory.mktemp("controller")) as process:
        yield process


class Agent:
    """Just enough of an agent: a key, what joining gave it, and an open channel."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, joined: JoinResponse) -> None:
        self.key = key
        self.joined = joined

    def channel(self) -> grpc.aio.Channel:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        credentials = grpc.ssl_channel_credentials(self.joined.bundle_pem, key, self.joined.chain_pem)
        return grpc.aio.secure_channel(self.joined.agents_endpoints[0], credentials)


def csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


@asynccontextmanager
async def admin(controller: Process) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.AsyncHTTPTransport(uds=controller.address.removeprefix("unix://"))
    async with httpx.AsyncClient(transport=transport, base_url="http://hostmesh", timeout=START_S) as client:
        yield client


async def register(client: httpx.AsyncClient, host: str, address: str) -> JoinString:
    body = {"host": host, "addresses": [address], "ports": [{"name": "http", "number": 8080}], "labels": {"app": host}}
    answer = await client.post("/v1/register", json=body)
    assert answer.status_code == 200, answer.text
    return JoinString.decode(answer.json()["join_string"])


async def join(text: JoinString, name: str = "") -> Agent:
    key = ec.generate_private_key(ec.SECP256R1())
    root = x509.load_der_x509_certificate(text.root_der).public_bytes(Encoding.PEM)
    async with grpc.aio.secure_channel(text.endpoints[0], grpc.ssl_channel_credentials(root)) as channel:
        stub: Any = EnrolmentStub(channel)
        joined = await stub.Join(JoinRequest(token=text.token, csr_der=csr(key), name=name), timeout=START_S)
    return Agent(key, joined)


@asynccontextmanager
async def configured(agent: Agent) -> AsyncIterator[dict[str, set[str]]]:
    """Open the agent's stream and acknowledge all that comes; yields the names it holds, by type."""
    held: dict[str, set[str]] = {}
    async with agent.channel() as channel:
        open_stream: Any = channel.stream_stream(
            ADS,
            request_serializer=DeltaDiscoveryRequest.SerializeToString,
            response_deserializer=DeltaDiscoveryResponse.FromString,
        )
        call = open_stream()
        client = ClientStream()
        for type_url, name in ((LISTENER_TYPE, "*"), (CLUSTER_TYPE, "*"), (HOST_CONFIG_TYPE, "self")):
            client.want(type_url, [name])

        async def follow() -> None:
            for request in client.open({}):
                await call.write(request)
            while isinstance(response := await call.read(), DeltaDiscoveryResponse):
                update = client.update(response)
                names = held.setdefault(update.type_url, set())
                names.update(each.name for each in update.resources)
                names.difference_update(update.removed)
                await call.write(client.ack(update.type_url, update.nonce))

        following = asyncio.ensure_future(follow())
        try:
            yield held
        finally:
            call.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def test_a_host_joins_is_configured_becomes_ready_and_is_removed(controller: Process) -> None:
    async with admin(controller) as client:
        agent = await join(await register(client, "web", "10.1.0.1"))
        assert agent.joined.host == "web"
        async with configured(agent) as held:
            revision = await _revision(client)
            async with asyncio.timeout(START_S):
                # A host that is not connected yet is not waited for.
                while not (waiting := await _converged(client, revision, 0.2))["hosts"]:
                    pass
            assert not waiting["converged"]
            assert waiting["hosts"][0]["waiting_workloads"] == ["default/web"]

            lease = WorkloadLease(namespace="default", name="web", ready=True, captured_ports=[8080])
            async with agent.channel() as channel:
                reporting: Any = ReportingStub(channel)
                await reporting.Report(HostReport(leases=[lease]), timeout=START_S)
            done = await _converged(client, revision, START_S)
            assert done == {
                "revision": revision,
                "converged": True,
                "hosts": [{"host": "web", "acked": True, "waiting_workloads": []}],
            }
            assert held[HOST_CONFIG_TYPE] == {"self"}
            assert "virtualInbound" in held[LISTENER_TYPE]

            status = (await client.get("/v1/proxies/web")).json()
            assert (status["connected"], status["settled"], status["ready"]) == (True, True, ["default/web"])
            assert status["types"][LISTENER_TYPE]["acked_at"]
            text = (await client.get("/metrics")).text
            assert "hostmesh_controller_connected_proxies 1.0" in text
            assert 'hostmesh_controller_join_attempts_total{attestor="token",result="ok"} 1.0' in text
            assert 'hostmesh_controller_acks_total{type="Listener"}' in text

            assert (await client.delete("/v1/hosts/web", params={"workloads": "true"})).status_code == 200
            assert (await client.get("/v1/proxies")).json()["items"] == []
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await _renew(agent)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_change_reaches_a_connected_host_before_the_cli_returns(controller: Process, tmp_path: Path) -> None:
    async with admin(controller) as client:
        agent = await join(await register(client, "cli", "10.1.0.2"))
        async with configured(agent) as held:
            async with agent.channel() as channel:
                reporting: Any = ReportingStub(channel)
                lease = WorkloadLease(namespace="default", name="cli", ready=True, captured_ports=[8080, 8081])
                await reporting.Report(HostReport(leases=[lease]), timeout=START_S)
            path = tmp_path / "service.yaml"
            path.write_text(
                "apiVersion: v1\nkind: Service\nmetadata: {name: new}\n"
                "spec: {ports: [{port: 8081, name: http}], selector: {app: cli}}\n"
            )
            applied = await asyncio.to_thread(controller.cli, "apply", "-f", str(path))
            assert applied.stdout.splitlines()[-1] == "applied; 1 of 1 connected hosts have it", applied.stderr
            assert "0.0.0.0_8081" in held[LISTENER_TYPE]
            shown = await asyncio.to_thread(controller.cli, "proxy", "status", "cli")
            row = shown.stdout.splitlines()[1].split()
            assert (row[0], row[2], row[7]) == ("cli", "current", "1/1")
        await client.delete("/v1/hosts/cli", params={"workloads": "true"})


async def test_a_host_that_does_not_acknowledge_is_named_when_the_wait_is_over(
    controller: Process, tmp_path: Path
) -> None:
    async with admin(controller) as client:
        agent = await join(await register(client, "slow", "10.1.0.3"))
        async with configured(agent):
            path = tmp_path / "service.yaml"
            path.write_text("apiVersion: v1\nkind: Namespace\nmetadata: {name: any}\n")
            applied = await asyncio.to_thread(controller.cli, "apply", "-f", str(path), "--wait", "1s")
            assert applied.returncode == 0
            assert "applied; 0 of 1 connected hosts have it" in applied.stdout
            assert "slow: not ready: default/slow" in applied.stderr
        await client.delete("/v1/hosts/slow", params={"workloads": "true"})


async def test_nobody_waits_for_an_agent_to_vouch_for_the_port_of_a_gateway(
    controller: Process, tmp_path: Path
) -> None:
    async with admin(controller) as client:
        agent = await join(await register(client, "edge", "10.1.0.5"))
        async with configured(agent):
            async with agent.channel() as channel:
                reporting: Any = ReportingStub(channel)
                lease = WorkloadLease(namespace="default", name="edge", ready=True, captured_ports=[])
                await reporting.Report(HostReport(leases=[lease]), timeout=START_S)
            path = tmp_path / "gateway.yaml"
            path.write_text(
                "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\n"
                "spec:\n  selector: {app: edge}\n"
                "  servers: [{port: {number: 8080, name: http, protocol: HTTP}, hosts: ['*']}]\n"
            )
            applied = await asyncio.to_thread(controller.cli, "apply", "-f", str(path), "--wait", "10s")
            assert applied.stdout.splitlines()[-1] == "applied; 1 of 1 connected hosts have it", applied.stderr
            await asyncio.to_thread(controller.cli, "delete", "-f", str(path), "--wait", "0s")
        await client.delete("/v1/hosts/edge", params={"workloads": "true"})


async def test_a_join_string_works_once_and_a_workloads_certificate_only_where_it_is_placed(
    controller: Process,
) -> None:
    async with admin(controller) as client:
        text = await register(client, "once", "10.1.0.4")
        agent = await join(text)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await join(text)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        # The refusal is on its way before the call is counted.
        async with asyncio.timeout(START_S):
            while (
                'join_attempts_total{attestor="token",result="permission_denied"} 1.0'
                not in (await client.get("/metrics")).text
            ):
                pass
        async with agent.channel() as channel:
            stub: Any = IdentityStub(channel)
            own = "spiffe://cluster.local/ns/default/sa/default"
            request = IssueWorkloadRequest(csr_der=csr(agent.key), spiffe_id=own)
            assert (await stub.IssueWorkload(request, timeout=START_S)).chain_pem
            request.spiffe_id = "spiffe://cluster.local/ns/default/sa/other"
            with pytest.raises(grpc.aio.AioRpcError) as foreign:
                await stub.IssueWorkload(request, timeout=START_S)
            assert foreign.value.code() is grpc.StatusCode.PERMISSION_DENIED
        certificates = (await client.get("/v1/hosts/once")).json()["certificates"]
        assert [each["spiffe_id"] for each in certificates] == ["spiffe://cluster.local/host/once", own]
        await client.delete("/v1/hosts/once", params={"workloads": "true"})


def test_the_log_has_no_secret_in_it(controller: Process) -> None:
    lines = [json.loads(line) for line in controller.log.read_text().splitlines()]
    assert any(line["event"] == "host_joined" for line in lines)
    text = controller.log.read_text()
    assert "PRIVATE KEY" not in text
    assert "hm1." not in text


async def _revision(client: httpx.AsyncClient) -> int:
    return int((await client.get("/v1/version")).json()["revision"])


async def _converged(client: httpx.AsyncClient, revision: int, timeout_s: float) -> dict[str, Any]:
    answer = await client.get("/v1/converged", params={"revision": revision, "timeout_s": timeout_s})
    return dict(answer.json())


async def _renew(agent: Agent) -> None:
    async with agent.channel() as channel:
        stub: Any = IdentityStub(channel)
        await stub.RenewHost(RenewHostRequest(csr_der=csr(agent.key)), timeout=START_S)


async def test_garbage_on_the_stream_is_the_peers_mistake_and_told_as_such(controller: Process) -> None:
    async with admin(controller) as client:
        agent = await join(await register(client, "garbage", "10.1.0.9"))
    async with agent.channel() as channel:
        open_stream: Any = channel.stream_stream(ADS)  # type: ignore[call-arg] # grpc's stubs demand serializers
        call = open_stream()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "Traceback" not in controller.log.read_text()


async def test_a_host_that_speaks_as_another_is_refused(controller: Process) -> None:
    async with admin(controller) as client:
        agent = await join(await register(client, "liar", "10.1.0.10"))
        await register(client, "victim", "10.1.0.11")
    request = DeltaDiscoveryRequest(type_url=HOST_CONFIG_TYPE, resource_names_subscribe=["self"])
    request.node.id = "victim"
    async with agent.channel() as channel:
        open_stream: Any = channel.stream_stream(ADS)  # type: ignore[call-arg] # grpc's stubs demand serializers
        call = open_stream()
        await call.write(request.SerializeToString())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "'victim' is not the host of the certificate, 'liar'" in str(refused.value.details())


async def test_a_lost_root_is_not_replaced_while_hosts_trust_it(tmp_path: Path) -> None:
    with running_process(tmp_path) as process:
        async with admin(process) as client:
            await join(await register(client, "web", "10.1.0.1"))
        process.stop()
        shutil.rmtree(tmp_path / "state" / "ca")
        again = start_controller(tmp_path / "state.toml", tmp_path / "again.log")
        try:
            assert await asyncio.to_thread(again.wait, START_S) == 1
        finally:
            again.kill()
            again.wait()
        assert "restore the directory from a backup" in (tmp_path / "again.log").read_text()
        assert not (tmp_path / "state" / "ca" / "root.pem").exists()
