"""Real hosts for all tests of this folder, made once. A test that harms one puts it right again."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.driver import Lab, eventually, new_lab
from hosts import mesh as meshes
from hosts import repository
from hosts.machine import Machine
from hosts.mesh import EARLY, SERVICES, STOCK, STOCK_UNIT, VAULT, Mesh
from hosts.newcomer import serve_counter
from hosts.repository import Repository
from hosts.told import (  # noqa: F401 - pytest finds its hooks here
    pytest_collection_modifyitems,
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_runtest_protocol,
    why_no_hosts,
)

OUTSIDE_NAME = "www.example.com"
OUTSIDE_ADDRESS = "192.0.2.1"


@pytest.fixture(scope="session", autouse=True)
def _can_have_hosts() -> None:
    if why := why_no_hosts():
        pytest.skip(why)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The controller, and two small hosts: one of the mesh, one outside, which serves names and packages."""
    with new_lab() as made:
        made.verb("up", "client", "--no-join", "outside")
        dns = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root"]
        made.detach("outside", *dns, f"--address=/{OUTSIDE_NAME}/{OUTSIDE_ADDRESS}")
        yield made


@pytest.fixture(scope="session")
def packages(lab: Lab) -> Repository:
    """The signed repository from which hosts install."""
    return repository.serve(lab, "outside", repository.make())


@pytest.fixture(scope="session")
def counter(lab: Lab) -> None:
    """Somebody whom others call."""
    serve_counter(lab)


@pytest.fixture(scope="session")
def mesh(lab: Lab, packages: Repository) -> Iterator[Mesh]:
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="hm-hosts-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        shop = Machine(lab, "shop", "trixie", 50, directory / "shop")
        till = Machine(lab, "till", "bookworm", 51, directory / "till")
        stall = Machine(lab, "stall", "bullseye", 54, directory / "stall")
        made = Mesh(lab, shop, till, stall)
        for each in made.hosts:
            stack.callback(each.remove)
        meshes.install(packages, *made.hosts)
        meshes.program(shop, "vault", EARLY)
        for each in made.hosts:
            meshes.program(each, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name=each.name))
        meshes.resolve_by_systemd(till, lab.ip("outside"))
        lab.apply(SERVICES.format(shop=shop.ip, till=till.ip, stall=stall.ip))
        for each in made.hosts:
            meshes.join(lab, each)
        meshes.captured(shop, VAULT)
        for each in (till, stall):
            meshes.captured(each, STOCK)
        for each in made.hosts:
            each.run("hostmesh-agent", "wait", "--timeout", "60")
            # From now on they boot as hosts of a mesh do.
            each.put("/etc/systemd/system/stock.service", STOCK_UNIT.format(name=each.name))
            each.run("systemctl", "daemon-reload")
        eventually(lambda: made.vault() is not None, "client calls vault", timeout_s=30)
        print(f"hosts and mesh: made in {time.monotonic() - began:.1f} s")
        yield made


@pytest.fixture(params=("shop", "till", "stall"))
def each_host(mesh: Mesh, request: pytest.FixtureRequest) -> Machine:
    """A test for each of Debian's versions."""
    machine: Machine = getattr(mesh, request.param)
    return machine
