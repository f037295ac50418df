"""The Workload API as a SPIFFE library that is not ours sees it (py-spiffe), over the agent's real socket."""

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from spiffe import WorkloadApiClient, X509Source  # type: ignore[import-untyped,unused-ignore] # has no types
from spiffe.workloadapi.errors import WorkloadApiError  # type: ignore[import-untyped,unused-ignore] # has no types

import pki
from hostmesh_agent.config import AgentConfig, WorkloadApiSettings
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.entitlements import WorkloadAccess
from hostmesh_agent.keys import Svid
from hostmesh_agent.workload_api import front
from hostmesh_agent.workload_api.service import HEADER
from hostmesh_agent.workload_api.serving import Serving
from hostmesh_api.identity import WorkloadIdentity, parse_identity
from hostmesh_api.v1.workload_pb2 import X509SVIDResponse
from waiting import until

BILLING = WorkloadIdentity(pki.TRUST_DOMAIN, "shop", "billing")
ME = os.geteuid()
OTHER = 4242
BOUND_S = 15.0

as_root = pytest.mark.skipif(ME != 0, reason="only root can be another user")


class Host:
    """A joined host; `issue` is an authority in the controller's place, which may be away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = pki.new_authority(directory / "controller", at=pki.now() - timedelta(days=100))
        self.state = pki.joined(directory / "state", self.authority)
        self.away = False
        self.life = timedelta(hours=72)
        self.age = timedelta()
        self.issued: list[str] = []
        (directory / "run").mkdir(mode=0o711)

    async def issue(self, spiffe_id: str) -> Svid:
        if self.away:
            raise EnrolError("no controller answered")
        self.issued.append(spiffe_id)
        return pki.svid(self.authority, parse_identity(spiffe_id), pki.now() - self.age, self.life)

    def config(self, *access: WorkloadAccess) -> AgentConfig:
        return AgentConfig(
            state_dir=self.directory / "state",
            run_dir=self.directory / "run",
            workload_api=WorkloadApiSettings(enabled=True, workloads=access),
        )

    @property
    def endpoint(self) -> str:
        return f"unix://{self.config().workload_socket}"

    @asynccontextmanager
    async def serving(self, *access: WorkloadAccess) -> AsyncIterator[Serving]:
        config = self.config(*access)
        serving = Serving(config, self.state, self.state.host(), self.issue, pki.now)
        running = asyncio.create_task(serving.run())
        try:
            await until(config.workload_socket.is_socket)
            yield serving
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def host() -> Iterator[Host]:
    # pytest's own directories are closed to other users.
    directory = Path(tempfile.mkdtemp(prefix="hm-wl-"))
    directory.chmod(0o711)
    yield Host(directory)
    shutil.rmtree(directory)


CART = [pki.HOST.uri, pki.CART.uri, pki.CART.uri]
TO_ME = WorkloadAccess("shop", "cart", uids=frozenset({ME}))

_CLIENT = """
import json, os, sys
from spiffe import WorkloadApiClient
from spiffe.workloadapi import handle_error
os.setresuid(int(sys.argv[2]), int(sys.argv[2]), int(sys.argv[2]))
try:
    svids = WorkloadApiClient(sys.argv[1], default_timeout=10).fetch_x509_svids()
    print(json.dumps([str(each.spiffe_id) for each in svids]))
except Exception as error:
    print(json.dumps(str(error)))
