"""Limits on what a caller may send, enforced before anything is parsed."""

import asyncio
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hostmesh_controller.api.errors import error_response
from hostmesh_controller.limits import Limits


class BoundedBody:
    """ASGI middleware: reads a request's body whole, refuses what is too large or slow, hands it on as one message."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limit_bytes = limits.request_bytes
        self._limit_s = limits.request_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._limit_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            message = f"the request did not come whole within {self._limit_s} s"
            await error_response(HTTPStatus.REQUEST_TIMEOUT, "too_slow", message)(scope, receive, send)
            return
        if body is None:
            response = error_response(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                "too_large",
                f"the request is larger than {self._limit_bytes} bytes; send fewer documents at a time",
            )
            await response(scope, receive, send)
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limit_bytes:
            return None
        parts: list[bytes] = []
        size_bytes = 0
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size_bytes += len(parts[-1])
            if size_bytes > self._limit_bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def depth_of(value: object) -> int:
    """Deepest nesting of lists and maps in a parsed document; walks level by level, so there is no stack to exhaust."""
    depth = 0
    level: list[object] = [value]
    while level := [
        item
        for holder in level
        if isinstance(holder, dict | list)
        for item in (holder.values() if isinstance(holder, dict) else holder)
    ]:
        depth += 1
    return depth
