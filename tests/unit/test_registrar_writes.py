"""A write, its revision and what follows from it stay together, whatever else goes on."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from full_store import refusing
from golden.objects import SETTINGS
from hostmesh_controller.controller import utc_now
from hostmesh_controller.hub import Hub
from hostmesh_controller.leases import Sign
from hostmesh_controller.mesh import Mesh, Touched, build
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.review import read
from hostmesh_controller.store import CertificateRecord, HostState, StoreError
from hostmesh_controller.store.sqlite import open_store
from waiting import until

KEY = ObjectKey("Service", "shop", "cart")
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, name: http}]}
"""
HOST = """---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1}
spec: {addresses: [10.0.0.1]}
"""
BOUND_S = 10.0


class SlowStore:
    """The embedded store, which begins one of its methods and waits there until it is told to go on."""

    def __init__(self, directory: Path) -> None:
        self.store = open_store(directory / "store.sqlite")
        self.slow = ""
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.store, name)
        if name != self.slow:
            return found

        def slowly(*args: Any, **more: Any) -> Any:
            self.begun.set()
            assert self.go_on.wait(BOUND_S)
            return found(*args, **more)

        return slowly


class Shown(Hub):
    """A hub that remembers with which revision it was first shown without the service, once it had it."""

    def __init__(self) -> None:
        super().__init__(build(SETTINGS, (), {}, {}), 0)
        self.gone_at = -1
        self._had = False

    def publish(self, mesh: Mesh, touched: Touched, revision: int) -> None:
        super().publish(mesh, touched, revision)
        has = any(KEY.name in str(each) for each in mesh.services)
        if self._had and not has and self.gone_at < 0:
            self.gone_at = revision
        self._had = self._had or has


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[SlowStore, Registrar, Shown]]:
    store, hub = SlowStore(directory), Shown()
    registrar = Registrar(store, hub, SETTINGS, utc_now)
    await registrar.open()
    task = asyncio.create_task(registrar.run())
    try:
        yield store, registrar, hub
    finally:
        store.go_on.set()
        task.cancel()
        await asyncio.wait([task])
        store.store.close()


async def test_what_goes_with_a_deletion_is_shown_with_its_revision_though_a_host_changes_meanwhile(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (store, registrar, hub):
        await registrar.apply(read([("f", SERVICE)], "default"), actor="ann")
        await until(lambda: hub.revision == 1)
        store.slow = "release_vips"
        deleting = asyncio.create_task(registrar.delete([KEY], actor="ann"))
        await until(store.begun.is_set)
        registrar.host_changed("h1")
        await until(lambda: hub.gone_at >= 0 or hub.revision == 2)
        store.go_on.set()
        await deleting
        await until(lambda: hub.revision == 2)
        assert hub.gone_at == 2, "hosts believe a loss by its revision alone"


async def test_a_write_whose_caller_gives_up_is_known_here_if_it_is_in_the_store(tmp_path: Path) -> None:
    async with running(tmp_path) as (store, registrar, hub):
        store.slow = "commit"
        writing = asyncio.create_task(registrar.apply(read([("f", SERVICE)], "default"), actor="ann"))
        await until(store.begun.is_set)
        writing.cancel()
        await asyncio.sleep(0)
        store.go_on.set()
        await asyncio.wait([writing], timeout=BOUND_S)
        assert writing.cancelled()
        await until(lambda: store.store.get(KEY) is not None)
        assert registrar.get(KEY) is not None
        await until(lambda: hub.revision == 1)


async def test_what_is_committed_is_shown_and_forgotten_though_its_address_cannot_be_given_back_yet(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (store, registrar, hub):
        await registrar.apply(read([("f", SERVICE + HOST)], "default"), actor="ann")
        await registrar.states.joined("h1")
        await until(lambda: hub.revision == 1)
        (index,) = registrar._vips.indexes.values()
        with refusing(tmp_path / "store.sqlite", "DELETE ON vips"), capture_logs() as logs:
            outcome = await registrar.delete([KEY, ObjectKey("Host", "", "h1")], actor="ann")
            await until(lambda: hub.gone_at == outcome.revision == 2)
        assert [each["event"] for each in logs if each["log_level"] == "error"] == ["virtual_addresses_not_released"]
        assert (registrar._vips.indexes, store.store.host_states()) == ({}, {})
        # The same name gets the same one, and keeps it; the next write gives back what is not needed.
        await registrar.apply(read([("f", SERVICE)], "default"), actor="ann")
        assert list(registrar._vips.indexes.values()) == [index]
        with refusing(tmp_path / "store.sqlite", "DELETE ON vips"):
            await registrar.delete([KEY], actor="ann")
        await registrar.apply(read([("f", SERVICE.replace("cart", "till"))], "default"), actor="ann")
        assert [each.removesuffix(".shop.svc.cluster.local") for each in names_with_addresses(tmp_path)] == ["till"]


async def test_a_host_that_is_removed_is_gone_from_memory_and_others_are_forgotten_though_the_store_fails(
    tmp_path: Path,
) -> None:
    hosts = ("h1", "h2")
    async with running(tmp_path) as (store, registrar, hub):
        await registrar.apply(
            read([("f", HOST + HOST.replace("h1", "h2").replace("10.0.0.1", "10.0.0.2"))], "default"), actor="ann"
        )
        for host in hosts:
            await registrar.enrolments.begin(host)
            await registrar.states.joined(host)
            registrar.leases.connected(host)
            store.store.add_certificate(CertificateRecord(host, f"uri:{host}", host, utc_now(), utc_now()))
        await until(lambda: hub.revision == 1)
        with refusing(tmp_path / "store.sqlite", "DELETE ON hosts"), pytest.raises(StoreError, match="disk is full"):
            await registrar.delete([ObjectKey("Host", "", host) for host in hosts], actor="ann")
        await until(lambda: hub.revision == 2)
        await until(lambda: {registrar.leases.leases.sign(host) for host in hosts} == {Sign.UNKNOWN})
        assert [store.store.certificates(host) for host in hosts] == [[], []]
        assert [await registrar.states.state(host) for host in hosts] == [HostState(), HostState()]


def names_with_addresses(directory: Path) -> list[str]:
    with closing(sqlite3.connect(directory / "store.sqlite")) as connection:
        return [name for (name,) in connection.execute("SELECT fqdn FROM vips ORDER BY fqdn")]


async def test_what_could_not_be_shown_at_first_is_shown_with_its_own_revision_later(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, registrar, hub):
        with capture_logs() as logs:
            registrar.take_mesh_file(None)  # type: ignore[arg-type] # nothing can be made with that
            await until(lambda: len(logs) == 1)
            await registrar.apply(read([("f", SERVICE)], "default"), actor="ann")
            await until(lambda: len(logs) == 2)
        assert {each["event"] for each in logs} == {"the mesh could not be built; proxies keep revision 0"}
        registrar.take_mesh_file(SETTINGS.mesh_config)
        await until(lambda: hub.revision == 1)
