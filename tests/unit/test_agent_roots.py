"""Roots that change on a host: what the agent renews and trusts, and Envoys with certificates of different roots."""

import asyncio
import json
import os
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pki
from hostmesh_agent.admin import Admin
from hostmesh_agent.certs import Certificates, Held, Identity, Wanted, wanted
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.identities import AGENT, Identities
from hostmesh_agent.keys import standing
from hostmesh_agent.report import trust_state
from hostmesh_agent.rotation import Renew, Renewal, Rotation, Taint, Validity, Wait, due_at, next_action
from hostmesh_agent.svid import Svid
from hostmesh_api.identity import parse_identity
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_controller.authority import Authority
from unit import test_agent_certs as real
from unit.test_agent_certs import Host

START = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = timedelta(hours=72)
WITHIN = timedelta(seconds=30)
SERIAL = st.integers(min_value=1, max_value=2**128 - 1).map(lambda number: f"{number:032x}")


def validity(serial: str = "8" + "0" * 31, root: str = "old") -> Validity:
    return Validity(serial, START, START + LIFE, root)


# When: pure


@given(SERIAL)
def test_a_certificate_of_a_tainted_root_is_renewed_within_the_time_and_no_other_is(serial: str) -> None:
    now = START + timedelta(hours=1)
    taints = {"old": Taint(now, WITHIN)}
    assert next_action({"a": validity(serial)}, {}, now + WITHIN, taints) == Renew("a")
    action = next_action({"a": validity(serial, "new")}, {}, now + WITHIN, taints)
    assert isinstance(action, Wait)


def test_the_renewals_of_many_hosts_are_spread_over_the_time() -> None:
    now = START + timedelta(hours=1)
    waits = []
    for number in range(1, 100):
        serial = f"{number * 0x28F5C28:032x}"
        action = next_action({"a": validity(serial)}, {}, now, {"old": Taint(now, WITHIN)})
        assert isinstance(action, Wait)
        waits.append(action.until - now)
    assert max(waits) > WITHIN * 0.9
    assert min(waits) < WITHIN * 0.1


def test_a_taint_makes_nothing_later() -> None:
    late = validity()
    now = due_at(late)
    assert next_action({"a": late}, {}, now, {"old": Taint(now, timedelta(hours=1))}) == Renew("a")


async def test_the_loop_renews_at_once_and_does_not_spin_while_the_old_root_signs() -> None:
    clock = [START + timedelta(hours=1)]
    tried = asyncio.Queue[str]()
    signing = ["old"]

    async def renew() -> Validity:
        tried.put_nowait(signing[0])
        return validity(f"{len(signing):032x}", signing[0])

    rotation = Rotation(lambda: clock[0])
    renewal = Renewal(validity(), renew)
    task = asyncio.ensure_future(rotation.run())
    rotation.keep({"a": renewal}, ["old"])
    async with asyncio.timeout(5):
        assert await tried.get() == "old"
        # Others have their turn, and it does not try again by itself.
        for _ in range(20):
            await asyncio.sleep(0)
        assert tried.empty()
        clock[0] += timedelta(seconds=5)
        signing[0] = "new"
        rotation.keep({"a": renewal}, ["old"])
        assert await tried.get() == "new"
    for _ in range(5):
        await asyncio.sleep(0)
    assert rotation.validities() == {"a": validity(f"{1:032x}", "new")}
    task.cancel()


def test_a_host_configuration_says_what_is_tainted() -> None:
    config = HostConfig(tainted_roots=["ab"], renew_within_ms=1500)
    assert wanted(config, pki.HOST) == Wanted((pki.HOST,), b"", ("ab",), timedelta(seconds=1.5))


# What is on disk


@pytest.fixture
def host() -> Iterator[Host]:
    directory = Path(tempfile.mkdtemp(prefix="hostmesh-roots-"))
    directory.chmod(0o711)  # pytest's own directories are closed to Envoy's user
    yield Host(directory, (real.NOBODY, real.NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid()))
    shutil.rmtree(directory)


def changed(authority: Authority, steps: int) -> None:
    """Take the first steps of a change of roots."""
    everything: list[Callable[[], object]] = [
        lambda: authority.prepare(pki.now()),
        lambda: authority.activate(pki.now()),
        lambda: authority.taint(None, pki.now(), timedelta()),
        lambda: authority.revoke(None, pki.now(), compromised=False),
    ]
    for step in everything[:steps]:
        step()


async def renew_own(host: Host) -> None:
    """Do what `enrol.renew_host` does, with an authority in the controller's place."""
    own = pki.svid(host.authority, pki.HOST)
    files = host.state.files()
    host.state.save_renewed(type(files)(own.key_pem, own.chain_pem, host.authority.bundle_pem))


def certificates(host: Host, *, renews: bool = True) -> Certificates:
    async def renew() -> None:
        if not renews:
            raise EnrolError("no controller answered")
        await renew_own(host)

    return Certificates(host.state, host.envoy, host.owner, host.issue, pki.now, renew)


def wants(host: Host) -> Wanted:
    return Wanted((pki.HOST, pki.CART), host.authority.bundle_pem)


def roots_of(held: Held) -> set[str]:
    return {each.root for each in held.svids.values()}


async def test_a_host_that_slept_takes_a_bundle_without_its_root_with_new_certificates(host: Host) -> None:
    await certificates(host).apply(wants(host))
    changed(host.authority, 4)
    held = await certificates(host).apply(wants(host))
    new = host.authority.roots.active.fingerprint
    assert held.roots == (new,)
    assert roots_of(held) == {new}
    files = host.state.files()
    assert files.bundle_pem == host.authority.bundle_pem == (host.envoy / "certs/roots/bundle.pem").read_bytes()
    assert standing(files.chain_pem, files.bundle_pem).root == new
    assert {each.stat().st_mode & 0o777 for each in (host.state.directory / "identity").iterdir()} == {0o600}


