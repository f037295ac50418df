"""Answers Envoy from the cold copy while the controller is away, and keeps the copy up to date while it is there.

The copy comes over the controller's stream as a type of its own. A response is acknowledged when it is on disk, so a
disk that is full or slow holds nothing up but the copy: writing is tried again, and the status says so by name.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import structlog
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from hostmesh_agent.cold_copy import ColdCopy, ColdCopyError
from hostmesh_api.cold import resource_of, with_caller
from hostmesh_api.delta import WILDCARD, ClientStream, Resource
from hostmesh_api.wire import CLUSTER_TYPE, COLD_TYPE, ENDPOINT_TYPE, VIRTUAL_HOST_TYPE

RETRY_S: Final = 30.0
"""Until what could not be written is tried again."""
_OUTBOUND_PARTS: Final = 4

_log = structlog.get_logger(__name__)


class Cold:
    """The cold copy of this host. `caller` returns the directory of the certificate under which its programs call."""

    def __init__(self, copy: ColdCopy, caller: Callable[[], str], retry_s: float = RETRY_S) -> None:
        self._copy = copy
        self._caller = caller
        self._retry_s = retry_s
        self._came: DeltaDiscoveryResponse | None = None
        self._wake = asyncio.Event()
        self._failing = ""
        self.size: Mapping[str, int] = self._size()

    def _size(self) -> Mapping[str, int]:
        services, size = self._copy.size()
        return {"services": services, "bytes": size}

    # Answers

    def answer(self, type_url: str, name: str) -> Resource | None:
        """Return a resource as the controller would send it, or None if the copy has no such thing."""
        if type_url == VIRTUAL_HOST_TYPE:
            return self._virtual_host(name)
        parts = name.split("|")
        hostname = parts[3] if len(parts) == _OUTBOUND_PARTS and parts[0] == "outbound" else ""
        if type_url == CLUSTER_TYPE:
            cluster = self._copy.cluster(name, hostname)
            return None if cluster is None else self._given(type_url, name, cluster.rest)
        if type_url == ENDPOINT_TYPE:
            # Those of an address are where its cluster is.
            endpoints = self._copy.endpoints(name, hostname)
            return None if endpoints is None else resource_of(type_url, name, endpoints.rest)
        return None

    def _given(self, type_url: str, name: str, rest: bytes) -> Resource | None:
        try:
            return resource_of(type_url, name, with_caller(rest, self._caller()))
        except ValueError as error:
            _log.error("the cold copy has something that is no resource", name=name, reason=str(error))
            return None

    def _virtual_host(self, name: str) -> Resource | None:
        port, _, header = name.partition("/")
        for host in _meanings(header):
            for service in self._copy.services(host):
                for each in service.virtual_hosts:
                    if str(each.port) == port:
                        return resource_of(VIRTUAL_HOST_TYPE, name, each.rest, domain=header)
        return None

    # Synchronization

    def opening(self) -> DeltaDiscoveryRequest:
        """Return the first request of a stream: everything, but for what is here."""
        self._came = None
        held = self._copy.versions()
        self.size = self._size()
        return DeltaDiscoveryRequest(
            type_url=COLD_TYPE, resource_names_subscribe=[WILDCARD], initial_resource_versions=held
        )

    def take(self, response: DeltaDiscoveryResponse) -> None:
        """Take a response; there is one at a time, the next comes when this one is acknowledged."""
        self._came = response
        self._wake.set()

    def disconnected(self) -> None:
        """Forget what is not acknowledged: it comes again."""
        self._came = None

    async def run(self, tell: Callable[[DeltaDiscoveryRequest], None]) -> None:
        """Write what comes, until cancelled. What could not be written, or opened, is tried again after a while."""
        while True:
            ails = self._failing or not self._copy.is_writable
            with suppress(TimeoutError):
                async with asyncio.timeout(self._retry_s if ails else None):
                    await self._wake.wait()
            self._wake.clear()
            response = self._came
            is_written = await asyncio.to_thread(self._written, response)
            if is_written and response is not None and self._came is response:
                self._came = None
                tell(ClientStream.ack(COLD_TYPE, response.nonce))

    def _written(self, response: DeltaDiscoveryResponse | None) -> bool:
        """Write a response; None: see whether something can be written again."""
        update = None if response is None else ClientStream.update(response)
        try:
            if update is None:
                self._copy.write((), ())
            else:
                self._copy.write(update.resources, update.removed)
        except ColdCopyError as error:
            if not self._failing:
                _log.error("the cold copy could not be written", reason=str(error), retry_in_s=self._retry_s)
            self._failing = str(error)
            return False
        self._failing = ""
        self.size = self._size()
        return True

    def problems(self) -> list[str]:
        """Return what is wrong with the copy, for people."""
        found = [f"the cold copy is not up to date: {self._failing}"] if self._failing else []
        left_out = len(self._copy.left_out)
        if left_out:
            found.append(f"the cold copy is full (cold.max_mb in agent.toml): {left_out} pages are left out")
        return found

    def close(self) -> None:
        self._copy.close()


def _meanings(header: str) -> list[str]:
    """Return what a host header may mean: the name or address in it, then the wildcards above it, longest first."""
    if header.startswith("["):
        return [header[1:].partition("]")[0]]
    host, colon, port = header.rpartition(":")
    name = (host if colon and ":" not in host and port.isdigit() else header).removesuffix(".")
    labels = name.split(".")
    return [name, *("*." + ".".join(labels[at:]) for at in range(1, len(labels)))]
