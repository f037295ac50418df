"""How much of gRPC a caller may ask: calls a minute, calls at once, and bytes of a request, before it is parsed."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from hostmesh_controller.limits import Limits
from hostmesh_controller.peers import Context, caller_of, peer_address
from hostmesh_controller.rates import Rates, source_of

_log: Final = structlog.get_logger(__name__)

REPORT_BYTES: Final = 512 * 1024
"""Of a report. It is cut to 2,048 sockets and 1,024 leases, which are 200 KiB."""
REPORTS_PER_MINUTE: Final = 600
"""Of a host; a host that changes all the time reports twice a second."""
FETCHES_PER_MINUTE: Final = 3000
"""Of a host: pieces of half a MiB, Envoy has 200 of them."""
REQUEST_BYTES: Final = 64 * 1024
"""Of any other request: a certificate request has at most 4 KiB."""

if TYPE_CHECKING:
    # Generic in the stubs alone.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor


@dataclass(slots=True)
class Policy:
    """`rates` are those of methods, by name; None of `at_once` is any number of calls."""

    key: Callable[[Context], str]
    rates: Mapping[str, Rates]
    at_once: int | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


class LimitCalls(Interceptor):
    """Refuses the calls of whoever makes too many, and requests that are too large for their method."""

    def __init__(self, policy: Policy, now_s: Callable[[], float] = time.monotonic) -> None:
        self._policy = policy
        self._now_s = now_s
        self._open: Counter[str] = Counter()

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler":
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method).rpartition("/")[2]
        if getattr(handler, "unary_unary", None) is not None:
            # Bytes come in here: what is too large is refused before it is made a message of a hundred times the size.
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary, handler.request_deserializer),
                request_deserializer=None,
                response_serializer=handler.response_serializer,
            )
        if getattr(handler, "stream_stream", None) is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.stream_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return handler

    def _unary(self, method: str, answer: Any, parse: Any) -> Any:
        limit = self._policy.sizes.get(method, REQUEST_BYTES)

        async def bounded(data: bytes, context: Context) -> Any:
            key = await self._enter(method, context)
            try:
                if len(data) > limit:
                    await _refuse(context, f"a request of {len(data)} bytes; {method} takes at most {limit}")
                try:
                    request = parse(data)
                except DecodeError:
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"not a request of {method}")
                return await answer(request, context)
            finally:
                self._leave(key)

        return bounded

    def _stream(self, method: str, serve: Any) -> Any:
        async def bounded(requests: Any, context: Context) -> None:
            key = await self._enter(method, context)
            try:
                await serve(requests, context)
            finally:
                self._leave(key)

        return bounded

    async def _enter(self, method: str, context: Context) -> str:
        key = self._policy.key(context)
        rates, at_once = self._policy.rates.get(method), self._policy.at_once
        if at_once is not None and self._open[key] >= at_once:
            await _refuse(context, f"more than {at_once} calls at once; wait until some have ended")
        if rates is not None and not rates.take(key, self._now_s()):
            await _refuse(context, f"too many calls of {method} in a minute; try again later")
        self._open[key] += 1
        return key

    def _leave(self, key: str) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


async def _refuse(context: Context, message: str) -> NoReturn:
    _log.warning("call_refused", peer=context.peer(), code="RESOURCE_EXHAUSTED", reason=message)
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
    raise AssertionError  # abort never returns


def for_join(limits: Limits, now_s: Callable[[], float] = time.monotonic) -> LimitCalls:
    """Return the limits of the join port: of each address, since nobody has a name there yet."""
    attempts = Rates(limits.joins_per_minute)
    rates = {"Join": attempts, "Reattest": attempts, "Challenge": Rates(limits.joins_per_minute)}
    policy = Policy(_address, rates, limits.calls_per_host, {"Join": limits.join_message_bytes})
    return LimitCalls(policy, now_s)


def for_agents(limits: Limits, now_s: Callable[[], float] = time.monotonic) -> LimitCalls:
    """Return the limits of the agents' port: of each host, wherever it calls from."""
    certificates = Rates(limits.certificates_per_minute)
    rates = {
        "RenewHost": certificates,
        "IssueWorkload": certificates,
        "Report": Rates(REPORTS_PER_MINUTE),
        "Fetch": Rates(FETCHES_PER_MINUTE),
    }
    return LimitCalls(Policy(caller_of, rates, limits.calls_per_host, {"Report": REPORT_BYTES}), now_s)


def _address(context: Context) -> str:
    return source_of(peer_address(context.peer()))


class StreamBytes:
    """How many bytes of requests the streams of a host may bring: parsing costs far more than sending."""

    def __init__(self, limits: Limits, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rates = Rates(limits.agents_bytes_per_minute)
        self._now_s = now_s

    def take(self, host: str, size_bytes: int) -> bool:
        """Tell whether a host may send a request of that size now, and count it."""
        return self._rates.take(host, self._now_s(), size_bytes)
