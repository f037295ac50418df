"""The agent looks at programs and judges them: against real servers, real commands and the clock of the loop."""

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue, UInt32Value

import pki
from hostmesh_agent.probe_ways import NotHereError, Ways, http_request, local, status_of
from hostmesh_agent.probes import AT_ONCE, Judgement, Look, Memory, Name, ProbeName, Probes, judge
from hostmesh_api.v1.hostmesh_pb2 import Probe, Workload, WorkloadLease

BOUND_S = 20
WAYS = Ways("nobody" if os.geteuid() == 0 else "")
HERE = "127.0.0.1"
WEB = Name("shop", "web")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


# The judgement


@pytest.mark.parametrize(
    ("start", "looks", "states"),
    [
        (False, "+", "+"),
        (False, "-+-", "-++"),
        (True, "--+---", "+++++-"),
        (True, "---+", "++-+"),
    ],
)
def test_a_threshold_counts_looks_in_a_row(start: bool, looks: str, states: str) -> None:
    probe = Probe(success_threshold=1, failure_threshold=3)
    now, seen = Judgement(start), ""
    for each in looks:
        now = judge(now, Look(each == "+", "" if each == "+" else "refused"), probe)
        seen += "+" if now.healthy else "-"
    assert seen == states


def test_more_than_one_success_can_be_asked_for() -> None:
    probe, now = Probe(success_threshold=2, failure_threshold=1), Judgement(healthy=False)
    now = judge(now, Look(well=True), probe)
    assert not now.healthy
    assert judge(judge(now, Look(False, "x"), probe), Look(well=True), probe).healthy is False
    assert judge(now, Look(well=True), probe) == Judgement(healthy=True)


def test_an_unhealthy_workload_tells_why() -> None:
    now = judge(Judgement(healthy=True), Look(False, "HTTP status 503"), Probe(failure_threshold=1))
    assert now == Judgement(healthy=False, reason="HTTP status 503")


# The ways


@asynccontextmanager
async def serving(answer: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(answer, HERE, 0, ssl=context)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def says(text: str, heard: list[bytes] | None = None) -> Serve:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            heard.append(request)
        writer.write(text.encode())
        with suppress(OSError):
            await writer.drain()
        writer.close()

    return answer


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("HTTP/1.1 200 OK\r\n\r\n", ""),
        ("HTTP/1.0 399 Fine\r\n\r\n", ""),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
        ("HTTP/1.1 503\r\n\r\n", "HTTP status 503"),
        ("SSH-2.0-OpenSSH\r\n", "the answer is not HTTP"),
        ("", "the answer is not HTTP"),
        ("x" * 100_000, "the answer is not HTTP"),
    ],
)
async def test_an_http_answer_from_200_to_399_is_well(answer: str, reason: str) -> None:
    async with serving(says(answer)) as port:
        found = await WAYS.look(Probe(http_get=Probe.HttpGet(port=port, path="/")), HERE)
    assert found == Look(not reason, reason)


async def test_an_http_probe_sends_its_headers_in_place_of_the_usual_ones() -> None:
    heard: list[bytes] = []
    headers = [Probe.Header(name="Host", value="shop.example"), Probe.Header(name="X-Probe", value="1")]
    async with serving(says("HTTP/1.1 200 OK\r\n\r\n", heard)) as port:
        get = Probe.HttpGet(host="localhost", port=port, path="live now?a=b", headers=headers)
        assert (await WAYS.look(Probe(http_get=get), "192.0.2.1")).well
    (request,) = heard
    lines = request.decode().split("\r\n")
    assert lines[0] == "GET /live%20now?a=b HTTP/1.1"
    assert [each for each in lines if each.lower().startswith("host:")] == ["Host: shop.example"]
    assert "X-Probe: 1" in lines


def test_a_header_is_one_line() -> None:
    with pytest.raises(NotHereError, match="has a line break"):
        http_request(Probe.HttpGet(headers=[Probe.Header(name="a", value="b\r\nc: d")]), HERE)


