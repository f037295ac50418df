"""Counts agents' calls: joins by attestor and result, certificates by what they are for."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import grpc

from hostmesh_controller.metrics import Metrics

_CERTIFICATES: Final = {"Join": "host", "Reattest": "host", "RenewHost": "host", "IssueWorkload": "workload"}

if TYPE_CHECKING:
    # Generic in the stubs alone.
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor


class CountCalls(Interceptor):
    """Counts by how each call ended; streams pass by."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler":
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method).rpartition("/")[2]
        if handler is None or handler.unary_unary is None or method not in _CERTIFICATES:
            return handler
        answer = handler.unary_unary

        async def counted(request: Any, context: Any) -> Any:
            result = "failed"
            try:
                response = await answer(request, context)
                result = "pending" if method == "Join" and response.HasField("pending") else "ok"
                return response
            finally:
                self._count(method, _attestor(method, request), result, context)

        return grpc.unary_unary_rpc_method_handler(
            counted,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _count(self, method: str, attestor: str, result: str, context: Any) -> None:
        if result == "ok":
            self._metrics.certificates_issued.labels(_CERTIFICATES[method]).inc()
        elif result == "failed":
            code = context.code()
            result = code.name.lower() if isinstance(code, grpc.StatusCode) else "failed"
        if attestor:
            self._metrics.join_attempts.labels(attestor, result).inc()


def _attestor(method: str, request: Any) -> str:
    """Return what proves who joins; "" for those who have joined."""
    if method == "Join":
        return request.WhichOneof("evidence") or "token"
    return "last_certificate" if method == "Reattest" else ""
