"""Coming back after a long absence over real gRPC: honest hosts, and thieves of keys, nonces and names."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from structlog.testing import capture_logs

import pki
from enrolling import TIMEOUT_S, join, status_of
from hostmesh_agent import enrol, keys
from hostmesh_agent.enrol import EnrolError, RefusedError
from hostmesh_agent.returning import AWAY, Plight, Returning, is_due
from hostmesh_agent.rotation import BACKOFF_LAST, Failure
from hostmesh_agent.state import HostFiles, HostRecord, State
from hostmesh_agent.svid import Svid
from hostmesh_api.proof import JOIN, REATTEST, csr_digest, statement
from hostmesh_api.v1.hostmesh_pb2 import ChallengeRequest, JoinResponse, ReattestRequest
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentStub
from hostmesh_controller.store import CertificateRecord, Denial
from identity_servers import Controller
from waiting import until

LIFE = timedelta(hours=72)


@dataclass
class Thief:
    """Somebody who makes each part of the request as it likes."""

    controller: Controller
    stub: EnrolmentStub

    async def nonce(self, csr: bytes) -> bytes:
        asked = ChallengeRequest(csr_sha256=csr_digest(csr))
        return (await self.stub.Challenge(asked, timeout=TIMEOUT_S)).nonce  # type: ignore[no-any-return,misc] # of a stub

    async def request(self, state: State, purpose: str = REATTEST) -> ReattestRequest:
        """Return what the honest host would send."""
        _, csr = keys.request()
        files, nonce = state.files(), await self.nonce(csr)
        serial, public, signature = keys.proof(files.key_pem, files.chain_pem, statement(purpose, nonce, csr))
        return ReattestRequest(
            host="web-1", serial=serial, public_key_der=public, nonce=nonce, signature=signature, csr_der=csr
        )

    async def send(self, request: ReattestRequest) -> JoinResponse:
        return await self.stub.Reattest(request, timeout=TIMEOUT_S)  # type: ignore[no-any-return,misc] # of a stub

    async def why(self, request: ReattestRequest) -> str:
        """Return why the request is refused, as the controller's log has it; the peer is not told."""
        with capture_logs() as logs:
            code, message = await status_of(self.send(request))
        assert code is grpc.StatusCode.PERMISSION_DENIED
        reason = next(each["reason"] for each in logs if each["event"] == "reattestation_refused")
        assert str(reason) not in message
        return str(reason)


@asynccontextmanager
async def thief_at(controller: Controller) -> AsyncIterator[Thief]:
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{controller.join_port}", credentials) as channel:
        yield Thief(controller, EnrolmentStub(channel))


@pytest.fixture
async def joined(controller: Controller, state: State) -> State:
    """A host that has joined and was connected."""
    await join(controller.join_string(), state)
    await enrol.issue_workload(state, pki.CART.uri, pki.now)
    return state


async def been_away(controller: Controller, state: State, days: int = 1) -> State:
    """A host whose certificate ended so long ago: TLS goes by the machine's clock, so it is made in the past."""
    issued_at = pki.now() - LIFE - timedelta(days=days)
    svid = pki.svid(controller.authority, pki.HOST, issued_at, LIFE)
    _, public, _ = keys.proof(svid.key_pem, svid.chain_pem, b"")
    digest = hashlib.sha256(public).hexdigest()
    record = CertificateRecord(svid.serial, pki.HOST.uri, "web-1", svid.not_after, issued_at, digest)
    controller.store.add_certificate(record)
    await controller.enrolments.begin("web-1")
    await controller.enrolments.used("web-1", svid.serial, issued_at)
    await controller.states.joined("web-1")
    host = HostRecord("web-1", pki.TRUST_DOMAIN, (controller.agents_endpoint,), (f"127.0.0.1:{controller.join_port}",))
    state.save_joined(host, HostFiles(svid.key_pem, svid.chain_pem, controller.authority.bundle_pem))
    return state


