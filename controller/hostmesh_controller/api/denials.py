"""What callers may not do goes into the audit log; a flood of it is counted, not kept."""

import asyncio
import time
from typing import Final

import structlog
from fastapi import Request
from fastapi.routing import APIRoute

from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Parts
from hostmesh_controller.api.principals import Principal
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.rates import Rates
from hostmesh_controller.store import Actor, RefusedWrite, plain

OF_ONE_PER_MINUTE: Final = 60
OF_ALL_PER_MINUTE: Final = 600
NOBODY: Final = "nobody"
"""The actor of a call that did not prove who it is."""
_READING: Final = frozenset({"validate", "diff", "explain"})
"""Routes that are called by POST and change nothing."""

_log = structlog.stdlib.get_logger(__name__)


class Denials:
    """Remembers what was refused to whom."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._of_one = Rates(OF_ONE_PER_MINUTE, max_keys=10_000)
        self._of_all = Rates(OF_ALL_PER_MINUTE)

    async def note(self, request: Request, refusal: ApiError) -> None:
        """Keep a refusal, of a write or of whoever is nobody."""
        who: Principal | None = getattr(request.state, "principal", None)
        action = _action(request)
        if who is not None and action is None:
            return
        address = request.client.host if request.client else ""
        actor = who.actor if who is not None else Actor(NOBODY, way="none", address=address)
        now_s = time.monotonic()
        if not (self._of_one.take(actor.proof or address, now_s) and self._of_all.take("", now_s)):
            self._parts.metrics.denials_not_kept.inc()
            return
        _log.warning("refused", actor=plain(actor), action=action or "read", address=address, code=refusal.code)
        denial = RefusedWrite(actor, action or "read", refusal.key or _key(request), refusal.message)
        await asyncio.to_thread(self._parts.store.deny, denial, self._parts.now())


def _action(request: Request) -> str | None:
    """Return what a request would have done, None if it only reads: "apply", "tokens.post"."""
    route = request.scope.get("route")
    noun = route.path.split("/")[2] if isinstance(route, APIRoute) and route.path.count("/") > 1 else ""
    if request.method in {"GET", "HEAD", "OPTIONS"} or noun in _READING:
        return None
    return {"apply": "apply", "delete": "delete", "register": "register"}.get(noun, f"{noun}.{request.method.lower()}")


def _key(request: Request) -> ObjectKey:
    values = {name: str(value) for name, value in request.path_params.items()}
    name = values.get("name") or values.get("host") or values.get("token_id") or ""
    return ObjectKey(values.get("kind", ""), values.get("namespace", "").removeprefix("-"), name)
