"""A host that was expelled, over real gRPC and TLS: every call, every certificate, and sessions that are resumed."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

import pki
from bench.h2 import GrpcStream
from enrolling import TIMEOUT_S, join, status_of
from hostmesh_agent import enrol
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.keys import csr_der, new_key
from hostmesh_agent.state import State
from hostmesh_api.v1.hostmesh_pb2 import HostReport, IssueWorkloadRequest, LeaveRequest, RenewHostRequest, WorkloadLease
from hostmesh_api.v1.hostmesh_pb2_grpc import IdentityStub, ReportingStub
from hostmesh_controller.authority import Authority, Issued
from hostmesh_controller.clones import OVERLAP
from hostmesh_controller.issuing import Issuing
from hostmesh_controller.peers import SUPERSEDED_GRACE, RefusedError
from hostmesh_controller.store import Denial
from identity_servers import Controller

WEB, WEB_2 = "web-1", "web-2"


async def expel(controller: Controller, host: str = WEB, reason: str = "stolen") -> None:
    await controller.deny(host, Denial.EXPELLED, reason, actor="test")


def renewal() -> RenewHostRequest:
    return RenewHostRequest(csr_der=csr_der(new_key()))


async def calls(controller: Controller, state: State) -> dict[str, tuple[grpc.StatusCode, str]]:
    """Return how every rpc of the agents' port ends that must not succeed."""
    async with enrol.channel(state) as channel:
        identity, reporting = IdentityStub(channel), ReportingStub(channel)
        request = IssueWorkloadRequest(csr_der=csr_der(new_key()), spiffe_id=pki.CART.uri)
        return {
            "renew": await status_of(identity.RenewHost(renewal(), timeout=TIMEOUT_S)),
            "issue": await status_of(identity.IssueWorkload(request, timeout=TIMEOUT_S)),
            "report": await status_of(reporting.Report(HostReport(), timeout=TIMEOUT_S)),
            "leave": await status_of(identity.Leave(LeaveRequest(), timeout=TIMEOUT_S)),
        }


