"""Joining by evidence over real gRPC: names, groups, the queue of those who wait, floods."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

import pki
from enrolling import TIMEOUT_S, status_of
from hostmesh_agent import enrol, keys
from hostmesh_agent.enrol import EnrolError, PendingError
from hostmesh_agent.evidence import Evidence, KeyAlone, MachineCertificate, SshHostKey
from hostmesh_agent.state import State
from hostmesh_api.joinstring import JoinString
from hostmesh_api.proof import csr_digest
from hostmesh_api.v1.hostmesh_pb2 import ChallengeRequest, HostFacts, JoinRequest, JoinResponse
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentStub
from hostmesh_controller.admission import KeyAloneAttestor
from hostmesh_controller.attest import pending
from hostmesh_controller.attest.evidence import Attested, EvidenceError
from hostmesh_controller.attest.policy import allows, name_of
from hostmesh_controller.attest.ssh import SshAttestor
from hostmesh_controller.attest.x509pop import X509Attestor
from hostmesh_controller.config_attest import Policy, Trust
from hostmesh_controller.limits import Limits
from hostmesh_controller.store import PendingRecord
from hostmesh_controller.tokens import new_token
from identity_servers import Controller
from machines import Issued, authority, key_pem, ssh_fingerprint, ssh_key

ROOT = authority()
POLICY = Policy("{dns_label}", allow_names=("web-*", "vm-*"), manual=False)


@pytest.fixture
def company(controller: Controller) -> Controller:
    """A controller that believes a company's certificates."""
    controller.attestors["x509pop"] = X509Attestor(lambda: [ROOT.certificate])
    believe(controller)
    return controller


def believe(controller: Controller, **policy: Any) -> None:
    controller.trust["x509pop"] = Trust(replace(POLICY, **policy))


def machine(tmp_path: Path, *dns: str, by: Issued = ROOT) -> MachineCertificate:
    leaf = by.issue("machine", dns)
    (tmp_path / "chain.pem").write_bytes(leaf.pem)
    (tmp_path / "key.pem").write_bytes(key_pem(leaf.key))
    return MachineCertificate(tmp_path / "chain.pem", tmp_path / "key.pem")


async def come(controller: Controller, state: State, evidence: Evidence, **more: Any) -> str:
    where = JoinString((f"127.0.0.1:{controller.join_port}",), controller.authority.root_der, "")
    facts = HostFacts(hostname=more.pop("hostname", "whoever"))
    record = await enrol.join(where, state, facts, pki.now, evidence=evidence, pause_s=0.01, **more)
    return record.host


async def why_not(controller: Controller, state: State, evidence: Evidence, **more: Any) -> str:
    """Return why a host is refused, as the log has it; the host is not told."""
    with capture_logs() as logs, pytest.raises(EnrolError) as raised:
        await come(controller, state, evidence, **more)
    assert not state.joined
    reason = next(str(each["reason"]) for each in logs if each["event"] == "join_refused")
    assert "PERMISSION_DENIED" in str(raised.value)
    assert reason not in str(raised.value)
    return reason


async def test_a_machine_joins_by_its_certificate_as_the_host_that_its_name_makes(
    company: Controller, state: State, tmp_path: Path
) -> None:
    assert await come(company, state, machine(tmp_path, "web-1.example.org")) == "web-1"
    assert pki.uris(pki.leaf(state.files().chain_pem)) == [pki.HOST.uri]
    await enrol.renew_host(state, pki.now)
    (event,) = [each for each in company.store.audit() if each.action == "host.attest"]
    assert (event.actor, event.key.name) == ("attest:x509pop", "web-1")


async def test_names_that_are_not_allowed_or_not_registered_are_refused(
    company: Controller, state: State, tmp_path: Path
) -> None:
    assert "no name that allow_names allows: 'db-1'" in await why_not(company, state, machine(tmp_path, "db-1.x.org"))
    with pytest.raises(EnrolError, match="host 'web-9' is not registered"):
        await come(company, state, machine(tmp_path, "web-9.example.org"))
    both = machine(tmp_path, "web-1.example.org", "web-2.example.org")
    assert "several names are possible: web-1, web-2" in await why_not(company, state, both)
    # A name that is asked for decides among those that are vouched for, and brings no other.
    assert await come(company, state, both, name="web-2") == "web-2"
    again = State(tmp_path / "again")
    assert "several names" in await why_not(company, again, both, name="web-3")
    assert await come(company, again, machine(tmp_path, "web-1.x.org"), name="web-2") == "web-1"