"""


async def as_user(host: Host, uid: int) -> Any:
    """Return the SPIFFE IDs that a process of the user is given, or what it is told instead."""
    command = [sys.executable, "-c", _CLIENT, host.endpoint, str(uid)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def client(host: Host) -> Any:
    return WorkloadApiClient(host.endpoint, default_timeout=BOUND_S)


async def test_a_program_gets_a_certificate_with_a_key_of_its_own_and_the_roots(host: Host) -> None:
    async with host.serving(TO_ME) as serving:
        await serving.apply(CART)
        await until(lambda: serving.status()["identities"][0]["not_after"] is not None)
        context = await asyncio.to_thread(client(host).fetch_x509_context)
    svid = context.default_svid
    assert str(svid.spiffe_id) == pki.CART.uri
    assert svid.leaf.public_key() == svid.private_key.public_key()
    (bundle,) = context.x509_bundle_set.bundles
    assert bundle.trust_domain.name == pki.TRUST_DOMAIN
    roots = {each.public_bytes(Encoding.PEM) for each in bundle.x509_authorities}
    assert roots == {host.authority.bundle_pem}
    assert host.issued == [pki.CART.uri]


async def test_the_hosts_own_identity_is_never_given_away(host: Host) -> None:
    async with host.serving(TO_ME) as serving:
        await serving.apply([pki.HOST.uri])
        with pytest.raises(WorkloadApiError, match="no identity for this caller"):
            await asyncio.to_thread(client(host).fetch_x509_svids)
    assert host.issued == []


async def test_a_program_that_holds_its_stream_open_sees_the_rotation(host: Host) -> None:
    # Past half of its life when it comes: renewed at once.
    host.age, host.life = timedelta(hours=50), timedelta(hours=72)
    async with host.serving(TO_ME) as serving:
        await serving.apply(CART)
        await until(lambda: len(host.issued) >= 1)
        host.age = timedelta()
        source = await asyncio.to_thread(X509Source, client(host), timeout_in_seconds=BOUND_S)
        try:
            await until(lambda: len(host.issued) >= 2)
            newest = pki.now() + timedelta(hours=60)
            await until(lambda: source.get_x509_context().default_svid.leaf.not_valid_after_utc > newest)
        finally:
            await asyncio.to_thread(source.close)


async def test_a_workload_that_leaves_the_host_is_taken_from_open_streams(host: Host) -> None:
    async with host.serving(TO_ME) as serving, grpc.aio.insecure_channel(host.endpoint) as channel:
        await serving.apply(CART)
        await until(lambda: serving.status()["identities"][0]["not_after"] is not None)
        call = fetch(channel, HEADER)
        first = await call.read()
        assert isinstance(first, X509SVIDResponse)
        assert [each.spiffe_id for each in first.svids] == [pki.CART.uri]
        await serving.apply([pki.HOST.uri])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not (host.directory / "state/workload-api/ns.shop.sa.cart").exists()


async def test_with_the_controller_away_a_restarted_agent_goes_on_serving(host: Host) -> None:
    async with host.serving(TO_ME) as serving:
        await serving.apply(CART)
        await until(lambda: serving.status()["identities"][0]["not_after"] is not None)
        first = await asyncio.to_thread(client(host).fetch_x509_svid)
    host.away = True
    async with host.serving(TO_ME) as serving:
        await serving.apply(CART)
        again = await asyncio.to_thread(client(host).fetch_x509_svid)
    assert again.leaf == first.leaf


@as_root
async def test_only_the_user_that_the_hosts_owner_names_gets_anything(host: Host) -> None:
    async with host.serving(WorkloadAccess("shop", "cart", uids=frozenset({OTHER}))) as serving:
        await serving.apply([pki.CART.uri, BILLING.uri])
        await until(lambda: all(each["not_after"] for each in serving.status()["identities"]))
        assert await as_user(host, OTHER) == [pki.CART.uri]
        assert "no identity for this caller" in await as_user(host, OTHER + 1)
        assert await as_user(host, 0) == [pki.CART.uri, BILLING.uri]


@as_root
async def test_nobody_but_root_gets_anything_by_default(host: Host) -> None:
    async with host.serving() as serving:
        await serving.apply(CART)
        await until(lambda: serving.status()["identities"][0]["not_after"] is not None)
        assert "no identity for this caller" in await as_user(host, OTHER)
        assert await as_user(host, 0) == [pki.CART.uri]


@as_root
async def test_files_and_the_sockets_behind_the_front_are_closed_to_other_users(host: Host) -> None:
    async with host.serving(TO_ME) as serving:
        await serving.apply(CART)
        await until(lambda: serving.status()["identities"][0]["not_after"] is not None)
        key = host.directory / "state/workload-api/ns.shop.sa.cart/svid.pem"
        inner = host.config().workload_api_dir / "server.sock"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert stat.S_IMODE(inner.parent.stat().st_mode) == 0o700
        program = (
            "import os, socket, sys\n"
            f"os.setresuid({OTHER}, {OTHER}, {OTHER})\n"
            "def tried(act):\n"
            "    try: act()\n"
            "    except PermissionError: return 'refused'\n"
            "    return 'let in'\n"
            "print(tried(lambda: open(sys.argv[1])), tried(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[2])))"
        )
        command = [sys.executable, "-c", program, str(key), str(inner)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["refused", "refused"], done.stderr


def fetch(
    channel: grpc.aio.Channel, *metadata: tuple[str, str], method: str = "FetchX509SVID"
) -> "grpc.aio.UnaryStreamCall[bytes, X509SVIDResponse]":
    call = channel.unary_stream(
        f"/SpiffeWorkloadAPI/{method}",
        request_serializer=lambda data: data,
        response_deserializer=X509SVIDResponse.FromString,
    )
    return call(b"", metadata=metadata, timeout=BOUND_S)


@pytest.mark.parametrize(
    ("method", "metadata", "code"),
    [
        ("FetchX509SVID", (), grpc.StatusCode.INVALID_ARGUMENT),
        ("FetchX509SVID", (("workload.spiffe.io", "True"),), grpc.StatusCode.INVALID_ARGUMENT),
        ("FetchX509Bundles", (), grpc.StatusCode.INVALID_ARGUMENT),
        ("FetchJWTSVID", (), grpc.StatusCode.INVALID_ARGUMENT),
        ("FetchJWTSVID", (HEADER,), grpc.StatusCode.UNIMPLEMENTED),
        ("FetchJWTBundles", (HEADER,), grpc.StatusCode.UNIMPLEMENTED),
        ("ValidateJWTSVID", (HEADER,), grpc.StatusCode.UNIMPLEMENTED),
        ("FetchWITSVID", (HEADER,), grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_what_is_no_call_of_a_spiffe_client_or_not_served_is_refused_with_the_specifications_code(
    host: Host, method: str, metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode
) -> None:
    async with host.serving(TO_ME) as serving, grpc.aio.insecure_channel(host.endpoint) as channel:
        await serving.apply(CART)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fetch(channel, *metadata, method=method).read()
    assert refused.value.code() is code


async def test_before_there_is_anything_a_program_is_told_to_try_again(host: Host) -> None:
    host.away = True
    async with host.serving(TO_ME) as serving, grpc.aio.insecure_channel(host.endpoint) as channel:
        for spiffe_ids in (None, CART):
            if spiffe_ids is not None:
                await serving.apply(spiffe_ids)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await fetch(channel, HEADER).read()
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_one_user_cannot_take_all_connections(host: Host) -> None:
    path = host.config().workload_socket
    async with host.serving(TO_ME) as serving:
        await serving.apply(CART)
        opened = [await asyncio.open_unix_connection(str(path)) for _ in range(front.MAX_OF_ONE_USER)]
        # The server's greeting shows that a connection was passed on.
        async with asyncio.timeout(BOUND_S):
            for reader, _ in opened:
                assert await reader.read(1)
            reader, writer = await asyncio.open_unix_connection(str(path))
            assert await reader.read(1) == b""
        for _, each in [*opened, (reader, writer)]:
            each.close()


async def test_what_the_hosts_owner_names_and_the_mesh_does_not_know_is_a_problem(host: Host) -> None:
    async with host.serving(WorkloadAccess("shop", "crat", uids=frozenset({ME}))) as serving:
        assert list(serving.problems()) == []
        await serving.apply(CART)
        (problem,) = serving.problems()
    assert "names shop/crat in agent.toml" in problem
