"""What a call from a host would meet."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from hostmesh_controller.api.bodies import Request
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.fleet import proxy_body
from hostmesh_controller.api.hosts import view_of
from hostmesh_controller.api.parts import Using
from hostmesh_controller.api.principals import Viewer
from hostmesh_controller.explain import explain as explained
from hostmesh_controller.explain import parse_call

router = APIRouter(prefix="/v1", tags=["proxies"])

_PROXY_FACTS = ("connected", "settled", "envoy", "capture")


class ExplainRequest(Request):
    """A call as a program makes it: a URL, or HOST:PORT."""

    host: str
    target: Annotated[str, Field(max_length=8192)]
    method: Annotated[str, Field(pattern="^[A-Za-z-]{1,40}$")] = "GET"
    headers: Annotated[dict[str, str], Field(max_length=100)] = Field(default_factory=dict)
    address: str | None = None


@router.post("/explain")
async def explain(request: ExplainRequest, parts: Using, who: Viewer) -> dict[str, Any]:
    """Tell which rule, listener, chain, route, cluster and endpoints a call meets, and why."""
    proxy = proxy_body(await view_of(parts, who, request.host), parts.now())
    try:
        call = parse_call(request.target, method=request.method, headers=request.headers, address=request.address)
    except ValueError as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "bad_target", str(error)) from error
    story = await asyncio.to_thread(explained, parts.registrar.mesh, request.host, call)
    return {"host": request.host, "proxy": {name: proxy[name] for name in _PROXY_FACTS}, **story.body()}
