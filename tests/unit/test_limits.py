"""What is too much is refused to who does it, while others go on being served."""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

import pki
from bench.h2 import Kind, frame, headers
from hostmesh_agent.keys import Svid, new_key
from hostmesh_api.identity import HostIdentity
from hostmesh_api.v1.hostmesh_pb2 import HostReport, JoinRequest
from hostmesh_api.wire import ADS_METHOD, ADS_SERVICE
from hostmesh_controller.authority import Authority
from hostmesh_controller.call_limits import LimitCalls, Policy
from hostmesh_controller.limits import Limits, limit_ranges
from hostmesh_controller.peers import Context
from hostmesh_controller.rates import Rates
from hostmesh_controller.store import CertificateRecord
from hostmesh_controller.store.sqlite import open_store
from running_controller import Process, running_process
from waiting import until

ME, OTHER = "127.0.0.1", "127.0.0.2"
LIMITS = """
[limits]
header_s = 1
handshake_s = 2
request_s = 2
header_bytes = 8192
admin_connections = 60
admin_connections_per_address = 10
join_connections = 40
join_idle_s = 2
joins_per_minute = 20
certificates_per_minute = 10
agents_bytes_per_minute = 1048576
calls_per_host = 8
"""
JOIN = "/hostmesh.v1.Enrolment/Join"
REPORT = "/hostmesh.v1.Reporting/Report"
RENEW = "/hostmesh.v1.Identity/RenewHost"
ADS = f"/{ADS_SERVICE}/{ADS_METHOD}"
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
BOUND_S = 10.0


@dataclass(frozen=True)
class Target:
    process: Process
    authority: Authority
    root: Path
    victim: Svid
    attacker: Svid

    def port(self, name: str) -> int:
        return self.process.ports[("agents", "join", "admin").index(name)]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    directory = tmp_path_factory.mktemp("limits")
    with running_process(directory, LIMITS) as process:
        state = directory / "state"
        authority = Authority.load_or_create(state, "cluster.local", pki.now())
        store = open_store(state / "store.sqlite")
        svids = []
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(state / "admin.sock")), base_url="http://h") as root:
            for number, name in enumerate(("victim", "attacker"), 1):
                made = root.post("/v1/register", json={"host": name, "addresses": [f"10.0.0.{number}"]})
                assert made.status_code == 200, made.text
                svid = pki.svid(authority, HostIdentity("cluster.local", name))
                now = pki.now()
                uri = svid.identity.uri
                store.add_certificate(CertificateRecord(svid.serial, uri, name, svid.not_after, now))
                svids.append(svid)
        store.close()
        yield Target(process, authority, state / "ca/root.pem", *svids)


def channel(target: Target, name: str, svid: Svid | None = None) -> grpc.aio.Channel:
    pair = (svid.key_pem, svid.chain_pem) if svid else (None, None)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    credentials = grpc.ssl_channel_credentials(target.authority.bundle_pem, *pair)
    return grpc.aio.secure_channel(f"{ME}:{target.port(name)}", credentials, options=options)


