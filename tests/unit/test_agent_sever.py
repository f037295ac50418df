"""When connections with expelled hosts are closed, and when those of a host that joined again are opened anew."""

import asyncio
from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path

import pki
from hostmesh_agent.certs import Certificates, Wanted
from hostmesh_agent.identities import AGENT, Identities
from hostmesh_agent.keys import Svid
from hostmesh_agent.sever import EAGER_SWEEPS, Address, SeverError, Severing
from hostmesh_agent.state import HostFiles, State
from hostmesh_api.identity import parse_identity

WAIT_S = 10


class Kernel:
    """Closes what it is told to, and remembers it."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem
        self.asked: list[frozenset[Address]] = []
        self.swept = asyncio.Event()

    def close(self, peers: Collection[Address], uid: int) -> int:
        assert uid == 900
        self.asked.append(frozenset(peers))
        self.swept.set()
        if self.problem:
            raise SeverError(self.problem)
        return 1


async def test_connections_are_closed_again_and_again_and_of_those_hosts_alone() -> None:
    kernel = Kernel()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        severing = Severing(900, kernel.close, eager_s=0.01, pulse_s=0.02)
        running = group.create_task(severing.run())
        severing.take(["10.0.0.1", "not an address", "fd00::1"])
        while len(kernel.asked) < EAGER_SWEEPS + 2:
            kernel.swept.clear()
            await kernel.swept.wait()
        assert set(kernel.asked) == {frozenset({ip_address("10.0.0.1"), ip_address("fd00::1")})}
        severing.take([])
        running.cancel()


async def test_a_kernel_that_cannot_is_told_of_until_it_is_no_longer_needed() -> None:
    kernel = Kernel("the kernel does not")
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        severing = Severing(900, kernel.close, eager_s=0.01, pulse_s=0.02)
        running = group.create_task(severing.run())
        assert severing.problem == ""
        severing.take(["10.0.0.1"])
        while not severing.problem:
            kernel.swept.clear()
            await kernel.swept.wait()
            await asyncio.to_thread(bool)
        assert severing.problem == "the kernel does not"
        severing.take([])
        assert severing.problem == ""
        running.cancel()


class Host:
    """A host that joined under one enrolment, and then under another."""

    def __init__(self, directory: Path) -> None:
        (directory / "envoy").mkdir(parents=True)
        self.authority = pki.new_authority(directory / "authority")
        self.state: State = pki.joined(directory / "state", self.authority)
        self.enrolment = ""
        self.opened_anew = 0
        certificates = Certificates(self.state, directory / "envoy", (0, 0), self.issue, pki.now)
        self.identities = Identities(self.state, certificates, pki.now, self.nothing, self.nothing, self.renew)

    def nothing(self) -> None: ...

    async def renew(self) -> None:
        self.opened_anew += 1

    async def issue(self, spiffe_id: str) -> Svid:
        return pki.svid(self.authority, parse_identity(spiffe_id), enrolment=self.enrolment)

    def join(self, enrolment: str) -> None:
        self.enrolment = enrolment
        own = pki.svid(self.authority, pki.HOST, enrolment=enrolment)
        self.state.save_renewed(HostFiles(own.key_pem, own.chain_pem, self.state.files().bundle_pem))


async def test_workloads_get_certificates_of_the_new_joining_and_connections_of_a_refused_one_are_opened_anew(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path)
    host.join("a" * 32)
    await host.identities.apply(Wanted((pki.HOST, pki.CART)))
    first = host.identities.validities()
    assert not any(each.stale for each in first.values())
    host.join("b" * 32)
    await host.identities.apply(Wanted((pki.HOST, pki.CART)))
    assert {name for name, each in host.identities.validities().items() if each.stale} == {pki.HOST.uri, pki.CART.uri}
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        running = group.create_task(host.identities.run())
        while any(each.stale for each in host.identities.validities().values()):
            await asyncio.to_thread(bool)
        assert host.identities.validities().keys() == {AGENT, pki.HOST.uri, pki.CART.uri}
        # The joining before was no denied one: what was opened under it is as good as ever.
        assert host.opened_anew == 0
        for _ in range(2):
            await host.identities.apply(Wanted((pki.HOST, pki.CART), refused=frozenset({"a" * 32})))
            assert host.opened_anew == 1
        running.cancel()