async def test_https_is_asked_whoever_answers(tmp_path: Path) -> None:
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    authority = pki.new_authority(tmp_path)
    own = pki.svid(authority, pki.CART)
    key.write_bytes(own.key_pem)
    chain.write_bytes(own.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    for answer, reason in (("HTTP/1.1 204 x\r\n\r\n", ""), ("HTTP/1.1 500 x\r\n\r\n", "HTTP status 500")):
        async with serving(says(answer), context) as port:
            found = await WAYS.look(Probe(http_get=Probe.HttpGet(port=port, tls=True), timeout_s=10), HERE)
        assert found == Look(not reason, reason)
    async with serving(says("HTTP/1.1 200 OK\r\n\r\n")) as port:
        assert not (await WAYS.look(Probe(http_get=Probe.HttpGet(port=port, tls=True), timeout_s=1), HERE)).well


async def test_a_port_that_takes_connections_is_well_and_a_closed_one_is_not() -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with serving(silent) as port:
        assert await WAYS.look(Probe(tcp_socket=Probe.TcpSocket(port=port)), HERE) == Look(well=True)
    found = await WAYS.look(Probe(tcp_socket=Probe.TcpSocket(port=port)), HERE)
    assert not found.well
    assert "Connect call failed" in found.reason or "refused" in found.reason


async def test_a_program_that_does_not_answer_in_time_is_not_well() -> None:
    done = asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    async with serving(hang) as port:
        found = await WAYS.look(Probe(http_get=Probe.HttpGet(port=port), timeout_s=1), HERE)
        done.set()
    assert found == Look(False, "no answer within 1 s")


@pytest.mark.parametrize(
    ("status", "well"), [(1, True), (2, False), (None, False)], ids=["serving", "not serving", "unknown service"]
)
async def test_grpc_asks_the_health_service(status: int | None, well: bool) -> None:
    async def check(request: StringValue, context: "grpc.aio.ServicerContext[StringValue, UInt32Value]") -> UInt32Value:
        if status is None or request.value != "shop.Cart":
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return UInt32Value(value=status or 0)

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        check, request_deserializer=StringValue.FromString, response_serializer=UInt32Value.SerializeToString
    )
    service = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port(f"{HERE}:0")
    await server.start()
    try:
        found = await WAYS.look(Probe(grpc=Probe.Grpc(port=port, service="shop.Cart"), timeout_s=10), HERE)
    finally:
        await server.stop(None)
    assert found.well is well


@pytest.mark.parametrize(("code", "well"), [(0, True), (3, False)])
async def test_a_command_is_well_if_it_ends_with_0(code: int, well: bool) -> None:
    if not WAYS.exec_user:
        pytest.skip("needs root")
    found = await WAYS.look(Probe(exec=Probe.Exec(command=["sh", "-c", f"yes | head -c 10000000; exit {code}"])), HERE)
    assert found == Look(well, "" if well else "sh ended with code 3")


async def test_a_command_has_no_rights_and_nothing_of_the_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    if not WAYS.exec_user:
        pytest.skip("needs root")
    monkeypatch.setenv("HOSTMESH_SECRET", "x")
    script = '[ "$(id -un)" = nobody ] && [ "$(id -G | wc -w)" = 1 ] && [ -z "$HOSTMESH_SECRET" ] && [ "$PWD" = / ]'
    assert (await WAYS.look(Probe(exec=Probe.Exec(command=["sh", "-c", script]), timeout_s=10), HERE)).well


def _runs(pid: int) -> bool:
    """Tell whether a process is there; one that nobody has reaped yet is not."""
    try:
        stat = (Path("/proc") / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


async def test_a_command_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    if not WAYS.exec_user:
        pytest.skip("needs root")
    seen = tmp_path / "pids"
    seen.touch()
    seen.chmod(0o666)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.owner() == "root" and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    script = f"sleep 600 & echo $! >{seen}; sleep 600"
    # Long enough for the shell to start on a busy machine, and far from the 600 s of its children.
    found = await WAYS.look(Probe(exec=Probe.Exec(command=["sh", "-c", script]), timeout_s=3), HERE)
    assert found == Look(False, "no answer within 3 s")
    child = int(seen.read_text())
    async with asyncio.timeout(10):
        # Killed before the answer; the kernel ends it a moment later, and tells nobody.
        while _runs(child):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("user", "said"), [("", "runs no commands"), ("root", "do not run as root"), ("no-such-user", "there is no user")]
)
async def test_a_host_that_runs_no_commands_says_so(user: str, said: str) -> None:
    found = await Ways(user).look(Probe(exec=Probe.Exec(command=["true"])), HERE)
    assert not found.well
    assert said in found.reason


