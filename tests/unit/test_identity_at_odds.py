"""Where parts of identity meet, over real gRPC: roots that change, joinings that cross, forged certificates."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

import pki
from enrolling import TIMEOUT_S, join
from hostmesh_agent import enrol
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.keys import key_pem, new_key
from hostmesh_agent.returning import Returning
from hostmesh_agent.state import HostFiles, State
from hostmesh_agent.svid import Svid
from hostmesh_controller.enrolments import DeniedError
from hostmesh_controller.limits import Limits
from hostmesh_controller.peers import SUPERSEDED_GRACE, Context, caller_of
from hostmesh_controller.store import Denial
from identity_servers import Controller
from unit.test_reattestation import been_away, thief_at

WEB = "web-1"


def rotate(controller: Controller, *, compromised: bool = False) -> None:
    """Let another root take the place of the one that signs, to the end."""
    authority, now = controller.authority, pki.now()
    authority.prepare(now)
    authority.activate(now)
    authority.taint(None, now, timedelta())
    authority.revoke(None, now, compromised=compromised)


async def come_back(state: State) -> Svid:
    """Let the agent's own loop do it."""
    came: asyncio.Queue[Svid] = asyncio.Queue()
    returning = asyncio.create_task(Returning(state, lambda: False, pki.now, came.put_nowait, look_s=0.01).run())
    try:
        return await asyncio.wait_for(came.get(), TIMEOUT_S)
    finally:
        returning.cancel()


# Rotation and absence


@pytest.mark.parametrize("turns", [1, 3])
async def test_a_host_whose_certificate_ended_and_that_knows_a_retired_root_alone_comes_back_by_itself(
    controller: Controller, state: State, turns: int
) -> None:
    away = await been_away(controller, state)
    for _ in range(turns):
        rotate(controller)
    assert controller.authority.root_der not in pki.ders(away.files().bundle_pem)
    svid = await come_back(away)
    assert svid.enrolment == controller.enrolments.current(WEB).id  # type: ignore[union-attr]
    assert pki.ders(away.files().bundle_pem) == [controller.authority.root_der]
    await enrol.renew_host(away, pki.now)
    cart = await enrol.issue_workload(away, pki.CART.uri, pki.now)
    assert cart.enrolment == svid.enrolment
    assert svid.enrolment not in controller.enrolments.denied(WEB)


async def test_a_host_that_knows_a_compromised_root_alone_believes_nobody(controller: Controller, state: State) -> None:
    away = await been_away(controller, state)
    rotate(controller, compromised=True)
    with pytest.raises(EnrolError, match="no controller answered"):
        await enrol.reattest(away, pki.now)