async def code_of(
    calls: grpc.aio.Channel, method: str, data: bytes, metadata: tuple[tuple[str, str], ...] = ()
) -> grpc.StatusCode:
    try:
        await calls.unary_unary(method, None, None)(data, timeout=BOUND_S, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def served(target: Target) -> None:
    """Assert that somebody else is served: an operator, and another host."""
    answer = await asyncio.to_thread(healthz, target)
    assert answer == 200
    async with channel(target, "agents", target.victim) as calls:
        assert await code_of(calls, REPORT, HostReport().SerializeToString()) is grpc.StatusCode.OK


def healthz(target: Target) -> int:
    made = ssl.create_default_context(cafile=str(target.root))
    transport = httpx.HTTPTransport(verify=made, local_address=OTHER)
    with httpx.Client(transport=transport, timeout=BOUND_S) as client:
        return client.get(f"https://{ME}:{target.port('admin')}/healthz").status_code


def opened(target: Target, name: str, source: str = ME) -> socket.socket:
    return socket.create_connection((ME, target.port(name)), timeout=BOUND_S, source_address=(source, 0))


def secured(target: Target, name: str, svid: Svid | None = None, alpn: str = "http/1.1") -> ssl.SSLSocket:
    made = ssl.create_default_context(cafile=str(target.root))
    made.set_alpn_protocols([alpn])
    if svid is not None:
        file = target.root.parent.parent / "client.pem"
        file.write_bytes(svid.key_pem + svid.chain_pem)
        made.load_cert_chain(file)
    return made.wrap_socket(opened(target, name), server_hostname=ME)


def ended(connection: socket.socket) -> bool:
    """Wait until the other side ends the connection; False if it does not."""
    connection.settimeout(BOUND_S)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


async def test_a_handshake_that_does_not_go_on_is_ended(target: Target) -> None:
    waiting = [opened(target, name) for name in ("agents", "join", "admin") for _ in range(5)]
    for each in waiting[::5]:
        each.sendall(b"\x16\x03\x01\x02\x00\x01")
    await served(target)
    assert all([await asyncio.to_thread(ended, each) for each in waiting])
    for each in waiting:
        each.close()


async def test_headers_that_come_too_slowly_end_the_connection(target: Target) -> None:
    slow = [await asyncio.to_thread(secured, target, "admin") for _ in range(5)]
    for each in slow[1:]:
        each.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    await served(target)
    assert all([await asyncio.to_thread(dripped, each) for each in slow])


def dripped(connection: ssl.SSLSocket) -> bool:
    """Send a byte of a header now and then until the connection ends; False if it does not."""
    deadline = time.monotonic() + BOUND_S
    connection.settimeout(0.2)
    with connection:
        while time.monotonic() < deadline:
            try:
                connection.sendall(b"x")
                if not connection.recv(1):
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
    return False


async def test_a_body_that_comes_too_slowly_is_refused(target: Target) -> None:
    connection = await asyncio.to_thread(secured, target, "admin")
    connection.sendall(b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await served(target)
    connection.settimeout(BOUND_S)
    assert b"408 Request Timeout" in await asyncio.to_thread(connection.recv, 65536)
    connection.close()


async def test_headers_that_are_too_large_are_refused(target: Target) -> None:
    connection = await asyncio.to_thread(secured, target, "admin")
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000)
    answer = await asyncio.to_thread(connection.recv, 65536)
    assert answer == b"" or b"400" in answer.splitlines()[0]
    connection.close()
    await served(target)


async def test_one_address_has_so_many_connections_to_the_admin_port_and_others_still_get_in(target: Target) -> None:
    held = [opened(target, "admin") for _ in range(40)]
    await served(target)
    alive = sum(not closed_at_once(each) for each in held)
    assert alive <= 10
    for each in held:
        each.close()
    await served(target)


def closed_at_once(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


async def test_connections_to_the_join_port_beyond_the_limit_do_not_touch_the_other_ports(target: Target) -> None:
    held = [opened(target, "join") for _ in range(200)]
    await served(target)
    assert all([await asyncio.to_thread(ended, each) for each in held])
    for each in held:
        each.close()
    async with channel(target, "join") as calls:
        assert await code_of(calls, JOIN, b"") is not grpc.StatusCode.UNAVAILABLE


async def test_a_connection_to_the_join_port_without_a_call_is_ended(target: Target) -> None:
    connection = await asyncio.to_thread(secured, target, "join", None, "h2")
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(Kind.SETTINGS, 0, 0, b""))
    assert await asyncio.to_thread(ended, connection)
    connection.close()


def many(field: int, count: int) -> bytes:
    """The same empty message again and again: two bytes here, a hundred in memory."""
    return bytes((field << 3 | 2, 0)) * count


def deep(field: int, levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        size, length = len(data), b""
        while size > 127:
            length += bytes((size & 127 | 128,))
            size >>= 7
        data = bytes((field << 3 | 2,)) + length + bytes((size,)) + data
    return data


BOMBS = {
    "sockets": (REPORT, many(3, 2_000_000), EXHAUSTED),
    "leases": (REPORT, many(6, 300_000), EXHAUSTED),
    "larger than any": (REPORT, b"\x0a" * (9 * 1024 * 1024), EXHAUSTED),
    "unknown fields": (RENEW, b"\xc2\x3e\x00" * 100_000, EXHAUSTED),
    "deep groups": (RENEW, b"\xa3\x06" * 10_000, grpc.StatusCode.INVALID_ARGUMENT),
    "a truncated message": (RENEW, b"\x0a\xff\xff\xff\x7f", grpc.StatusCode.INVALID_ARGUMENT),
    "a huge request for a certificate": (RENEW, b"\x0a\xc0\x3e" + b"\x30" * 8000, grpc.StatusCode.INVALID_ARGUMENT),
}


@pytest.mark.parametrize("what", sorted(BOMBS))
async def test_a_bomb_is_refused_to_a_host(target: Target, what: str) -> None:
    method, data, expected = BOMBS[what]
    async with channel(target, "agents", target.attacker) as calls:
        got, _ = await asyncio.gather(code_of(calls, method, data), served(target))
    # The host may have used up its calls for certificates in another test.
    assert got in {expected, EXHAUSTED if method == RENEW else expected}


@pytest.mark.parametrize(
    "data", [many(3, 30_000), many(8, 200_000), JoinRequest(token="x" * 70_000).SerializeToString()]
)
async def test_a_bomb_is_refused_to_a_stranger(target: Target, data: bytes) -> None:
    async with channel(target, "join") as calls:
        got, _ = await asyncio.gather(code_of(calls, JOIN, data), served(target))
    assert got in {EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED}


async def test_metadata_that_is_too_large_is_refused(target: Target) -> None:
    async with channel(target, "agents", target.attacker) as calls:
        many_headers = tuple((f"x-{number}", "y" * 1000) for number in range(30))
        got, _ = await asyncio.gather(code_of(calls, REPORT, b"", many_headers), served(target))
    assert got is EXHAUSTED


async def test_a_stream_that_brings_too_many_bytes_ends(target: Target) -> None:
    asked = asyncio.Event()

    async def flood() -> AsyncIterator[bytes]:
        yield many(3, 600_000)
        await asked.wait()

    async with channel(target, "agents", target.attacker) as calls:
        stream = calls.stream_stream(ADS, None, None)(flood(), timeout=BOUND_S)
        await served(target)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in stream:
                pass
        assert await stream.code() is EXHAUSTED
        assert "sends more than it may in a minute" in (await stream.details() or "")


async def test_a_deep_message_on_a_stream_ends_it(target: Target) -> None:
    async def once() -> AsyncIterator[bytes]:
        yield b"\x0a\x89\x27\x1a\x86\x27" + deep(1, 2_000)[-4998:]

    async with channel(target, "agents", target.attacker) as calls:
        stream = calls.stream_stream(ADS, None, None)(once(), timeout=BOUND_S)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for _ in stream:
                pass
    assert raised.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, EXHAUSTED}
    await served(target)


async def test_a_host_has_one_stream_however_many_it_opens(target: Target) -> None:
    asked = asyncio.Event()

    async def wait() -> AsyncIterator[bytes]:
        await asked.wait()
        yield b""

    async def status(calls: grpc.aio.Channel) -> grpc.StatusCode:
        stream = calls.stream_stream(ADS, None, None)(wait(), timeout=BOUND_S)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in stream:
                pass
        return await stream.code()

    async with channel(target, "agents", target.attacker) as calls:
        running = [asyncio.ensure_future(status(calls)) for _ in range(20)]
        await until(lambda: sum(each.done() for each in running) == 19)
        await served(target)
        asked.set()
        codes = await asyncio.gather(*running)
    assert codes.count(grpc.StatusCode.ABORTED) + codes.count(EXHAUSTED) == 19


async def test_so_many_calls_of_one_caller_run_at_once() -> None:
    end = asyncio.Event()
    running: list[str] = []

    async def answer(_request: bytes, context: Context) -> bytes:
        running.append(context.peer())
        await end.wait()
        return b""

    policy = Policy(lambda context: str(dict(context.invocation_metadata() or ())["x-caller"]), {}, at_once=2)
    server = grpc.aio.server(interceptors=[LimitCalls(policy)])
    handler = grpc.unary_unary_rpc_method_handler(answer, request_deserializer=bytes)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"M": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as calls:

        async def call(name: str) -> grpc.StatusCode:
            return await code_of(calls, "/s/M", b"", (("x-caller", name),))

        first = [asyncio.ensure_future(call("one")) for _ in range(2)]
        await until(lambda: len(running) == 2)
        assert await call("one") is EXHAUSTED
        other = asyncio.ensure_future(call("two"))
        await until(lambda: len(running) == 3)
        end.set()
        assert {*await asyncio.gather(*first, other)} == {grpc.StatusCode.OK}
        assert await call("one") is grpc.StatusCode.OK
    await server.stop(None)


async def test_so_many_attempts_to_join_come_from_one_address(target: Target) -> None:
    csr = pki.greedy_csr(new_key())
    request = JoinRequest(token="x" * 43, csr_der=csr).SerializeToString()
    async with channel(target, "join") as calls:
        codes = [await code_of(calls, JOIN, request) for _ in range(40)]
    assert EXHAUSTED in codes
    await served(target)


async def test_so_many_certificates_are_signed_for_one_host_in_a_minute(target: Target) -> None:
    async with channel(target, "agents", target.attacker) as calls:
        codes = [await code_of(calls, RENEW, b"") for _ in range(15)]
    assert codes[-1] is EXHAUSTED
    async with channel(target, "agents", target.victim) as calls:
        assert await code_of(calls, RENEW, b"") is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("name", "method"), [("agents", REPORT), ("join", JOIN), ("join", "/no.such/Method")])
