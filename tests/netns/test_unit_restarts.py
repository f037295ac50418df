"""A unit that restarts: from when its connections are what the rules say of it, by the agent's own part for capture."""

import asyncio
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

import pki
from hostmesh_agent.capture import HostFloor, Owner
from hostmesh_agent.capturing import Capturing
from hostmesh_agent.dns import has_mesh
from hostmesh_agent.entitlements import WorkloadAccess
from hostmesh_agent.identities import AGENT
from hostmesh_agent.recognition import Recognition
from hostmesh_api.callers import caller_addresses
from hostmesh_api.v1.hostmesh_pb2 import Capture, CaptureDirection, CaptureRule, HostConfig
from netns.capturing_host import ENVOY_UID, CapturingHost, capturing_host, until
from netns.conftest import PEER
from netns.groups import slice_of_the_test
from netns.space import Servers, Space

FLOOR: Final = HostFloor(envoy_uid=ENVOY_UID, ssh_servers=frozenset({22}))
RESTARTS: Final = 12
PAY: Final = f"spiffe://{pki.TRUST_DOMAIN}/ns/shop/sa/pay"
# It is started already, and calls the moment its cgroup is there: no program that systemd starts is as fast.
_CALL: Final = """
import os, socket, sys, time
for line in sys.stdin:
    directory, own, address, port, last = line.split()
    begun = time.monotonic()
    os.mkdir(directory)
    with open(directory + "/cgroup.procs", "w") as group:
        group.write("0")
    wrong = 0
    while time.monotonic() - begun < 10:
        with socket.create_connection((address, int(port)), 5) as client:
            asked = b"".join(iter(lambda: client.recv(4096), b"")).decode()
        if asked == last.replace("+", " "):
            break
        time.sleep(0.001)
        wrong += 1
    took = time.monotonic() - begun
    with open(own + "/cgroup.procs", "w") as group:
        group.write("0")
    os.rmdir(directory)
    print(wrong, took, flush=True)
"""


class Certified:
    def validities(self) -> Mapping[str, object]:
        return {AGENT: None, PAY: None}


async def active(wanted: Mapping[str, str]) -> frozenset[str]:
    return frozenset(wanted)


@pytest.fixture
def site(peer: Space, servers: Servers, tmp_path: Path) -> Iterator[CapturingHost]:
    servers.tcp("outbound", 15001, tells_where=True)
    with peer():
        servers.tcp("peer", 443)
    with capturing_host(peer, servers, tmp_path) as site:
        yield site


@pytest.fixture
def own_slice() -> Iterator[Path]:
    with slice_of_the_test() as directory:
        (directory / "runner.service").mkdir()
        yield directory


@pytest.fixture
def program(site: CapturingHost, own_slice: Path) -> Iterator["Program"]:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", _CALL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Program(process, own_slice / "runner.service")
        assert process.stdin is not None
        process.stdin.close()