async def test_every_call_of_an_expelled_host_is_refused_at_once_and_after_a_restart_of_the_controller(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    await join(controller.join_string(), state)
    await expel(controller)
    for code, message in (await calls(controller, state)).values():
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "it was expelled (stolen)" in message
    # Its records are there still: it is not an unknown certificate that is refused.
    assert controller.store.certificates(WEB)
    async with restarted(tmp_path) as again:
        moved = State(state.directory)
        for code, message in (await calls(again, _calling(moved, again))).values():
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "it was expelled (stolen)" in message


@asynccontextmanager
async def restarted(directory: Path) -> AsyncIterator[Controller]:
    """Another controller on the same store and authority."""
    async with Controller(directory / "controller").serving() as again:
        yield again


def _calling(state: State, controller: Controller) -> State:
    """Let an agent call the new controller, whose ports are others."""
    record = state.host()
    state.save_joined(type(record)(record.host, record.trust_domain, (controller.agents_endpoint,)), state.files())
    return state


async def test_an_open_channel_of_an_expelled_host_is_no_use(controller: Controller, state: State) -> None:
    await join(controller.join_string(), state)
    async with enrol.channel(state) as channel:
        await IdentityStub(channel).RenewHost(renewal(), timeout=TIMEOUT_S)
        await expel(controller)
        code, _ = await status_of(IdentityStub(channel).RenewHost(renewal(), timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.PERMISSION_DENIED


async def test_an_expelled_host_cannot_join_until_it_is_readmitted_and_what_it_had_stays_refused(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    await join(controller.join_string(), state)
    before = controller.enrolments.current(WEB)
    await expel(controller)
    text = controller.join_string()
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*it was expelled .*host readmit"):
        await join(text, State(tmp_path / "again"))
    # What was refused has used no token.
    assert {each.joins for each in controller.store.tokens()} == {0, 1}
    assert await controller.enrolments.readmit(WEB, "test")
    assert not await controller.enrolments.readmit(WEB, "test")
    assert controller.enrolments.is_out(WEB), "nobody calls it before it has joined again"
    again = State(tmp_path / "again")
    await join(text, again)
    assert not controller.enrolments.is_out(WEB)
    await enrol.renew_host(again, pki.now)
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*of an earlier joining"):
        await enrol.renew_host(state, pki.now)
    assert before is not None
    assert controller.enrolments.denied(WEB) == {before.id}


class SlowAuthority:
    """Signs, and takes so long that something happens meanwhile."""

    def __init__(self, authority: Authority, meanwhile: Callable[[], None]) -> None:
        self._authority = authority
        self._meanwhile = meanwhile

    def issue(self, *arguments: Any, **more: Any) -> Issued:
        self._meanwhile()
        return self._authority.issue(*arguments, **more)


async def test_a_certificate_that_is_being_signed_while_its_host_is_expelled_is_not_given_out(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    loop = asyncio.get_running_loop()
    slow: Any = SlowAuthority(
        controller.authority, lambda: asyncio.run_coroutine_threadsafe(expel(controller), loop).result(TIMEOUT_S)
    )
    issuing = Issuing(slow, controller.store, controller.states, controller, controller.enrolments, controller.now)
    with pytest.raises(RefusedError, match="it was expelled"):
        await asyncio.to_thread(
            issuing.issue, issuing.enrolments.current(WEB), csr_der(new_key()), pki.CART, record=True
        )
    assert [each.spiffe_id for each in controller.store.certificates(WEB)] == [pki.HOST.uri]


async def test_certificates_carry_their_enrolment_and_workloads_have_that_of_their_host(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    record = controller.enrolments.current(WEB)
    assert record is not None
    assert len(record.id) == 32
    cart = await enrol.issue_workload(state, pki.CART.uri, pki.now)
    envoys = await enrol.issue_workload(state, pki.HOST.uri, pki.now)
    leaves = (state.files().chain_pem, cart.chain_pem, envoys.chain_pem)
    assert {pki.leaf(each).subject.rfc4514_string() for each in leaves} == {f"CN={record.id}"}
    assert pki.leaf(controller.certificate.current().chain_pem).subject.rfc4514_string() == ""


async def test_an_expulsion_is_denied_for_as_long_as_a_certificate_of_it_is_valid(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    await expel(controller)
    assert len(controller.enrolments.denied(WEB)) == 1
    controller.ahead = timedelta(hours=71)
    assert len(controller.enrolments.denied(WEB)) == 1
    controller.ahead = timedelta(hours=73)
    assert not controller.enrolments.denied(WEB)
    assert controller.enrolments.standing(WEB).refusal, "it is expelled all the same"


async def test_a_host_that_never_joined_can_be_expelled_before_it_does(controller: Controller, state: State) -> None:
    text = controller.join_string()
    await expel(controller)
    with pytest.raises(EnrolError, match="it was expelled"):
        await join(text, state)
    await controller.enrolments.readmit(WEB, "test")
    assert not controller.enrolments.is_out(WEB)
    await join(text, state)


# Sessions that are resumed


@dataclass
class Caller:
    """Speaks gRPC over Python's own TLS, which can keep a session; gRPC's client keeps it to itself."""

    controller: Controller
    context: ssl.SSLContext
    session: Any = None

    def renew(self) -> tuple[bytes, bool]:
        """Ask for a renewal; return the answer, "" for a refusal, and whether the session was resumed."""
        with (
            socket.create_connection(("127.0.0.1", self.controller.agents_port), TIMEOUT_S) as plain,
            self.context.wrap_socket(plain, session=self.session) as client,
        ):
            stream = GrpcStream()
            # The stream that this speaker of HTTP/2 opens first is of no interest.
            opening = stream.open("/nobody/asks", "localhost")
            path = "/hostmesh.v1.Identity/RenewHost"
            client.sendall(opening + stream.call(path, "localhost", renewal().SerializeToString()))
            while True:
                received = stream.receive(client.recv(65536))
                client.sendall(received.reply)
                if received.answers:
                    self.session = client.session
                    return received.answers[0], bool(client.session_reused)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_that_is_resumed_is_no_use(
    controller: Controller, state: State, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    await join(controller.join_string(), state)
    caller = _caller(controller, state, tmp_path, version)
    answer, resumed = await asyncio.to_thread(caller.renew)
    assert (bool(answer), resumed) == (True, False)
    answer, resumed = await asyncio.to_thread(caller.renew)
    assert (answer, resumed) == (b"", True)
    caller.session = None
    answer, resumed = await asyncio.to_thread(caller.renew)
    assert (bool(answer), resumed) == (True, False)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_does_not_outlive_its_certificate_or_its_host(
    controller: Controller, state: State, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    await join(controller.join_string(), state)
    caller = _caller(controller, state, tmp_path, version)
    for ahead, denied in ((73, False), (0, True)):
        controller.ahead = timedelta(hours=ahead)
        if denied:
            await expel(controller)
        for session in (caller.session, None):
            caller.session = session
            answer, _ = await asyncio.to_thread(caller.renew)
            assert answer == b""


def _caller(controller: Controller, state: State, directory: Path, version: ssl.TLSVersion) -> Caller:
    files = state.files()
    (directory / "own.pem").write_bytes(files.key_pem + files.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Whose clock stands still.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(directory / "own.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    return Caller(controller, context)


# Pins and clones


async def test_what_certificate_a_host_used_is_known_after_a_restart_of_the_controller(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    await join(controller.join_string(), state)
    old = state.files()
    await enrol.renew_host(state, controller.now)
    await enrol.issue_workload(state, pki.CART.uri, controller.now)
    state.save_renewed(old)
    async with restarted(tmp_path) as again:
        _calling(state, again)
        # The first call that the new process sees is of the old certificate.
        await enrol.issue_workload(state, pki.CART.uri, again.now)
        again.ahead = SUPERSEDED_GRACE + timedelta(minutes=1)
        with pytest.raises(EnrolError, match="replaced by a newer one that is in use"):
            await enrol.issue_workload(state, pki.CART.uri, again.now)
        assert again.enrolments.standing(WEB).denial is Denial.QUARANTINED


async def report(state: State, agent: str, boot_id: str = "boot") -> None:
    sent = HostReport(agent=agent, machine="m", leases=[WorkloadLease(namespace="shop", name="cart-1", ready=True)])
    sent.facts.boot_id = boot_id
    async with enrol.channel(state) as channel:
        await ReportingStub(channel).Report(sent, timeout=TIMEOUT_S)


async def test_a_copied_state_directory_puts_the_original_and_the_copy_under_quarantine(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    await report(state, "original")
    await report(state, "copy")
    controller.ahead = OVERLAP + timedelta(seconds=1)
    await report(state, "original")
    assert controller.enrolments.standing(WEB).denial is Denial.NONE
    await report(state, "copy")
    standing = controller.enrolments.standing(WEB)
    assert standing.denial is Denial.QUARANTINED
    assert "two agents speak with one identity, at 127.0.0.1 boot boot machine m and" in standing.reason
    for code, message in (await calls(controller, state)).values():
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "it was quarantined (two agents" in message
    await controller.enrolments.readmit(WEB, "test")
    await join(controller.join_string(), state, force=True)
    await report(state, "original")
    await report(state, "copy")


async def test_reboots_and_restarts_of_agent_and_controller_are_no_clones(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    await join(controller.join_string(), state)
    for number in range(4):
        await report(state, f"agent-{number}", f"boot-{number // 2}")
        controller.ahead += timedelta(minutes=1)
        await report(state, f"agent-{number}", f"boot-{number // 2}")
    async with restarted(tmp_path) as again:
        again.ahead = controller.ahead
        _calling(state, again)
        for _ in range(3):
            await report(state, "agent-3", "boot-1")
            again.ahead += timedelta(minutes=1)
        assert again.enrolments.standing(WEB).refusal is None


async def test_a_clone_is_only_told_where_the_operator_wants_it_so(tmp_path: Path, state: State) -> None:
    async with Controller(tmp_path / "warning", clones="warn").serving() as controller:
        await join(controller.join_string(), state)
        await report(state, "original")
        await report(state, "copy")
        controller.ahead = OVERLAP + timedelta(seconds=1)
        await report(state, "original")
        await report(state, "copy")
        assert controller.enrolments.standing(WEB).refusal is None
        await report(state, "original")
