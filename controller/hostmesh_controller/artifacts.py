"""The mirror: artifacts that the operator put into a directory, and the signatures that came with them.

Nothing is judged here: an agent takes what the key in its agent.toml has signed, whoever gave it the bytes.
"""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import structlog

from hostmesh_api import manifest
from hostmesh_api.v1.hostmesh_pb2 import FetchChunk, FetchRequest
from hostmesh_api.v1.hostmesh_pb2_grpc import ArtifactsServicer as ArtifactsBase
from hostmesh_controller.peers import Context, Peers

CHUNK_BYTES: Final = 512 * 1024
AT_ONCE: Final = 16
"""Pieces that are read at a time, for all hosts: a wave of a thousand must not keep others from their configuration."""

_log: Final = structlog.stdlib.get_logger(__name__)


class MirrorError(Exception):
    """The operator must put something into the mirror; the text says what and where."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A manifest as it was written, and its signature."""

    manifest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Mirror:
    """The directory. Its methods block."""

    directory: Path

    def signed(self, component: str, version: str, machine: str) -> Signed:
        """Return what is said of an artifact.

        Raises:
            MirrorError: it is not there, or is said to be another.
        """
        try:
            where = self.directory / manifest.place(component, version, machine)
        except ValueError:
            raise MirrorError(f"no machine is called {machine!r}") from None
        cure = "put it there with: hostmesh rollout sign"
        try:
            data = _read(where / manifest.MANIFEST, manifest.MAX_MANIFEST_BYTES)
            signature = _read(where / manifest.SIGNATURE, manifest.SIGNATURE_BYTES)
        except OSError as error:
            raise MirrorError(f"{error.filename or where}: {error.strerror}; {cure}") from None
        try:
            said = manifest.parse(data)
        except ValueError as error:
            raise MirrorError(f"{where / manifest.MANIFEST}: {error}; {cure}") from None
        if (said.component, said.version, said.machine) != (component, version, machine):
            raise MirrorError(f"{where / manifest.MANIFEST}: it is of {said.version} for {said.machine}; {cure}")
        if not _whole(where, said) or len(signature) != manifest.SIGNATURE_BYTES:
            raise MirrorError(f"{where}: artifact or signature is not as long as it should be; {cure}")
        return Signed(data, signature)

    def piece(self, component: str, version: str, machine: str, offset: int, kind: str = "") -> bytes:
        """Return bytes of an artifact (or of its package of a kind) from an offset on, none at its end.

        Raises:
            ValueError: these are no such names.
            OSError: it is not there.
        """
        path = self.directory / manifest.place(component, version, machine) / manifest.file_name(kind)
        with path.open("rb") as file:
            return os.pread(file.fileno(), CHUNK_BYTES, min(offset, manifest.MAX_BYTES))


def _whole(where: Path, said: manifest.Manifest) -> bool:
    files = said.packages or {"": said.file()}
    try:
        return all((where / manifest.file_name(kind)).stat().st_size == each.size_bytes for kind, each in files.items())
    except OSError:
        return False


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most + 1)


class ArtifactsServicer(ArtifactsBase):
    """Fetch, on the port with mutual TLS: for hosts that have joined."""

    def __init__(self, mirror: Mirror, peers: Peers) -> None:
        self._mirror = mirror
        self._peers = peers
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def Fetch(self, request: FetchRequest, context: Context) -> FetchChunk:  # noqa: N802 - gRPC's name
        await self._peers.host_of(context)
        names = request.component, request.version, request.machine
        try:
            async with self._turns:
                piece = await asyncio.to_thread(self._mirror.piece, *names, request.offset, request.package)
                return FetchChunk(data=piece)
        except (ValueError, OSError) as error:
            _log.warning("artifact_not_given", names=names, reason=str(error))
        await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such artifact in the controller's mirror")
        raise AssertionError  # abort never returns
