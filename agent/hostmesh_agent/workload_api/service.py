"""The SPIFFE Workload API in gRPC, with the answers that its specification asks for.

Without the header of the specification: INVALID_ARGUMENT. Nothing for this caller: PERMISSION_DENIED, with the reason
in the log. Its certificate is not there yet: UNAVAILABLE. JWT-SVIDs: UNIMPLEMENTED.
"""

import asyncio
import pwd
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

import grpc
import structlog

from hostmesh_agent.config import WorkloadApiSettings
from hostmesh_agent.entitlements import Caller, WorkloadAccess, entitled, strangers
from hostmesh_agent.workload_api import answers
from hostmesh_agent.workload_api.front import MAX_CONNECTIONS, Front
from hostmesh_agent.workload_api.svids import WorkloadSvids
from hostmesh_api.identity import WorkloadIdentity
from hostmesh_api.v1.workload_pb2 import X509BundlesRequest, X509SVIDRequest

SERVICE: Final = "SpiffeWorkloadAPI"
HEADER: Final = ("workload.spiffe.io", "true")
MAX_STREAMS: Final = 16
"""On one connection."""
MAX_MESSAGE_BYTES: Final = 64 << 10
TELL_AGAIN_S: Final = 60.0
_TOLD_CALLERS: Final = 256
_NO_JWT: Final = "this agent serves X.509-SVIDs: the mesh's authority signs no JWT-SVIDs"
_UNDONE: Final = ("FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID")

Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger(__name__)


class WorkloadApi:
    """Serves what `svids` holds to those whom `settings` names."""

    def __init__(self, settings: WorkloadApiSettings, svids: WorkloadSvids, front: Front, trust_domain: str) -> None:
        self._access: tuple[WorkloadAccess, ...] = settings.workloads
        self._svids = svids
        self._front = front
        self._trust_domain = trust_domain
        self._told: dict[tuple[int, str], float] = {}

    def changed(self) -> None:
        """Look again at what each open stream is told."""

    def strangers(self) -> tuple[str, ...]:
        """Return what agent.toml names and no workload of this host is."""
        identities = self._svids.identities
        return () if identities is None else strangers(identities, self._access)

    async def run(self) -> None:
        """Serve until cancelled."""
        self._front.prepare()
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.max_metadata_size", MAX_MESSAGE_BYTES),
            ],
            maximum_concurrent_rpcs=MAX_CONNECTIONS * 2,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._methods()),))
        server.add_insecure_port(f"unix:{self._front.server}")
        await server.start()
        try:
            await self._front.run()
        finally:
            await server.stop(grace=None)

    def _methods(self) -> "dict[str, grpc.RpcMethodHandler[Any, Any]]":
        streams: dict[str, tuple[Any, Any]] = {
            "FetchX509SVID": (self._fetch_svids, X509SVIDRequest),
            "FetchX509Bundles": (self._fetch_bundles, X509BundlesRequest),
        }
        undone = grpc.unary_unary_rpc_method_handler(_undone)
        return dict.fromkeys(_UNDONE, undone) | {
            name: grpc.unary_stream_rpc_method_handler(act, request_deserializer=request.FromString)
            for name, (act, request) in streams.items()
        }

    # gRPC tells by the function that it is an asynchronous generator.

    async def _fetch_svids(self, _: X509SVIDRequest, context: Context) -> AsyncIterator[bytes]:
        async for each in self._stream(context, self._svids_of):
            yield each

    async def _fetch_bundles(self, _: X509BundlesRequest, context: Context) -> AsyncIterator[bytes]:
        async for each in self._stream(context, self._bundle):
            yield each

    def _svids_of(self, identities: Sequence[WorkloadIdentity]) -> bytes:
        held = self._svids.held(identities)
        response = answers.svids_response(held, self._svids.bundle_pem)
        return response.SerializeToString(deterministic=True) if held else b""

    def _bundle(self, _: Sequence[WorkloadIdentity]) -> bytes:
        response = answers.bundles_response(self._trust_domain, self._svids.bundle_pem)
        return response.SerializeToString(deterministic=True) if self._svids.bundle_pem else b""

    async def _stream(
        self, context: Context, answer: Callable[[Sequence[WorkloadIdentity]], bytes]
    ) -> AsyncIterator[bytes]:
        """Yield the whole answer now and whenever it is another."""
        await _require_header(context)
        last = b""
        while True:
            change = self._svids.change
            now = answer(await self._entitled(context))
            if not now and not last:
                await _abort(context, grpc.StatusCode.UNAVAILABLE, "the certificate is not there yet: try again")
            if now and now != last:
                last = now
                yield now
            await change.wait()

    async def _entitled(self, context: Context) -> Sequence[WorkloadIdentity]:
        caller = self._front.caller(context.peer())
        if caller is None:
            # Nobody comes here but through the front.
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, "this connection has no known caller")
        identities = self._svids.identities
        if identities is None:
            await _abort(context, grpc.StatusCode.UNAVAILABLE, "the agent has no configuration yet: try again")
        uids = await asyncio.to_thread(_uids, [user for each in self._access for user in each.users])
        found = entitled(caller, identities, self._access, uids)
        if not found:
            self._tell(caller)
            message = "no identity for this caller; the agent's log says why"
            await _abort(context, grpc.StatusCode.PERMISSION_DENIED, message)
        return found

    def _tell(self, caller: Caller) -> None:
        """Log why a caller gets nothing, now and then: whoever asks all day must not fill the disk."""
        key, now = (caller.uid, caller.unit), time.monotonic()
        if now - self._told.get(key, -TELL_AGAIN_S) < TELL_AGAIN_S:
            return
        if len(self._told) >= _TOLD_CALLERS:
            self._told.clear()
        self._told[key] = now
        known = sorted({f"{each.namespace}/{each.service_account}" for each in self._svids.identities or ()})
        log.warning(
            "workload api: nothing for this caller",
            caller=str(caller),
            reason="no entry of workload_api.workloads for a workload of this host names its user or unit (agent.toml)",
            workloads=known,
        )


async def _undone(request: bytes, context: Context) -> bytes:
    del request
    await _require_header(context)
    await _abort(context, grpc.StatusCode.UNIMPLEMENTED, _NO_JWT)


async def _require_header(context: Context) -> None:
    metadata = context.invocation_metadata() or ()
    if HEADER not in {(str(key), str(value)) for key, value in metadata}:
        message = f"the header {HEADER[0]}: {HEADER[1]} is missing: this is no call of a SPIFFE client"
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message)


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError  # abort never returns


def _uids(users: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for user in users:
        with suppress(KeyError):
            found[user] = pwd.getpwnam(user).pw_uid
    return found