class Program:
    def __init__(self, process: "subprocess.Popen[str]", own: Path) -> None:
        self._process = process
        self._own = own

    def start(self, unit: Path, until: str) -> tuple[int, float]:
        """Be in the unit, newly made, and call until the answer is `until`; return how many were not, and seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{unit} {self._own} {PEER[0]} 443 {until.replace(' ', '+')}\n")
        self._process.stdin.flush()
        wrong, took = self._process.stdout.readline().split()
        return int(wrong), float(took)


@asynccontextmanager
async def agent(site: CapturingHost, config: HostConfig, *, units: frozenset[str]) -> AsyncIterator[Capturing]:
    """The agent's own part, which takes a step at each word of the kernel's."""
    access = (WorkloadAccess("shop", "pay", units=units),) if units else ()
    owner, woken = Owner(), asyncio.Event()
    known = await asyncio.to_thread(Recognition, replace(site.config, workloads=access), switches_user=False)
    capturing = Capturing(
        site.config,
        owner,
        Certified(),  # type: ignore[arg-type]
        active,
        lambda: None,
        known,
        wake=woken.set,
    )

    async def converge() -> None:
        while True:
            await woken.wait()
            woken.clear()
            await capturing.step(config, FLOOR)

    await capturing.step(config, FLOOR)
    assert capturing.enforced.capture.state == "on", capturing.enforced
    converging = asyncio.create_task(converge())
    try:
        yield capturing
    finally:
        converging.cancel()
        await asyncio.gather(converging, return_exceptions=True)
        capturing.close()
        owner.close()


def including(unit: str) -> HostConfig:
    rules = CaptureDirection(include=[CaptureRule(units=[unit])])
    return HostConfig(
        trust_domain=pki.TRUST_DOMAIN,
        capture=Capture(outbound_prefixes=[f"{PEER[0]}/32"], outbound=rules),
        outbound_identities=[PAY],
    )


CAPTURED: Final = f"outbound {PEER[0]} 443 at 127.0.0.1"
AS_PAY: Final = f"outbound {PEER[0]} 443 at {caller_addresses(PAY)[0]}"


async def restarts(program: Program, unit: Path, until: str, what: str) -> list[tuple[int, float]]:
    gaps = [await asyncio.to_thread(program.start, unit, until) for _ in range(RESTARTS)]
    took = [round(each * 1000, 1) for _, each in gaps]
    print(f"\n{what}: {took} ms; {[each for each, _ in gaps]} calls were something else")
    return gaps


async def test_a_unit_that_is_included_is_captured_within_milliseconds_of_its_restart(
    site: CapturingHost, own_slice: Path, program: Program
) -> None:
    async with agent(site, including("shop.service"), units=frozenset()):
        gaps = await restarts(program, own_slice / "shop.service", CAPTURED, "included")
    # With a dead-man timer for each restart it would be seconds.
    assert statistics.median(each for _, each in gaps) < 1, gaps


async def test_a_unit_with_an_identity_has_it_within_milliseconds_of_its_restart(
    site: CapturingHost, own_slice: Path, program: Program
) -> None:
    config = including("shop.service")
    config.capture.outbound.CopyFrom(CaptureDirection(include=[CaptureRule(ports=[443])]))
    async with agent(site, config, units=frozenset({"pay.service"})):
        gaps = await restarts(program, own_slice / "pay.service", AS_PAY, "with an identity")
    assert statistics.median(each for _, each in gaps) < 1, gaps


@pytest.mark.parametrize("kind", ["included", "identity"])
async def test_in_a_slice_that_is_named_a_unit_that_restarts_makes_no_call_otherwise(
    site: CapturingHost, own_slice: Path, program: Program, kind: str
) -> None:
    """The slice's cgroup stays while its units come and go, and the rules are about all that is in it."""
    named = own_slice / f"{own_slice.name.removesuffix('.slice')}-pay.slice"
    named.mkdir()
    config = including(named.name)
    if kind == "identity":
        config.capture.outbound.CopyFrom(CaptureDirection(include=[CaptureRule(ports=[443])]))
    units = frozenset({named.name}) if kind == "identity" else frozenset()
    async with agent(site, config, units=units):
        gaps = await restarts(program, named / "pay.service", AS_PAY if kind == "identity" else CAPTURED, "in a slice")
    assert [wrong for wrong, _ in gaps] == [0] * RESTARTS


async def test_what_another_program_writes_into_resolv_conf_is_put_right_at_once(site: CapturingHost) -> None:
    path = site.config.dns.resolv_conf
    path.unlink()
    target = path.with_name("of-the-network")
    target.write_text("nameserver 192.0.2.1\n")
    path.symlink_to(target)

    async def put_right(server: str) -> None:
        # Without the kernel's word nobody would take another step here.
        def holds() -> bool:
            return has_mesh(path.read_text()) and server in path.read_text()

        await asyncio.to_thread(until, holds, f"{server} behind the mesh's")

    async with agent(
        site, HostConfig(capture=Capture(virtual_prefixes=["240.240.0.0/16"], dns=True)), units=frozenset()
    ):
        assert has_mesh(path.read_text())
        for server in ("192.0.2.2", "192.0.2.3"):
            target.write_text(f"nameserver {server}\n")
            await put_right(server)
        fresh = path.with_name("fresh")
        fresh.write_text("nameserver 192.0.2.4\n")
        fresh.replace(path)
        await put_right("192.0.2.4")
