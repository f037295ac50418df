"""A mesh file that is read again while the controller runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from golden.objects import SETTINGS
from hostmesh_controller.controller import utc_now
from hostmesh_controller.hub import Hub
from hostmesh_controller.mesh import Mesh, Touched, build
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.registrar import Registrar
from hostmesh_controller.review import read
from hostmesh_controller.store.sqlite import open_store

BOUND_S = 10.0
OBJECT = """
apiVersion: hostmesh.io/v1
kind: MeshConfig
metadata: {name: default}
spec: {accessLogFile: /dev/stdout}
"""


class WatchedHub(Hub):
    """Tells when something is published."""

    def __init__(self) -> None:
        super().__init__(build(SETTINGS, (), {}, {}), 0)
        self.published = asyncio.Event()
        self.touched: list[Touched] = []

    def publish(self, mesh: Mesh, touched: Touched, revision: int) -> None:
        super().publish(mesh, touched, revision)
        self.touched.append(touched)
        self.published.set()

    async def next(self) -> Mesh:
        async with asyncio.timeout(BOUND_S):
            await self.published.wait()
        self.published.clear()
        return self.mesh


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[Registrar, WatchedHub]]:
    store, hub = open_store(directory / "store.sqlite"), WatchedHub()
    registrar = Registrar(store, hub, SETTINGS, utc_now)
    await registrar.open()
    hub.published.clear()
    task = asyncio.create_task(registrar.run())
    try:
        yield registrar, hub
    finally:
        task.cancel()
        await asyncio.wait([task])
        store.close()


async def test_a_mesh_file_that_is_read_again_holds_from_then_on_beneath_the_object(tmp_path: Path) -> None:
    async with running(tmp_path) as (registrar, hub):
        await registrar.apply(read([("f.yaml", OBJECT)], "default"), actor="test")
        assert (await hub.next()).config.access_log_file == "/dev/stdout"
        file = MeshConfigSpec.model_validate({"connectTimeout": "3s", "accessLogFile": "/else"})
        registrar.take_mesh_file(file)
        config = (await hub.next()).config
        assert (config.connect_timeout, config.access_log_file) == (timedelta(seconds=3), "/dev/stdout")
        assert hub.touched[-1].everything
        await registrar.apply(read([("f.yaml", OBJECT.replace("stdout", "stderr"))], "default"), actor="test")
        config = (await hub.next()).config
        assert (config.connect_timeout, config.access_log_file) == (timedelta(seconds=3), "/dev/stderr")


async def test_the_same_file_again_sends_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (registrar, hub):
        registrar.take_mesh_file(MeshConfigSpec())
        await registrar.apply(read([("f.yaml", OBJECT)], "default"), actor="test")
        await hub.next()
        assert len(hub.touched) == 2, "at the start, and for the object"