async def test_a_command_that_is_not_there_is_not_well() -> None:
    if not WAYS.exec_user:
        pytest.skip("needs root")
    found = await WAYS.look(Probe(exec=Probe.Exec(command=["/no/such/command"])), HERE)
    assert found == Look(False, "there is no command /no/such/command")


async def test_commands_run_beside_the_threads_of_grpc() -> None:
    if not WAYS.exec_user:
        pytest.skip("needs root")
    async with grpc.aio.insecure_channel(f"{HERE}:1") as channel:
        channel.get_state(try_to_connect=True)
        probe = Probe(exec=Probe.Exec(command=["true"]), timeout_s=10)
        assert {await WAYS.look(probe, HERE) for _ in range(10)} == {Look(well=True)}


@pytest.mark.parametrize("host", ["192.0.2.7", "240.240.0.9", "example.com", "0.0.0.0", "fd00:f0f0::7", "2001:db8::1"])
def test_a_probe_looks_at_its_own_host_alone(host: str) -> None:
    with pytest.raises(NotHereError):
        local(host)


def test_the_addresses_of_the_host_are_its_own() -> None:
    assert [local(each) for each in ("localhost", "127.0.0.1", "::1", "127.8.8.8")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
        "127.8.8.8",
    ]


def test_only_the_first_line_of_http_has_a_status() -> None:
    assert [status_of(each) for each in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 20 OK", b"HTTP/2", b"200 OK x")] == [
        200,
        None,
        None,
        None,
    ]


# All together


class Program:
    """What probes see, set by the test; each look waits for its leave."""

    def __init__(self) -> None:
        self.looks: asyncio.Queue[Look] = asyncio.Queue()
        self.addresses: list[str] = []
        self.changes = asyncio.Event()
        self.looked = asyncio.Event()

    async def look(self, probe: Probe, address: str) -> Look:
        self.addresses.append(address)
        self.looked.set()
        return await self.looks.get()

    async def changed(self) -> None:
        async with asyncio.timeout(BOUND_S):
            await self.changes.wait()
        self.changes.clear()


def web(*, probed: bool = True, initial_delay_s: int = 0, period_s: int = 0) -> Workload:
    made = Workload(namespace="shop", name="web", address="10.0.0.1")
    if probed:
        way = Probe.TcpSocket(port=80)
        made.probe.CopyFrom(
            Probe(tcp_socket=way, failure_threshold=1, initial_delay_s=initial_delay_s, period_s=period_s)
        )
    return made


def told(probes: Probes) -> tuple[int, str]:
    lease = probes.tell(WorkloadLease(namespace="shop", name="web"))
    return lease.health, lease.health_reason


@asynccontextmanager
async def running(path: Path, *workloads: Workload, boot_id: str = "b1") -> AsyncIterator[tuple[Program, Probes]]:
    program = Program()
    probes = Probes(program.look, Memory(path, boot_id), program.changes.set)
    probes.configure(workloads)
    task = asyncio.create_task(probes.run())
    try:
        yield program, probes
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_new_workload_is_not_healthy_before_its_first_success(tmp_path: Path) -> None:
    async with running(tmp_path / "health", web()) as (program, probes):
        assert told(probes) == (WorkloadLease.UNHEALTHY, "its probe has not succeeded yet")
        program.looks.put_nowait(Look(well=True))
        await program.changed()
        assert told(probes) == (WorkloadLease.HEALTHY, "")
        assert program.addresses[0] == "10.0.0.1"