async def test_a_host_whose_certificate_ended_comes_back_under_a_new_key(controller: Controller, state: State) -> None:
    away = await been_away(controller, state)
    before = away.files()
    with pytest.raises(EnrolError, match="comes back by itself"):
        await enrol.renew_host(away, pki.now)
    svid = await enrol.reattest(away, pki.now)
    assert svid.identity == pki.HOST
    assert away.files().key_pem != before.key_pem
    await enrol.renew_host(away, pki.now)


async def test_a_host_that_never_heard_of_the_join_port_looks_for_it_beside_the_agents_port(state: State) -> None:
    old = HostRecord("web-1", pki.TRUST_DOMAIN, ("10.0.0.1:15012", "[fd00::1]:9"))
    assert enrol.join_endpoints(old) == ("10.0.0.1:15013", "[fd00::1]:15013")


async def test_a_return_whose_answer_was_lost_can_be_tried_again_until_the_new_certificate_is_used(
    controller: Controller, state: State
) -> None:
    joined = await been_away(controller, state)
    old = joined.files()
    for _ in range(3):
        await enrol.reattest(joined, pki.now)
        lost = joined.files()
        joined.save_renewed(old)
    joined.save_renewed(lost)
    await enrol.issue_workload(joined, pki.CART.uri, pki.now)
    joined.save_renewed(old)
    async with thief_at(controller) as thief:
        assert "replaced by a newer one" in await thief.why(await thief.request(joined))


async def test_a_nonce_is_good_once(controller: Controller, joined: State) -> None:
    async with thief_at(controller) as thief:
        request = await thief.request(joined)
        await thief.send(request)
        assert await thief.why(request) == "nonce: used before"


async def test_a_nonce_that_failed_once_is_used_up_too(controller: Controller, joined: State) -> None:
    async with thief_at(controller) as thief:
        request = await thief.request(joined)
        wrong = ReattestRequest()
        wrong.CopyFrom(request)
        wrong.signature = b"\0" * 70
        assert "signature is not of" in await thief.why(wrong)
        assert await thief.why(request) == "nonce: used before"


async def test_a_nonce_is_good_for_the_request_it_was_asked_for_alone_and_not_for_long(
    controller: Controller, joined: State
) -> None:
    async with thief_at(controller) as thief:
        request = await thief.request(joined)
        _, request.csr_der = keys.request()
        assert "for another request" in await thief.why(request)
        request = await thief.request(joined)
        request.nonce = bytes(56)
        assert "not made here" in await thief.why(request)
        request.nonce = b"1"
        assert "malformed" in await thief.why(request)
        request = await thief.request(joined)
        controller.ahead = timedelta(seconds=62)
        assert await thief.why(request) == "nonce: too old"


async def test_who_steals_the_request_on_the_way_gets_no_certificate_for_a_key_of_its_own(
    controller: Controller, joined: State
) -> None:
    async with thief_at(controller) as thief:
        stolen = await thief.request(joined)
        _, csr = keys.request()
        mine = ReattestRequest()
        mine.CopyFrom(stolen)
        mine.csr_der, mine.nonce = csr, await thief.nonce(csr)
        assert "signature is not of" in await thief.why(mine)


async def test_a_signature_made_for_something_else_is_worth_nothing(controller: Controller, joined: State) -> None:
    async with thief_at(controller) as thief:
        assert "signature is not of" in await thief.why(await thief.request(joined, JOIN))


async def test_another_key_another_host_and_another_serial_are_refused(
    controller: Controller, joined: State, tmp_path: Path
) -> None:
    other = State(tmp_path / "other")
    await join(controller.join_string("web-2"), other)
    async with thief_at(controller) as thief:
        # The other host's own key, under the first one's name: with its own serial, and with a stolen one.
        request = await thief.request(other)
        assert "no certificate of that serial" in await thief.why(request)
        request = await thief.request(other)
        request.serial, _, _ = keys.proof(joined.files().key_pem, joined.files().chain_pem, b"")
        assert "for another key" in await thief.why(request)


async def test_keys_that_are_none_or_too_large_are_refused_before_they_are_used(
    controller: Controller, joined: State
) -> None:
    huge = rsa.generate_private_key(65537, 5120).public_key()
    der = huge.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    async with thief_at(controller) as thief:
        for bad in (b"", b"junk", der, b"0" * 60_000):
            request = await thief.request(joined)
            request.public_key_der = bad
            assert "for another key" in await thief.why(request)


