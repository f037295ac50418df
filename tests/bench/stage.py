"""What the benchmarks of the controller share: one controller, its joined hosts, and their simulated proxies."""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

from bench import mesh
from bench.controller import Controller, allow_files
from bench.enrol import join_all
from bench.fleet import Fleet, Member

T = TypeVar("T")
_CONNECT_S = 120.0
_BATCH = 500


class Stage:
    """Made when it is first used; ended with the context."""

    def __init__(self, proxies: int) -> None:
        self.proxies = proxies
        self._folder = Path(tempfile.mkdtemp(prefix="hostmesh-bench-"))
        self._opened: list[Controller | Fleet] = []
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        allow_files()
        return self

    def __exit__(self, *_: object) -> None:
        for opened in reversed(self._opened):
            opened.__exit__(None, None, None)
        self._pool.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)

    @cached_property
    def controller(self) -> Controller:
        """A running controller with the mesh of `mesh.py`; no host has joined yet."""
        controller = Controller(self._folder)
        self._opened.append(controller)
        controller.start()
        controller.apply(mesh.services())
        documents = list(mesh.hosts(self.proxies))
        for at in range(0, len(documents), _BATCH):
            controller.apply(documents[at : at + _BATCH])
        return controller

    @cached_property
    def fleet(self) -> Fleet:
        """The proxies of all hosts, joined, not connected."""
        hosts = [mesh.host_name(index) for index in range(self.proxies)]
        identities = join_all(self.controller, hosts, self._folder)
        members = [Member(host, identities[host], mesh.asked_by(index)) for index, host in enumerate(hosts)]
        fleet = Fleet(members, self._folder / "bundle.pem", self.controller.agents)
        self._opened.append(fleet)
        return fleet

    def connected(self) -> Fleet:
        """Return the fleet with every proxy connected and settled."""
        fleet = self.fleet
        if any(proxy.connection is None for proxy in fleet.proxies):
            fleet.disconnect()
            self.wait_for_connections(0)
            fleet.connect()
            self.settle()
        return fleet

    def settle(self) -> None:
        """Serve the fleet until the controller, too, says that everybody has all."""
        self.fleet.run(self.fleet.settled, within_s=_CONNECT_S)
        if failures := self.fleet.failures():
            raise RuntimeError(f"{len(failures)} streams failed; the first: {failures[0]}\n{self.log()}")
        self.wait_for_connections(self.proxies)

    def wait_for_connections(self, count: int) -> None:
        """Serve the fleet until the controller counts so many connected proxies that have acknowledged all."""
        self.fleet.run(lambda: self.meanwhile(self.controller.connected) == count, within_s=_CONNECT_S)

    def meanwhile(self, work: Callable[[], T]) -> T:
        """Do something that takes time, in a thread, while the fleet is served."""
        future = self._pool.submit(work)
        while not future.done():
            self.fleet.step(0.01)
        return future.result()

    def start(self, work: Callable[[], T]) -> Callable[[], T]:
        """Start something in a thread; return what gives its result."""
        return self._pool.submit(work).result

    def log(self) -> str:
        """Return the end of the controller's log."""
        return self.controller.log.read_text()[-2000:]