async def test_a_probe_that_is_taken_out_as_its_look_ends_is_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "health", web()) as (program, probes):
        async with asyncio.timeout(BOUND_S):
            await program.looked.wait()
        # The look has ended, and whoever waits for it has not been woken yet.
        program.looks.put_nowait(Look(well=True))
        probes.configure([])
        program.looked.clear()
        probes.configure([web(initial_delay_s=0, period_s=1)])
        async with asyncio.timeout(BOUND_S):
            await program.looked.wait()
        program.looks.put_nowait(Look(well=True))
        probes.configure([])
        # The next round of the loop is that of who was woken.
        for _ in range(3):
            await asyncio.sleep(0)
        assert told(probes) == (WorkloadLease.NOT_PROBED, "")


async def test_a_workload_without_a_probe_is_not_judged(tmp_path: Path) -> None:
    async with running(tmp_path / "health", web(probed=False)) as (_, probes):
        assert told(probes) == (WorkloadLease.NOT_PROBED, "")


async def test_a_workload_that_gets_a_probe_stays_healthy_until_it_fails(tmp_path: Path) -> None:
    async with running(tmp_path / "health", web(probed=False)) as (program, probes):
        probes.configure([web()])
        assert told(probes)[0] == WorkloadLease.HEALTHY
        program.looks.put_nowait(Look(False, "refused"))
        await program.changed()
        assert told(probes) == (WorkloadLease.UNHEALTHY, "refused")
        probes.configure([web(period_s=7)])
        assert told(probes)[0] == WorkloadLease.UNHEALTHY
        probes.configure([web(probed=False)])
        assert told(probes)[0] == WorkloadLease.NOT_PROBED


async def test_another_agent_goes_on_with_what_the_last_one_thought_until_a_reboot(tmp_path: Path) -> None:
    path = tmp_path / "health"
    async with running(path, web()) as (program, _):
        program.looks.put_nowait(Look(well=True))
        await program.changed()
    async with running(path, web()) as (_, probes):
        assert told(probes)[0] == WorkloadLease.HEALTHY
    async with running(path, web(), boot_id="b2") as (_, probes):
        assert told(probes)[0] == WorkloadLease.UNHEALTHY


async def test_a_probe_that_goes_away_is_not_looked_at_any_more(tmp_path: Path) -> None:
    async with running(tmp_path / "health", web()) as (program, probes):
        async with asyncio.timeout(BOUND_S):
            await program.looked.wait()
        probes.configure([])
        await asyncio.sleep(0)
        program.looks.put_nowait(Look(well=True))
        probes.configure([web(initial_delay_s=600)])
        assert told(probes)[0] == WorkloadLease.UNHEALTHY
        assert len(program.addresses) == 1


async def test_commands_that_hang_keep_no_connection_waiting(tmp_path: Path) -> None:
    hanging, well = asyncio.Event(), asyncio.Event()
    begun = 0

    async def look(probe: Probe, _address: str) -> Look:
        nonlocal begun
        if probe.WhichOneof("way") == "exec":
            begun += 1
            await hanging.wait()
        return Look(well=True)

    commands = [Workload(namespace="shop", name=f"hangs-{number}") for number in range(AT_ONCE + 4)]
    for each in commands:
        each.probe.exec.command.append("hang")
    probes = Probes(look, Memory(tmp_path / "health", "b1"), well.set)
    probes.configure([*commands, web()])
    task = asyncio.create_task(probes.run())
    async with asyncio.timeout(BOUND_S):
        await well.wait()
    assert told(probes)[0] == WorkloadLease.HEALTHY
    assert begun == AT_ONCE
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_memory_that_makes_no_sense_is_none(tmp_path: Path) -> None:
    path = tmp_path / "health"
    for text in ("", "{", "[]", '{"boot_id": "b1"}', '{"boot_id": "b1", "workloads": [1]}'):
        path.write_text(text)
        assert Memory(path, "b1").read() == {}
    Memory(tmp_path / "none" / "health", "b1").write({ProbeName(WEB, ""): True})
    Memory(path, "b1").write({ProbeName(WEB, ""): True})
    assert Memory(path, "b1").read() == {ProbeName(WEB, ""): True}


def test_probes_need_no_tls_of_pythons_own() -> None:
    script = "import sys; sys.modules['ssl'] = None; import hostmesh_agent.probe_ways"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", script]) == 0