async def test_streams_that_are_opened_and_reset_do_not_keep_others_waiting(
    target: Target, name: str, method: str
) -> None:
    svid = target.attacker if name == "agents" else None
    flooding = asyncio.create_task(asyncio.to_thread(reset_rapidly, target, name, svid, method))
    for _ in range(3):
        await served(target)
    sent = await flooding
    assert sent > 0
    await served(target)


def reset_rapidly(target: Target, name: str, svid: Svid | None, method: str) -> int:
    """Open and reset streams for a second, or until the server has had enough; return how many."""
    connection = secured(target, name, svid, "h2")
    block = headers(method, "x")
    sent, deadline = 0, time.monotonic() + 1
    with connection:
        # A server that has had enough reads no more.
        connection.settimeout(1)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(Kind.SETTINGS, 0, 0, b""))
        try:
            while time.monotonic() < deadline:
                batch = b""
                for number in range(sent, sent + 100):
                    stream = number * 2 + 1
                    batch += frame(Kind.HEADERS, 0x4, stream, block) + frame(Kind.RST_STREAM, 0, stream, b"\0\0\0\x08")
                connection.sendall(batch)
                sent += 100
        except OSError:
            pass
    return sent


async def test_a_huge_chain_of_client_certificates_ends_the_handshake(target: Target) -> None:
    chain = target.attacker.chain_pem + root_pem(target.authority) * 400
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(present, target, target.attacker.key_pem + chain)
    await served(target)


