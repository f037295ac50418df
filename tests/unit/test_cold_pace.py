"""When the cold copies are worked on: not at once, not all the time, and not for nothing."""

import asyncio
from datetime import UTC, datetime

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from golden.objects import mesh_of, obj
from hostmesh_api.delta import ClientStream
from hostmesh_api.wire import COLD_TYPE
from hostmesh_controller import cold_pace
from hostmesh_controller.hub import Hub
from hostmesh_controller.mesh import Touched
from waiting import until

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_host_that_comes_is_served_and_a_change_waits_for_its_window() -> None:
    hub = Hub(mesh_of([obj("Host", "one", {"addresses": ["10.0.0.1"]}), obj("Service", "a", PORTS)]), 1)
    sent: list[tuple[str, ...]] = []
    wake = asyncio.Event()
    connection = hub.connect("one", "peer", NOW, wake.set)

    async def write() -> None:
        while True:
            await wake.wait()
            wake.clear()
            for push in hub.pushes(connection):
                sent.append(push.names)
                hub.receive(connection, ClientStream.ack(COLD_TYPE, push.nonce), NOW)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(write()), group.create_task(cold_pace.run(hub.cold, window_s=1.0, pause_s=0))]
        await asyncio.sleep(0)  # they have begun
        # The window of a change that comes while the worker still works began with that work.
        began_s = asyncio.get_running_loop().time()
        hub.receive(connection, DeltaDiscoveryRequest(type_url=COLD_TYPE, resource_names_subscribe=["*"]), NOW)
        await until(lambda: len(sent) == 1, "the copy is sent")
        hub.publish(hub.mesh, Touched(everything=True), 2)
        await until(lambda: not hub.cold.has_changed, "the change is looked at")
        assert asyncio.get_running_loop().time() - began_s >= 1.0
        for each in tasks:
            each.cancel()
    assert len(sent) == 1, "nothing was another"


PORTS = {"ports": [{"name": "http", "port": 80}]}
