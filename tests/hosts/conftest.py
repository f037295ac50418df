"""Real hosts for all tests of this folder, made once. A test that harms one puts it right again."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.driver import eventually, new_lab
from hosts import mesh as meshes
from hosts.machine import Machine
from hosts.mesh import EARLY, SERVICES, STOCK, STOCK_UNIT, VAULT, Mesh

OUTSIDE_NAME = "www.example.com"
OUTSIDE_ADDRESS = "192.0.2.1"


@pytest.fixture(scope="session", autouse=True)
def _can_have_hosts() -> None:
    if os.getuid() != 0:
        pytest.skip("real hosts are made as root")
    if not shutil.which("systemd-nspawn"):
        pytest.skip("needs systemd-nspawn: make test-hosts installs it")


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="hm-hosts-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        lab = stack.enter_context(new_lab())
        lab.verb("up", "client", "--no-join", "outside")
        shop = Machine(lab, "shop", "trixie", 50, directory / "shop")
        till = Machine(lab, "till", "bookworm", 51, directory / "till")
        made = Mesh(lab, shop, till)
        for each in (shop, till):
            stack.callback(each.remove)
            meshes.install(each)
        meshes.program(shop, "vault", EARLY)
        for each in (shop, till):
            meshes.program(each, "stock", STOCK_UNIT.replace("hostmesh-ready", "network").format(name=each.name))
        dns = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--user=root"]
        lab.detach("outside", *dns, f"--address=/{OUTSIDE_NAME}/{OUTSIDE_ADDRESS}")
        meshes.resolve_by_systemd(till, lab.ip("outside"))
        lab.apply(SERVICES.format(shop=shop.ip, till=till.ip))
        for each in (shop, till):
            meshes.join(lab, each)
        meshes.captured(shop, VAULT)
        meshes.captured(till, STOCK)
        for each in (shop, till):
            each.run("hostmesh-agent", "wait", "--timeout", "60")
            # From now on they boot as hosts of a mesh do.
            each.put("/etc/systemd/system/stock.service", STOCK_UNIT.format(name=each.name))
            each.run("systemctl", "daemon-reload")
        eventually(lambda: made.vault() is not None, "client calls vault", timeout_s=30)
        print(f"hosts and mesh: made in {time.monotonic() - began:.1f} s")
        yield made


@pytest.fixture(params=("shop", "till"))
def each_host(mesh: Mesh, request: pytest.FixtureRequest) -> Machine:
    """A test for each of Debian's versions."""
    machine: Machine = getattr(mesh, request.param)
    return machine
