"""A host and a neighbour, each in a network namespace of its own, joined by a cable."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from hostmesh_agent.capture.rules import Backend
from netns.backends import choose
from netns.space import Servers, Space, new_space, run

HOST = ("10.9.0.1", "2001:db8:9::1")
PEER = ("10.9.0.2", "2001:db8:9::2")
INSIDE = ("10.8.0.1", "2001:db8:8::1")
BEHIND = ("10.8.0.2", "2001:db8:8::2")


_GRPCS = {"grpc_global_tim", "event_engine", "lifeguard"}
"""How gRPC calls its threads."""


@pytest.fixture(autouse=True, scope="session")
def able() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    missing = [tool for tool in ("nft", "ip") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


@pytest.fixture(scope="session")
def grpc_at_home() -> Iterator[None]:
    """GRPC's threads serve the whole process from the namespace where its first channel was made: it is made here."""
    with grpc.insecure_channel("unix:nowhere") as channel:
        with suppress(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(0.1)
        yield


@pytest.fixture(autouse=True)
def grpc_stays_at_home(grpc_at_home: None) -> Iterator[None]:
    """A thread of gRPC's that stays in a test's namespace would make later tests' calls from there."""
    yield
    home = Path("/proc/thread-self/ns/net").readlink()
    for thread in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            if (thread / "comm").read_text().strip() in _GRPCS:
                assert (thread / "ns/net").readlink() == home, "gRPC's threads were started in the test's namespace"


@pytest.fixture(autouse=True)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """What of the kernel is to hold the rules: see `backends`."""
    chosen = getattr(request, "param", Backend.NFTABLES)
    choose(chosen)
    yield chosen
    choose(Backend.NFTABLES)


@pytest.fixture
def host() -> Iterator[Space]:
    """The host under test; the test's own thread is in it."""
    with new_space() as space, space():
        yield space


@pytest.fixture
def peer(host: Space) -> Iterator[Space]:
    """Another machine on the host's only network, which is also the host's router."""
    with neighbour("eth0", HOST, PEER) as space:
        run("ip", "route", "add", "default", "via", PEER[0])
        run("ip", "-6", "route", "add", "default", "via", PEER[1])
        with space():
            run("ip", "route", "add", "default", "via", HOST[0])
            run("ip", "-6", "route", "add", "default", "via", HOST[1])
        yield space


@pytest.fixture
def behind(host: Space) -> Iterator[Space]:
    """A machine that others reach through the host only, like a container on it."""
    with neighbour("eth9", INSIDE, BEHIND) as space:
        with space():
            run("ip", "route", "add", "default", "via", INSIDE[0])
            run("ip", "-6", "route", "add", "default", "via", INSIDE[1])
        yield space


Addresses = tuple[str | None, str | None]
"""One of each family; None: none."""


@contextmanager
def neighbour(device: str, here: Addresses, there: Addresses) -> Iterator[Space]:
    """A machine whose eth1 is joined to `device` of the thread's namespace."""
    with new_space() as space:
        run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth1")
        run("ip", "link", "set", "eth1", "netns", f"/proc/{os.getpid()}/fd/{space.descriptor}")
        _up(device, here)
        with space():
            _up("eth1", there)
        yield space


def _up(device: str, addresses: Addresses) -> None:
    if addresses[0]:
        run("ip", "address", "add", f"{addresses[0]}/24", "dev", device)
    if addresses[1]:
        run("ip", "address", "add", f"{addresses[1]}/64", "dev", device, "nodad")
    run("ip", "link", "set", device, "up")


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()