async def test_the_certificate_of_a_workload_and_envoys_copy_are_no_way_back(
    controller: Controller, joined: State
) -> None:
    files = joined.files()
    for uri in (pki.CART.uri, pki.HOST.uri):
        svid = await enrol.issue_workload(joined, uri, pki.now)
        joined.save_renewed(replace(files, key_pem=svid.key_pem, chain_pem=svid.chain_pem))
        async with thief_at(controller) as thief:
            assert "no certificate of that serial" in await thief.why(await thief.request(joined))
        joined.save_renewed(files)


async def test_a_superseded_certificate_is_refused_also_by_a_controller_that_started_anew(
    controller: Controller, joined: State, tmp_path: Path
) -> None:
    old = joined.files()
    await enrol.renew_host(joined, pki.now)
    await enrol.issue_workload(joined, pki.CART.uri, pki.now)
    joined.save_renewed(old)
    newest = [each.serial for each in controller.store.certificates("web-1") if "/host/" in each.spiffe_id][-1]
    enrolment = controller.enrolments.current("web-1")
    assert enrolment is not None
    assert enrolment.used_serial == newest
    async with thief_at(controller) as thief:
        assert "replaced by a newer one" in await thief.why(await thief.request(joined))


async def test_what_was_used_outlives_a_restart_of_the_controller(tmp_path: Path, state: State) -> None:
    async with Controller(tmp_path / "controller").serving() as controller:
        await join(controller.join_string(), state)
        old = state.files()
        await enrol.renew_host(state, pki.now)
        await enrol.issue_workload(state, pki.CART.uri, pki.now)
    state.save_renewed(old)
    async with Controller(tmp_path / "controller").serving() as controller:
        controller.ahead = timedelta(minutes=6)
        state.save_host(replace(state.host(), agents_endpoints=(controller.agents_endpoint,)))
        with pytest.raises(EnrolError, match="replaced by a newer one that is in use"):
            await enrol.renew_host(state, pki.now)


async def test_who_is_out_of_the_mesh_stays_out(controller: Controller, joined: State) -> None:
    async with thief_at(controller) as thief:
        request = await thief.request(joined)
        kept = controller.registry.pop("web-1")
        assert await thief.why(request) == "the host is not registered"
        controller.registry["web-1"] = kept
        request = await thief.request(joined)
        await controller.enrolments.end("web-1")
        assert "has left" in await thief.why(request)
        await controller.enrolments.begin("web-1")
        request = await thief.request(joined)
        await controller.enrolments.deny("web-1", Denial.EXPELLED, "stolen", "root")
        assert "it was expelled (stolen)" in await thief.why(request)
        await controller.enrolments.readmit("web-1", "root")
        await controller.enrolments.begin("web-1")
        request = await thief.request(joined)
        controller.store.forget_host("web-1")
        assert "no certificate of that serial" in await thief.why(request)
        request = await thief.request(joined)
        request.host = "../web-1"
        code, _ = await status_of(thief.send(request))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_host_that_was_away_for_too_long_is_refused_and_zero_turns_it_off(tmp_path: Path, state: State) -> None:
    for within, said in ((30, "away for too long"), (0, "turned off"), (32, "")):
        controller = Controller(tmp_path / f"within-{within}")
        controller.within = timedelta(days=within)
        async with controller.serving(), thief_at(controller) as thief:
            request = await thief.request(await been_away(controller, state, 31))
            if said:
                assert said in await thief.why(request)
            else:
                assert (await thief.send(request)).host == "web-1"


async def test_a_record_of_an_older_controller_has_no_key_and_lets_nobody_in(
    controller: Controller, joined: State
) -> None:
    (record, *_) = controller.store.certificates("web-1")
    controller.store.forget_host("web-1")
    controller.store.add_certificate(replace(record, key_sha256=""))
    async with thief_at(controller) as thief:
        assert "for another key" in await thief.why(await thief.request(joined))


