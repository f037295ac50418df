"""Who may do what, by the policies that hold."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from hostmesh_controller.api.bodies import Request
from hostmesh_controller.api.documents import sees_host
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Using
from hostmesh_controller.api.principals import Viewer
from hostmesh_controller.explain.permission import UnknownPartyError, Wish, may, summary

router = APIRouter(prefix="/v1/authz", tags=["policies"])

Party = Annotated[str, Field(min_length=1, max_length=8192)]


class PermissionRequest(Request):
    """Who (a host, NAMESPACE/WORKLOAD, SPIFFE ID or IP) asks for what where (a URL, HOST:PORT, NAMESPACE/WORKLOAD)."""

    caller: Party
    target: Party
    path: Annotated[str, Field(max_length=8192)] | None = None
    method: Annotated[str, Field(pattern="^[A-Za-z-]{1,40}$")] | None = None
    headers: Annotated[dict[str, str], Field(max_length=100)] = Field(default_factory=dict)
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    server_name: Annotated[str, Field(max_length=253)] = ""
    source: Annotated[str, Field(max_length=64)] | None = None
    claims: dict[str, Any] | None = None


@router.post("/explain")
async def explain(request: PermissionRequest, parts: Using, who: Viewer) -> dict[str, Any]:
    """Tell whether a request is allowed, by which rule, and why the others do not hold."""
    wish = Wish(
        request.path,
        request.method,
        request.headers,
        request.port,
        request.server_name,
        request.source,
        request.claims,
    )
    try:
        answers = await asyncio.to_thread(may, parts.registrar.mesh, request.caller, request.target, wish)
    except UnknownPartyError as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "unknown_party", str(error)) from error
    answers = tuple(each for each in answers if sees_host(parts, who, each.target.host))
    if not answers:
        message = f"{who.name} may not read the namespaces of what answers at {request.target}"
        raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", message)
    return {"allowed": summary(answers), "answers": [each.body() for each in answers]}
