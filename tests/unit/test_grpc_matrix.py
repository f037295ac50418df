"""Every gRPC method, on either port, with every kind of certificate: who gets what. A new method needs a line."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import grpc
import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from google.protobuf.message import Message

import pki
from hostmesh_agent.keys import Svid, new_key
from hostmesh_api.identity import HostIdentity
from hostmesh_api.v1 import hostmesh_pb2
from hostmesh_api.v1.hostmesh_pb2 import (
    ChallengeRequest,
    FetchRequest,
    HostReport,
    IssueWorkloadRequest,
    JoinRequest,
    LeaveRequest,
    ReattestRequest,
    RenewHostRequest,
)
from hostmesh_api.wire import ADS_METHOD, ADS_SERVICE
from whole_controller import CART, Whole, whole_controller

OK: Final = grpc.StatusCode.OK
NO_TLS: Final = grpc.StatusCode.UNAVAILABLE
"""The handshake fails: there is no call."""
NOT_THERE: Final = grpc.StatusCode.UNIMPLEMENTED
NOT_A_HOST: Final = grpc.StatusCode.UNAUTHENTICATED
NO_MORE: Final = grpc.StatusCode.PERMISSION_DENIED
NO_TOKEN: Final = grpc.StatusCode.PERMISSION_DENIED
NO_PROOF: Final = grpc.StatusCode.PERMISSION_DENIED

WHO: Final = ("no certificate", "host", "workload", "another CA", "unknown serial", "host that is not registered")
_OF_HOSTS: Final = dict(zip(WHO, (NO_TLS, OK, NOT_A_HOST, NO_TLS, NO_MORE, NO_MORE), strict=True))
_NOT_HERE: Final = dict(zip(WHO, (NO_TLS, NOT_THERE, NOT_THERE, NO_TLS, NOT_THERE, NOT_THERE), strict=True))

ADS: Final = f"/{ADS_SERVICE}/{ADS_METHOD}"
JOIN: Final = "/hostmesh.v1.Enrolment/Join"
CHALLENGE: Final = "/hostmesh.v1.Enrolment/Challenge"
REATTEST: Final = "/hostmesh.v1.Enrolment/Reattest"
AGENTS_PORT: Final[Mapping[str, Mapping[str, grpc.StatusCode]]] = {
    JOIN: _NOT_HERE,
    CHALLENGE: _NOT_HERE,
    REATTEST: _NOT_HERE,
    "/hostmesh.v1.Identity/RenewHost": _OF_HOSTS,
    "/hostmesh.v1.Identity/IssueWorkload": _OF_HOSTS,
    "/hostmesh.v1.Identity/Leave": _OF_HOSTS,
    "/hostmesh.v1.Reporting/Report": _OF_HOSTS,
    # There is no such artifact: who is no host does not even hear that.
    "/hostmesh.v1.Artifacts/Fetch": _OF_HOSTS | {"host": grpc.StatusCode.NOT_FOUND},
    ADS: _OF_HOSTS,
}
JOIN_PORT: Final[Mapping[str, Mapping[str, grpc.StatusCode]]] = {
    # No certificate is asked for there: it makes no difference whose somebody has.
    method: dict.fromkeys(WHO, {JOIN: NO_TOKEN, REATTEST: NO_PROOF, CHALLENGE: OK}.get(method, NOT_THERE))
    for method in AGENTS_PORT
}


def requests(csr: bytes) -> dict[str, Message]:
    return {
        JOIN: JoinRequest(token="x" * 43, csr_der=csr),
        CHALLENGE: ChallengeRequest(csr_sha256=b"x" * 32),
        REATTEST: ReattestRequest(host="h1", csr_der=csr),
        "/hostmesh.v1.Identity/RenewHost": RenewHostRequest(csr_der=csr),
        "/hostmesh.v1.Identity/IssueWorkload": IssueWorkloadRequest(csr_der=csr, spiffe_id=CART.uri),
        "/hostmesh.v1.Identity/Leave": LeaveRequest(),
        "/hostmesh.v1.Reporting/Report": HostReport(),
        "/hostmesh.v1.Artifacts/Fetch": FetchRequest(component="envoy", version="../..", machine="x86_64"),
        ADS: DeltaDiscoveryRequest(type_url="type.googleapis.com/hostmesh.v1.HostConfig"),
    }


def test_every_method_is_in_both_tables() -> None:
    services = hostmesh_pb2.DESCRIPTOR.services_by_name.values()
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert methods | {ADS} == set(AGENTS_PORT) == set(JOIN_PORT)
    for table in (AGENTS_PORT, JOIN_PORT):
        assert all(set(line) == set(WHO) for line in table.values())


async def status_of(whole: Whole, port: int, svid: Svid | None, method: str, request: Message) -> grpc.StatusCode:
    pair = (svid.key_pem, svid.chain_pem) if svid else (None, None)
    credentials = grpc.ssl_channel_credentials(whole.roots, *pair)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
        try:
            if method == ADS:
                asked = asyncio.Event()

                async def ask() -> AsyncIterator[bytes]:
                    yield request.SerializeToString()
                    await asked.wait()

                stream = channel.stream_stream(method, None, None)(ask(), timeout=10)
                async for _ in stream:
                    return OK
                return await stream.code()
            await channel.unary_unary(method, None, None)(request.SerializeToString(), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return OK


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with whole_controller(tmp_path) as controller:
        yield controller


async def test_each_method_answers_each_kind_of_certificate_as_the_tables_say(whole: Whole, tmp_path: Path) -> None:
    csr = pki.greedy_csr(new_key())
    others = pki.new_authority(tmp_path / "other")
    certificates: dict[str, Svid | None] = {
        "no certificate": None,
        "workload": whole.workload(),
        "another CA": pki.svid(others, HostIdentity("cluster.local", "h1")),
        "unknown serial": pki.svid(whole.controller.authority, HostIdentity("cluster.local", "h1")),
        "host that is not registered": whole.host(HostIdentity("cluster.local", "h2")),
    }
    wrong = []
    for port, table in zip(whole.ports, (AGENTS_PORT, JOIN_PORT), strict=False):
        for method, line in table.items():
            # Leaving ends what a certificate is good for, so a host joins anew each time.
            await whole.controller.registrar.enrolments.begin("h1")
            for who, svid in {**certificates, "host": whole.host()}.items():
                got = await status_of(whole, port, svid, method, requests(csr)[method])
                if got is not line[who]:
                    wrong.append((port == whole.ports[0], method, who, got, line[who]))
    assert wrong == []