async def test_while_no_new_certificate_is_to_be_had_the_old_roots_stay(host: Host) -> None:
    before = await certificates(host).apply(wants(host))
    old = host.authority.bundle_pem
    changed(host.authority, 4)
    held = await certificates(host, renews=False).apply(wants(host))
    assert held == before
    assert host.state.files().bundle_pem == old == (host.envoy / "certs/roots/bundle.pem").read_bytes()


async def test_certificates_of_both_roots_are_good_while_both_are_trusted(host: Host) -> None:
    await certificates(host).apply(wants(host))
    changed(host.authority, 2)
    host.issued.clear()
    held = await certificates(host).apply(wants(host))
    assert len(held.roots) == 2
    assert not host.issued
    await certificates(host).renew(pki.CART)
    assert len(roots_of(await certificates(host).apply(wants(host)))) == 2


async def test_a_certificate_that_was_replaced_is_told_until_envoy_shows_it_no_more(host: Host) -> None:
    async def nothing() -> None: ...

    identities = Identities(host.state, certificates(host), pki.now, lambda: None, lambda: None, nothing)
    await identities.apply(wants(host))
    old = identities.validities()[pki.CART.uri]
    changed(host.authority, 3)
    await identities._renew(pki.CART)
    assert [each.validity for each in identities.replaced()] == [old]
    told = trust_state(pki.HOST.uri, identities.roots(), identities.validities(), identities.replaced())
    assert {each.root for each in told.certificates if each.serial == old.serial} == {old.root}
    assert len([each for each in told.certificates if each.spiffe_id == pki.HOST.uri]) == 2
    assert AGENT not in {each.spiffe_id for each in told.certificates}
    assert identities.replaced(lambda serial: serial == old.serial)
    assert not identities.replaced(lambda _: False)


# Real Envoys: one serves as cart, the other calls as the host, over mutual TLS on a Unix socket.


@pytest.fixture
def pair(host: Host) -> Iterator[Path]:
    asyncio.run(certificates(host).apply(wants(host)))
    caller = real.cluster("right", pki.CART)
    tls = real.typed(
        "transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=real.common_tls("certs/host", pki.CART)
    )
    caller["transport_socket"]["typed_config"] = tls
    bootstrap: dict[str, Any] = {
        "node": {"id": "web-1", "cluster": "hostmesh"},
        "admin": {"address": {"pipe": {"path": "admin.sock", "mode": 0o600}}},
        "static_resources": {
            "listeners": [real.inbound(pki.HOST), real.outbound("right")],
            "clusters": [caller],
        },
    }
    (host.envoy / "bootstrap.json").write_text(json.dumps(bootstrap))
    with ExitStack() as stack:
        log = stack.enter_context((host.envoy / "log").open("wb"))
        command = [str(real.envoy_binary()), "-c", "bootstrap.json", "--disable-hot-restart", "--concurrency", "1"]
        user = real.NOBODY if os.geteuid() == 0 else None
        process = subprocess.Popen(command, cwd=host.envoy, stdout=log, stderr=log, user=user, group=user)
        stack.callback(process.wait, real.BOUND_S)
        stack.callback(process.kill)
        yield host.envoy


def answers(envoy: Path) -> bool:
    try:
        return real.through(envoy, "right") == b"hello"
    except (OSError, ssl.SSLError):
        return False


async def loaded(envoy: Path, svid: Svid) -> None:
    """Wait until Envoy shows the certificate."""
    async with asyncio.timeout(real.BOUND_S):
        while True:
            if int(svid.serial, 16) in await Admin(envoy / "admin.sock").serials():
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("first", ["server", "client"])
async def test_envoys_with_certificates_of_different_roots_talk_while_both_are_trusted(
    host: Host, pair: Path, first: str
) -> None:
    await real.until(lambda: answers(pair))
    changed(host.authority, 2)
    made = certificates(host)
    await made.apply(wants(host))
    order: list[Identity] = [pki.CART, pki.HOST] if first == "server" else [pki.HOST, pki.CART]
    for identity in order:
        await loaded(pair, await made.renew(identity))
        assert await asyncio.to_thread(answers, pair)
    host.authority.taint(None, pki.now(), timedelta())
    host.authority.revoke(None, pki.now(), compromised=False)
    await renew_own(host)
    await made.apply(wants(host))
    assert await real.until(lambda: answers(pair))


async def test_an_envoy_whose_agent_sleeps_takes_a_peer_of_the_new_root_by_what_the_old_one_says_of_it(
    host: Host, pair: Path
) -> None:
    await real.until(lambda: answers(pair))
    old = host.authority.bundle_pem
    changed(host.authority, 2)
    renewed = await certificates(host).renew(pki.CART)
    await loaded(pair, renewed)
    assert (pair / "certs/roots/bundle.pem").read_bytes() == old
    assert await asyncio.to_thread(answers, pair)


async def test_an_envoy_that_trusts_the_new_root_alone_refuses_the_old_one(host: Host, pair: Path) -> None:
    await real.until(lambda: answers(pair))
    old = pki.svid(host.authority, parse_identity(pki.HOST.uri))
    changed(host.authority, 4)
    await certificates(host).apply(wants(host))

    def taken(svid: Svid) -> bool:
        try:
            return real.handshake(pair, host.authority, svid)[1] == b"hello"
        except (ssl.SSLError, ConnectionError):
            return False

    # First that it shows its new certificate: before that, it is the client that refuses.
    new = pki.svid(host.authority, parse_identity(pki.HOST.uri))
    assert await real.until(lambda: taken(new))
    assert await real.until(lambda: not taken(old))
    assert taken(new)