def root_pem(authority: Authority) -> bytes:
    return x509.load_der_x509_certificate(authority.root_der).public_bytes(Encoding.PEM)


def present(target: Target, pem: bytes) -> None:
    made = ssl.create_default_context(cafile=str(target.root))
    file = target.root.parent.parent / "chain.pem"
    file.write_bytes(pem)
    made.load_cert_chain(file)
    made.set_alpn_protocols(["h2"])
    with made.wrap_socket(opened(target, "agents"), server_hostname=ME) as connection:
        connection.settimeout(BOUND_S)
        if not connection.recv(1):
            raise ConnectionResetError


def test_every_limit_has_a_default_within_its_range() -> None:
    for name, (default, least, most) in limit_ranges().items():
        assert least <= default <= most, name
        assert getattr(Limits(), name) == default


def test_a_bucket_gives_a_minutes_worth_at_once_and_then_steadily() -> None:
    rates = Rates(60, max_keys=2)
    assert [rates.take("a", 0.0) for _ in range(61)] == [True] * 60 + [False]
    assert rates.take("b", 0.0)
    assert [rates.take("a", 1.5) for _ in range(2)] == [True, False]
    assert not rates.take("a", 1.6, 30)
    assert rates.take("a", 100.0, 60)
    assert rates.take("c", 100.0)
    assert len(rates._buckets) == 2