# When the agent asks

NOW = pki.now()


@pytest.mark.parametrize(
    ("plight", "due"),
    [
        (Plight(NOW - LIFE, None), False),
        (Plight(NOW - LIFE, NOW), True),
        (Plight(NOW + LIFE, NOW), False),
        (Plight(NOW + LIFE, NOW - AWAY), True),
        (Plight(NOW - LIFE, NOW, Failure(1, NOW - timedelta(seconds=4))), False),
        (Plight(NOW - LIFE, NOW, Failure(1, NOW - timedelta(seconds=5))), True),
        (Plight(NOW - LIFE, NOW, Failure(1, NOW - timedelta(seconds=5)), refused=True), False),
        (Plight(NOW - LIFE, NOW, Failure(1, NOW - BACKOFF_LAST), refused=True), True),
        (Plight(NOW - LIFE, NOW, Failure(9, NOW - timedelta(minutes=4))), False),
        # The clock was set back.
        (Plight(NOW - LIFE, NOW, Failure(9, NOW + LIFE)), True),
    ],
)
def test_a_host_asks_at_once_if_its_certificate_ended_and_later_if_not(plight: Plight, due: bool) -> None:
    assert is_due(plight, NOW) is due


async def test_the_agent_comes_back_by_itself_as_soon_as_the_controller_is_there(tmp_path: Path, state: State) -> None:
    """With real TLS: what ended by the machine's clock is refused on the agents' port."""
    controller = Controller(tmp_path / "controller")
    came: asyncio.Queue[Svid] = asyncio.Queue()
    async with controller.serving():
        away = await been_away(controller, state)
        there = f"127.0.0.1:{controller.join_port}"
        away.save_host(replace(away.host(), join_endpoints=("127.0.0.1:1",)))
        returning = Returning(away, lambda: False, pki.now, came.put_nowait, look_s=0.01)
        task = asyncio.create_task(returning.run())
        await until(lambda: "no controller answered" in returning.problem)
        away.save_host(replace(away.host(), join_endpoints=(there,)))
        svid = await asyncio.wait_for(came.get(), TIMEOUT_S)
        task.cancel()
        assert svid.not_after > pki.now()
        assert returning.problem == ""
        await enrol.renew_host(away, pki.now)


async def test_an_agent_that_is_refused_says_so_and_asks_rarely(controller: Controller, joined: State) -> None:
    controller.store.forget_host("web-1")
    clock = [pki.now() + 2 * LIFE]

    def now() -> datetime:
        return clock[0]

    looks = itertools.count()
    looked = 0

    def connected() -> bool:
        nonlocal looked
        looked = next(looks)
        return False

    returning = Returning(joined, connected, now, lambda _: None, look_s=0.001)
    task = asyncio.create_task(returning.run())
    await until(lambda: bool(returning.problem))
    assert "cannot come back" in returning.problem
    assert "not let back in by its old key" in returning.problem
    with capture_logs() as logs:
        before = looked
        await until(lambda: looked >= before + 20)
        assert logs == []
    task.cancel()


async def test_a_clock_that_is_set_back_does_not_put_off_the_coming_back(controller: Controller, joined: State) -> None:
    controller.store.forget_host("web-1")
    clock = [pki.now() + timedelta(hours=9)]
    looks = 0

    def connected() -> bool:
        nonlocal looks
        looks += 1
        return False

    returning = Returning(joined, connected, lambda: clock[0], lambda _: None, look_s=0.001)
    task = asyncio.create_task(returning.run())
    await until(lambda: looks >= 2)
    assert not returning.problem
    clock[0] -= timedelta(hours=9)
    seen = looks
    await until(lambda: looks >= seen + 2)
    clock[0] += AWAY
    await until(lambda: bool(returning.problem))
    task.cancel()


async def test_a_controller_that_gives_another_name_is_not_believed(controller: Controller, joined: State) -> None:
    other = replace(joined.host(), host="web-2")
    joined.save_host(other)
    with pytest.raises(RefusedError):
        await enrol.reattest(joined, controller.now)