async def test_a_foreign_certificate_and_an_attestor_that_is_not_configured_are_refused(
    company: Controller, state: State, tmp_path: Path
) -> None:
    foreign = machine(tmp_path, "web-1.example.org", by=authority())
    assert "not trusted" in await why_not(company, state, foreign)
    assert "[attest.key_alone] is not in controller.toml" in await why_not(company, state, KeyAlone())
    believe(company, allow_addresses=("10.0.0.0/8",))
    own = machine(tmp_path, "web-1.example.org")
    assert await why_not(company, state, own) == "allow_addresses does not allow 127.0.0.1"


async def test_an_attested_host_becomes_a_member_of_the_group_at_the_address_it_calls_from(
    company: Controller, state: State, tmp_path: Path
) -> None:
    believe(company, group="shop/pool")
    assert await come(company, state, machine(tmp_path, "vm-1.example.org")) == "vm-1"
    assert company.members["vm-1"].address == "127.0.0.1"
    other = State(tmp_path / "other")
    with pytest.raises(EnrolError, match=r"may not be at 10\.0\.0\.9"):
        await come(company, other, machine(tmp_path, "vm-2.example.org"), address="10.0.0.9")
    believe(company, group="shop/pool", allow_addresses=("10.0.0.0/8", "127.0.0.0/8"))
    assert await come(company, other, machine(tmp_path, "vm-2.example.org"), address="10.0.0.9") == "vm-2"
    assert company.members["vm-2"].address == "10.0.0.9"
    with pytest.raises(EnrolError, match=r"may not be at 11\.0\.0\.9"):
        await come(company, State(tmp_path / "third"), machine(tmp_path, "vm-3.x"), address="11.0.0.9")
    with pytest.raises(EnrolError, match="'web-1' is registered"):
        await come(company, State(tmp_path / "fourth"), machine(tmp_path, "web-1.x"))


async def test_a_host_joins_by_the_ssh_key_that_is_registered_for_it(
    controller: Controller, state: State, tmp_path: Path
) -> None:
    key, other = ssh_key(tmp_path / "key"), ssh_key(tmp_path / "other")
    pins = {"web-1": [ssh_fingerprint(key)]}
    controller.attestors["ssh"] = SshAttestor(tuple, lambda host: pins.get(host, ()))
    assert "not registered for host 'web-2'" in await why_not(controller, state, SshHostKey(key), hostname="web-2")
    assert "not registered for host 'web-1'" in await why_not(controller, state, SshHostKey(other), hostname="web-1")
    assert await come(controller, state, SshHostKey(key), hostname="WEB-1") == "web-1"


# Nonces of joining


