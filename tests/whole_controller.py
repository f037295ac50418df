"""A whole controller in this process, with its ports, and hosts and workloads that have certificates of its CA."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pki
from hostmesh_agent.keys import Svid
from hostmesh_api.identity import HostIdentity, WorkloadIdentity
from hostmesh_controller.authority import Authority
from hostmesh_controller.config import parse_config
from hostmesh_controller.controller import Controller
from hostmesh_controller.review import read
from hostmesh_controller.store import CertificateRecord
from hostmesh_controller.store.sqlite import open_store
from running_controller import free_ports, write_config

HOST = HostIdentity("cluster.local", "h1")
CART = WorkloadIdentity("cluster.local", "shop", "cart")
OBJECTS = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1}
spec: {addresses: [127.0.0.1]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cart, namespace: shop}
spec: {address: 127.0.0.1, ports: {http: 80}, serviceAccount: cart}
"""


@dataclass(frozen=True)
class Whole:
    """The parts, and where they listen: agents, join, admin."""

    directory: Path
    controller: Controller
    ports: tuple[int, int, int]

    def host(self, identity: HostIdentity = HOST) -> Svid:
        """Return a certificate of a host that the controller knows."""
        svid = pki.svid(self.controller.authority, identity)
        now = pki.now()
        record = CertificateRecord(svid.serial, identity.uri, identity.host, now + timedelta(hours=1), now)
        self.controller.store.add_certificate(record)
        return svid

    def workload(self) -> Svid:
        return pki.svid(self.controller.authority, CART)

    @property
    def roots(self) -> bytes:
        return self.controller.authority.bundle_pem


@asynccontextmanager
async def whole_controller(directory: Path, tables: str = "") -> AsyncIterator[Whole]:
    """Run a controller that has the objects above; `tables` are for controller.toml."""
    ports = free_ports()
    config = parse_config(write_config(directory, ports, tables=tables).read_text(), "test", ())
    config.state_dir.mkdir()
    store = open_store(config.state_dir / "store.sqlite")
    try:
        controller = Controller(config, store, Authority.load_or_create(config.state_dir, "cluster.local", pki.now()))
        await controller.registrar.open()
        await controller.ancestry.open()
        outcome = await controller.registrar.apply(read([("objects", OBJECTS)], "default"), actor="test")
        assert not outcome.review.errors
        await controller.registrar.enrolments.begin(HOST.host)
        running = asyncio.ensure_future(controller.run())
        try:
            await _ready(controller, running)
            yield Whole(directory, controller, ports)
        finally:
            controller.stop()
            await asyncio.wait_for(running, 20)
    finally:
        store.close()


async def _ready(controller: Controller, running: "asyncio.Future[None]") -> None:
    async with asyncio.timeout(20):
        while not controller.ready or controller.hub.revision < controller.registrar.revision:
            if running.done():
                running.result()
            await asyncio.sleep(0.01)
