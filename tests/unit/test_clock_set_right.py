"""A host that booted with a wrong clock, while the controller is away, and whose clock is then set right."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import pki
from hostmesh_agent.certs import Certificates, Wanted
from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.identities import Identities
from hostmesh_agent.svid import Svid
from hostmesh_agent.workload_api.svids import WorkloadSvids
from hostmesh_api.identity import parse_identity
from unit.test_agent_certs import NOBODY, Host
from waiting import until

WANTED = Wanted((pki.HOST, pki.CART))
WRONG = pytest.mark.parametrize("wrong_by", [timedelta(days=-400), timedelta(days=400)], ids=["behind", "ahead"])


class Clock:
    """This machine's, set to be wrong by `wrong_by`."""

    def __init__(self, wrong_by: timedelta) -> None:
        self.wrong_by = wrong_by

    def __call__(self) -> datetime:
        return pki.now() + self.wrong_by


class Away:
    """A controller that does not answer; `asked` is what for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, spiffe_id: str) -> Svid:
        self.asked.append(spiffe_id)
        raise EnrolError("no controller answered")


@pytest.fixture
def host() -> Iterator[Host]:
    directory = Path(tempfile.mkdtemp(prefix="hostmesh-clock-"))
    directory.chmod(0o711)  # pytest's own directories are closed to Envoy's user
    yield Host(directory, (NOBODY, NOBODY) if os.geteuid() == 0 else (os.geteuid(), os.getegid()))
    shutil.rmtree(directory)


@asynccontextmanager
async def booted(host: Host, clock: Clock, away: Away, want: Wanted) -> AsyncIterator[Identities]:
    """Start the agent's certificates anew, and wait until it has asked for what it misses."""

    async def nothing() -> None: ...

    certificates = Certificates(host.state, host.envoy, host.owner, away, clock)
    identities = Identities(host.state, certificates, clock, lambda: None, lambda: None, nothing)
    await identities.apply(want)
    running = asyncio.ensure_future(identities.run())
    try:
        await asyncio.wait_for(identities.tried(), 15)
        yield identities
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@WRONG
async def test_certificates_on_disk_are_in_place_once_the_clock_is_right_and_nobody_is_asked(
    host: Host, wrong_by: timedelta
) -> None:
    held = await host.certificates().apply(WANTED)
    clock, away = Clock(wrong_by), Away()
    async with booted(host, clock, away, WANTED) as identities:
        assert set(identities.missing()) == {pki.HOST.uri, pki.CART.uri}
        away.asked.clear()
        clock.wrong_by = timedelta()
        identities.look_again()
        await until(lambda: not identities.missing())
        here = identities.validities()
        assert {uri: here[uri].serial for uri in held.svids} == {uri: each.serial for uri, each in held.svids.items()}
        assert not away.asked


async def test_a_certificate_of_an_earlier_joining_that_is_found_then_is_asked_for_anew(host: Host) -> None:
    async def of_before(spiffe_id: str) -> Svid:
        return pki.svid(host.authority, parse_identity(spiffe_id), enrolment="before")

    await host.certificates(of_before).apply(WANTED)
    clock, away = Clock(timedelta(days=-400)), Away()
    async with booted(host, clock, away, WANTED) as identities:
        away.asked.clear()
        clock.wrong_by = timedelta()
        identities.look_again()
        await until(lambda: set(away.asked) == {pki.HOST.uri, pki.CART.uri})
        assert not identities.missing()


async def test_roots_that_were_refused_by_a_wrong_clock_are_taken_once_it_is_right(host: Host) -> None:
    await host.certificates().apply(WANTED)
    host.authority.prepare(pki.now())
    offered = Wanted(WANTED.identities, host.authority.bundle_pem)
    clock = Clock(timedelta(days=-400))
    async with booted(host, clock, Away(), offered) as identities:
        assert host.state.files().bundle_pem != offered.bundle_pem
        clock.wrong_by = timedelta()
        identities.look_again()
        await until(lambda: len(identities.roots()) == 2)
        assert (host.envoy / "certs/roots/bundle.pem").read_bytes() == offered.bundle_pem
        assert host.state.files().bundle_pem == offered.bundle_pem


async def test_roots_alone_that_were_refused_are_taken_too(host: Host) -> None:
    """Nothing is missing: the certificates were in place when the clock went wrong."""
    await host.certificates().apply(WANTED)
    clock = Clock(timedelta())
    certificates = Certificates(host.state, host.envoy, host.owner, host.issue, clock)

    async def nothing() -> None: ...

    identities = Identities(host.state, certificates, clock, lambda: None, lambda: None, nothing)
    host.authority.prepare(pki.now())
    clock.wrong_by = timedelta(days=-400)
    await identities.apply(Wanted((), host.authority.bundle_pem))
    assert len(identities.roots()) == 1
    running = asyncio.ensure_future(identities.run())
    try:
        clock.wrong_by = timedelta()
        identities.look_again()
        await until(lambda: len(identities.roots()) == 2)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@WRONG
async def test_the_workload_api_has_its_certificates_from_disk_once_the_clock_is_right(
    host: Host, wrong_by: timedelta
) -> None:
    clock, away = Clock(timedelta()), Away()
    owner = (os.geteuid(), os.getegid())

    async def serve(issue: Away | None) -> WorkloadSvids:
        svids = WorkloadSvids(host.state, owner, issue or host.issue, clock)
        await svids.apply([pki.CART.uri])
        return svids

    before = await serve(None)
    await before._renew(pki.CART)
    (old,) = before.held([pki.CART])
    clock.wrong_by = wrong_by
    svids = await serve(away)
    running = asyncio.ensure_future(svids.run())
    try:
        await until(lambda: bool(away.asked))
        assert not svids.held([pki.CART])
        away.asked.clear()
        clock.wrong_by = timedelta()
        svids.look_again()
        await until(lambda: svids.held([pki.CART]) == [old])
        assert not away.asked
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