async def test_a_host_that_was_expelled_while_roots_changed_does_not_come_back_before_it_joins_anew(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    away = await been_away(controller, state)
    record = controller.enrolments.current(WEB)
    assert record is not None
    assert controller.enrolments.extend(record, pki.now())
    await controller.deny(WEB, Denial.EXPELLED, "stolen", actor="test")
    rotate(controller)
    async with thief_at(controller) as thief:
        assert "it was expelled" in await thief.why(await thief.request(away))
        await controller.enrolments.readmit(WEB, "test")
        assert "has not joined since it was readmitted" in await thief.why(await thief.request(away))
        await join(controller.join_string(), State(tmp_path / "again"))
        assert "no certificate of that serial" in await thief.why(await thief.request(away))


async def test_a_thief_who_comes_back_by_a_copied_key_ends_in_quarantine_with_the_original(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    await join(controller.join_string(), state)
    await enrol.issue_workload(state, pki.CART.uri, pki.now)
    shutil.copytree(state.directory, tmp_path / "copy")
    copy = State(tmp_path / "copy")
    await enrol.reattest(copy, pki.now)
    await enrol.issue_workload(copy, pki.CART.uri, pki.now)
    controller.ahead = SUPERSEDED_GRACE + timedelta(minutes=1)
    with pytest.raises(EnrolError, match="replaced by a newer one"):
        await enrol.renew_host(state, pki.now)
    assert controller.enrolments.standing(WEB).denial is Denial.QUARANTINED
    for each in (state, copy):
        with pytest.raises(EnrolError, match="PERMISSION_DENIED"):
            await enrol.renew_host(each, pki.now)
        with pytest.raises(EnrolError, match="PERMISSION_DENIED"):
            await enrol.reattest(each, pki.now)


# Joinings that cross


class Interrupted(Controller):
    """Something happens when a worker asks for the time: after it was seen who calls, before anything is issued."""

    meanwhile: Callable[[], Coroutine[Any, Any, Any]] | None = None
    loop: asyncio.AbstractEventLoop

    def now(self) -> Any:
        if self.meanwhile is not None and threading.current_thread().name.startswith("asyncio_"):
            happens, self.meanwhile = self.meanwhile, None
            asyncio.run_coroutine_threadsafe(happens(), self.loop).result(TIMEOUT_S)
        return super().now()


@pytest.fixture
async def interrupted(tmp_path: Path) -> AsyncIterator[Interrupted]:
    made = Interrupted(tmp_path / "controller")
    made.loop = asyncio.get_running_loop()
    async with made.serving():
        yield made


async def test_who_was_the_host_a_moment_ago_gets_nothing_under_the_joining_of_the_next(
    interrupted: Interrupted, state: State
) -> None:
    await join(interrupted.join_string(), state)
    interrupted.meanwhile = lambda: interrupted.enrolments.begin(WEB)
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*it has joined anew"):
        await enrol.renew_host(state, pki.now)
    assert len(interrupted.store.certificates(WEB)) == 1


async def test_who_comes_back_while_the_host_joins_anew_gets_nothing(interrupted: Interrupted, state: State) -> None:
    away = await been_away(interrupted, state)
    interrupted.meanwhile = lambda: interrupted.enrolments.begin(WEB)
    with pytest.raises(EnrolError, match="it has joined anew"):
        await enrol.reattest(away, pki.now)
    assert len(interrupted.store.certificates(WEB)) == 1


async def test_a_host_that_is_expelled_while_it_joins_has_not_joined(controller: Controller) -> None:
    denied, begun = await asyncio.gather(
        controller.deny(WEB, Denial.EXPELLED, "stolen", actor="test"),
        controller.enrolments.begin(WEB),
        return_exceptions=True,
    )
    assert isinstance(begun, DeniedError)
    assert not isinstance(denied, BaseException)
    assert controller.enrolments.standing(WEB).denial is Denial.EXPELLED


async def test_what_is_issued_too_late_to_a_host_that_is_removed_is_worth_nothing_once_it_is_registered_again(
    controller: Controller, state: State
) -> None:
    await join(controller.join_string(), state)
    (record,) = controller.store.certificates(WEB)
    controller.store.forget_host(WEB)
    await controller.enrolments.end(WEB)
    controller.store.add_certificate(record)
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*of an earlier joining"):
        await enrol.renew_host(state, pki.now)


async def test_a_fleet_behind_one_address_joins_at_once_though_few_may_call_at_the_same_time(tmp_path: Path) -> None:
    controller = Controller(tmp_path / "controller")
    controller.limits = Limits(calls_per_host=4)
    names = [f"web-{number}" for number in range(40)]
    controller.registry |= {name: {} for name in names}
    async with controller.serving():
        await asyncio.gather(*(join(controller.join_string(name), State(tmp_path / name)) for name in names))
    assert all(State(tmp_path / name).joined for name in names)


def test_a_former_holder_does_not_use_up_what_the_host_may_ask_now(tmp_path: Path) -> None:
    authority = pki.new_authority(tmp_path)

    def caller(enrolment: str) -> str:
        pem = pki.leaf(pki.svid(authority, pki.HOST, enrolment=enrolment).chain_pem).public_bytes(Encoding.PEM)
        return caller_of(cast("Context", SimpleNamespace(auth_context=lambda: {"x509_pem_cert": [pem]})))

    assert caller("a" * 32) == caller("a" * 32) != caller("b" * 32)


# Forged certificates


def forged(directory: Path, chain_pem: bytes) -> tuple[bytes, bytes]:
    """Return key and chain of a copy of a real one for another key, as whoever has the key of an issuer makes it."""
    real, issuer, *rest = x509.load_pem_x509_certificates(chain_pem)
    signing = load_pem_private_key((directory / "ca" / "intermediate.pem").read_bytes(), None)
    key = new_key()
    builder = x509.CertificateBuilder(
        issuer.subject, real.subject, key.public_key(), real.serial_number, real.not_valid_before_utc,
        real.not_valid_after_utc,
    )  # fmt: skip
    for each in real.extensions:
        builder = builder.add_extension(each.value, each.critical)
    made = builder.sign(signing, hashes.SHA256())  # type: ignore[arg-type]  # an EC key
    return key_pem(key), b"".join(each.public_bytes(Encoding.PEM) for each in (made, issuer, *rest))


async def test_a_certificate_with_the_serial_of_a_hosts_own_and_another_key_is_refused(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    await join(controller.join_string(), state)
    files = state.files()
    key, chain = forged(tmp_path / "controller", files.chain_pem)
    state.save_renewed(HostFiles(key, chain, files.bundle_pem))
    with pytest.raises(EnrolError, match=r"PERMISSION_DENIED.*not, or no longer, known"):
        await enrol.renew_host(state, pki.now)
    state.save_renewed(files)
    await enrol.renew_host(state, pki.now)