@asynccontextmanager
async def stub_of(controller: Controller) -> AsyncIterator[Any]:
    credentials = grpc.ssl_channel_credentials(controller.authority.bundle_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{controller.join_port}", credentials) as channel:
        yield EnrolmentStub(channel)


async def asked(stub: Any, evidence: Evidence, key: bytes | None = None, hostname: str = "x") -> JoinRequest:
    csr = keys.request_for(key or keys.request()[0])
    nonce = (await stub.Challenge(ChallengeRequest(csr_sha256=csr_digest(csr)), timeout=TIMEOUT_S)).nonce
    request = JoinRequest(csr_der=csr, nonce=nonce, facts=HostFacts(hostname=hostname))
    request.MergeFrom(evidence.make(nonce, csr))
    return request


async def test_evidence_is_good_once_and_for_its_own_request(company: Controller, tmp_path: Path) -> None:
    evidence = machine(tmp_path, "web-1.example.org")
    async with stub_of(company) as stub:
        request = await asked(stub, evidence)
        stolen = JoinRequest()
        stolen.CopyFrom(request)
        stolen.csr_der = keys.request()[1]
        for wrong in (stolen, replace_nonce(request, b""), replace_nonce(request, b"x" * 56)):
            code, message = await status_of(stub.Join(wrong, timeout=TIMEOUT_S))
            assert (code, message[:9]) == (grpc.StatusCode.PERMISSION_DENIED, "the nonce")
        assert (await stub.Join(request, timeout=TIMEOUT_S)).host == "web-1"
        code, message = await status_of(stub.Join(request, timeout=TIMEOUT_S))
        assert (code, message[:9]) == (grpc.StatusCode.PERMISSION_DENIED, "the nonce")


def replace_nonce(request: JoinRequest, nonce: bytes) -> JoinRequest:
    changed = JoinRequest()
    changed.CopyFrom(request)
    changed.nonce = nonce
    return changed


async def test_of_64_joins_with_one_nonce_exactly_one_wins(company: Controller, tmp_path: Path) -> None:
    async with stub_of(company) as stub:
        request = await asked(stub, machine(tmp_path, "web-1.example.org"))
        calls = [stub.Join(request, timeout=TIMEOUT_S) for _ in range(64)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert len([each for each in outcomes if isinstance(each, JoinResponse)]) == 1
    assert len(company.store.certificates("web-1")) == 1


# Waiting for an operator


async def test_a_host_waits_until_an_operator_approves_the_key_that_it_shows(
    company: Controller, state: State, tmp_path: Path
) -> None:
    believe(company, manual=True)
    evidence, told = machine(tmp_path, "web-1.example.org"), asyncio.Queue[str]()
    waiting = asyncio.create_task(come(company, state, evidence, waiting=told.put_nowait))
    said = await asyncio.wait_for(told.get(), TIMEOUT_S)
    (entry,) = company.store.pending()
    assert (entry.host, entry.attestor, entry.address) == ("web-1", "x509pop", "127.0.0.1")
    assert "certificate CN=machine" in entry.summary
    assert f"hostmesh host approve {entry.id}" in said
    kept = state.waiting_key()
    assert kept is not None
    assert keys.fingerprint(kept) in said
    # Somebody else with the same right to the name, and another key, gains nothing by the approval.
    with pytest.raises(PendingError):
        await come(company, State(tmp_path / "rival"), evidence)
    assert company.store.decide_pending(entry.id, "approved", "ann", company.now())
    assert await asyncio.wait_for(waiting, TIMEOUT_S) == "web-1"
    assert state.waiting_key() is None
    with pytest.raises(PendingError):
        await come(company, State(tmp_path / "rival"), evidence)
    assert [each.action for each in company.store.audit() if each.action.startswith("host.")] == [
        "host.attest",
        "host.approve",
        "host.pending",
        "host.pending",
    ]


async def test_a_host_that_does_not_wait_may_ask_again_later_with_the_same_key(
    company: Controller, state: State, tmp_path: Path
) -> None:
    believe(company, manual=True)
    evidence = machine(tmp_path, "web-1.example.org")
    for _ in range(3):
        with pytest.raises(PendingError, match=r"key SHA256:\S+ waits for an operator: hostmesh host approve"):
            await come(company, state, evidence)
    (entry,) = company.store.pending()
    company.store.decide_pending(entry.id, "approved", "ann", company.now())
    assert await come(company, state, evidence) == "web-1"


async def test_a_host_that_is_denied_stays_out(company: Controller, state: State, tmp_path: Path) -> None:
    believe(company, manual=True)
    evidence = machine(tmp_path, "web-1.example.org")
    with pytest.raises(PendingError):
        await come(company, state, evidence)
    (entry,) = company.store.pending()
    assert company.store.decide_pending(entry.id, "denied", "ann", company.now())
    assert company.store.decide_pending(entry.id, "approved", "bob", company.now()) is None
    with pytest.raises(EnrolError, match="the operator has denied"):
        await come(company, state, evidence)


async def test_an_approval_ends_and_so_does_waiting(company: Controller, state: State, tmp_path: Path) -> None:
    believe(company, manual=True)
    evidence = machine(tmp_path, "web-1.example.org")
    with pytest.raises(PendingError):
        await come(company, state, evidence)
    (entry,) = company.store.pending()
    long_ago = company.now() - pending.APPROVED_LIFE - timedelta(seconds=1)
    company.store.decide_pending(entry.id, "approved", "ann", long_ago)
    with pytest.raises(PendingError):
        await come(company, state, evidence)
    (again,) = company.store.pending()
    assert again.id != entry.id
    assert again.decision == ""


async def test_an_unknown_host_waits_with_nothing_but_its_key(controller: Controller, state: State) -> None:
    controller.attestors["key_alone"] = KeyAloneAttestor()
    controller.trust["key_alone"] = Trust(Policy("{name}"))
    with pytest.raises(PendingError):
        await come(controller, state, KeyAlone(), hostname="web-1")
    assert "no name that allow_names" in await why_not(controller, state, KeyAlone(), hostname="../web-1\n")


# Floods


def entry(number: int, address: str = "", attestor: str = "key_alone") -> PendingRecord:
    now = pki.now()
    digest = f"{number:064x}"
    return PendingRecord(
        f"id-{number}", f"h-{number}", attestor, digest, address or f"10.0.{number // 8}.1", "", now, now
    )


def fill(entries: list[PendingRecord], more: Iterable[PendingRecord]) -> str:
    """Let hosts come until one is turned away; return what it is told."""
    for wanted in more:
        try:
            pending.require_place(entries, wanted, pki.now())
        except pending.FullError as error:
            return str(error)
        entries.append(wanted)
    return ""


def test_strangers_fill_half_of_the_queue_and_push_nobody_out() -> None:
    now, entries = pki.now(), list[PendingRecord]()
    assert "too many unknown hosts" in fill(entries, map(entry, range(1000)))
    assert len(entries) == pending.MAX_ENTRIES // 2
    pending.require_place(entries, entry(1, "10.9.9.9", "x509pop"), now)
    assert "too many hosts wait" in fill(entries, (entry(each, attestor="x509pop") for each in range(1000, 2000)))
    assert len(entries) == pending.MAX_ENTRIES
    later = now + pending.LIFE + timedelta(seconds=1)
    pending.require_place(entries, replace(entry(1), seen_at=later), later)


@pytest.mark.parametrize("address", ["10.0.0.1", "2001:db8::{}"])
def test_one_address_has_few_places(address: str) -> None:
    entries = list[PendingRecord]()
    assert "of this address" in fill(entries, (entry(each, address.format(f"{each:x}")) for each in range(100)))
    assert len(entries) == pending.MAX_OF_ADDRESS


async def test_a_flood_of_hosts_that_want_to_wait_is_turned_away_and_disturbs_no_token(
    controller: Controller,
) -> None:
    controller.attestors["key_alone"] = KeyAloneAttestor()
    controller.trust["key_alone"] = Trust(Policy("{name}"))
    async with stub_of(controller) as stub:

        async def flood(number: int) -> None:
            await stub.Join(await asked(stub, KeyAlone(), hostname=f"h-{number}"), timeout=TIMEOUT_S)

        outcomes = await asyncio.gather(*map(flood, range(40)), return_exceptions=True)
        assert len([each for each in outcomes if each is None]) == pending.MAX_OF_ADDRESS
        refusals = {each.code() for each in outcomes if isinstance(each, grpc.aio.AioRpcError)}
        assert refusals == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        token = controller.join_string().token
        request = JoinRequest(token=token, csr_der=keys.request()[1])
        assert (await stub.Join(request, timeout=TIMEOUT_S)).host == "web-1"
    assert len(controller.store.pending()) == pending.MAX_OF_ADDRESS


async def test_a_caller_that_joins_again_and_again_is_told_to_wait(controller: Controller) -> None:
    async with stub_of(controller) as stub:
        request = JoinRequest(token="A" * 43, csr_der=keys.request()[1])
        calls = [stub.Join(request, timeout=TIMEOUT_S * 3) for _ in range(Limits().joins_per_minute + 50)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    codes = {each.code() for each in outcomes if isinstance(each, grpc.aio.AioRpcError)}
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED}


# Names and addresses


def test_patterns_fit_within_one_label() -> None:
    assert allows(("web-*.example.org",), "web-1.example.org")
    assert not allows(("web-*.example.org",), "web-1.evil.example.org")
    assert not allows(("web-*.example.org",), "web-1xexample.org")
    assert not allows((), "web-1")


@pytest.mark.parametrize("name", ["../etc", "*.example.org", "a b", "-x", "x" * 300, "web_1"])
def test_a_name_that_no_host_may_have_is_refused_whatever_is_allowed(name: str) -> None:

    attested = Attested("x509pop", [{"dns": name}], "")
    with pytest.raises(EvidenceError):
        name_of(attested, Policy("{dns}", allow_names=("*", "*.*.*", name)), "")


async def test_a_token_of_a_host_with_blocks_works_from_there_alone_and_is_not_used_up_elsewhere(
    controller: Controller,
) -> None:
    for blocks, reached in ((["10.0.0.0/8", "fd00::/8"], False), (["127.0.0.0/8"], True)):
        token, record = new_token("web-1", controller.now(), allowed=blocks)
        controller.store.add_token(record)
        request = JoinRequest(token=token, csr_der=keys.request()[1])
        async with stub_of(controller) as stub:
            if reached:
                assert (await stub.Join(request, timeout=TIMEOUT_S)).host == "web-1"
            else:
                code, message = await status_of(stub.Join(request, timeout=TIMEOUT_S))
                assert code is grpc.StatusCode.PERMISSION_DENIED
                assert "10.0.0.0" not in message
        (kept,) = [each for each in controller.store.tokens() if each.id == record.id]
        assert kept.joins == int(reached)
    with pytest.raises(ValueError, match="host bits"):
        new_token("web-1", controller.now(), allowed=["10.0.0.1/8"])
