"""Simulated agents against the lab's controller: joined with a token each, connected from the machine's own leg."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

import httpx

from bench import mesh
from bench.controller import Controller, allow_files
from bench.enrol import join_all
from bench.fleet import Fleet, Member
from faults.scene import Scene
from hostmesh_api.wire import AGENTS_PORT, HOST_CONFIG_NAME, HOST_CONFIG_TYPE, LISTENER_TYPE
from hostmesh_controller.lab.subnet import GATEWAY

_SETTLED_S: Final = 60.0
_BATCH: Final = 100
_JOINING: Final = 16
"""What the controller takes of one connection at a time (`limits.join_streams_per_connection`)."""
ASKED: Final = {HOST_CONFIG_TYPE: (HOST_CONFIG_NAME,), LISTENER_TYPE: ("*",)}


class _Api:
    """The one method of the benchmark's controller that joining needs, spoken to the lab's."""

    def __init__(self, scene: Scene) -> None:
        transport = httpx.HTTPTransport(uds=str(scene.layout.admin_socket))
        self._client = httpx.Client(base_url="http://controller", transport=transport, timeout=60, trust_env=False)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = self._client.post(path, json=body)
        assert response.is_success, response.text
        found: dict[str, Any] = response.json()
        return found

    def close(self) -> None:
        self._client.close()


class LabFleet:
    """`count` hosts that nobody sees, each with a certificate of its own; the controller knows them ever after."""

    def __init__(self, scene: Scene, count: int) -> None:
        self._scene = scene
        self._names = [mesh.host_name(index) for index in range(count)]
        self._folder = tempfile.TemporaryDirectory(prefix="hm-fleet-")
        self._api = _Api(scene)

    def __enter__(self) -> Self:
        allow_files()
        folder = Path(self._folder.name)
        documents = [each for each in mesh.hosts(len(self._names)) if each["kind"] == "Host"]
        for at in range(0, len(documents), _BATCH):
            self._api.post("/v1/apply", {"documents": documents[at : at + _BATCH]})
        # It has no address of its own in the benchmark's sense: `post` is all that joining asks of it.
        identities: dict[str, Path] = {}
        for at in range(0, len(self._names), _JOINING):
            identities |= join_all(cast("Controller", self._api), self._names[at : at + _JOINING], folder)
        members = [Member(host, identities[host], ASKED) for host in self._names]
        address = self._scene.facts.net.address(GATEWAY), AGENTS_PORT
        self._fleet = Fleet(members, folder / "bundle.pem", address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fleet.__exit__()
        self._api.close()
        self._folder.cleanup()

    def connect(self) -> None:
        """Connect all at once, and serve them until each has been answered all it asked for."""
        self._fleet.disconnect()
        self._fleet.connect()
        self._fleet.run(self._fleet.settled, within_s=_SETTLED_S)
        failures = self._fleet.failures()
        assert not failures, f"{len(failures)} streams failed; the first: {failures[0]}"

    def lost(self) -> None:
        """Serve them until each has noticed that the controller is gone."""
        self._fleet.run(lambda: len(self._fleet.failures()) == len(self._names), within_s=_SETTLED_S)
