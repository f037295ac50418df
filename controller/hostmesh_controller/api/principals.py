"""Who calls the API, and what a role may do."""

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from http import HTTPStatus
from typing import Annotated, Final

from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import parts_of
from hostmesh_controller.tokens import digest

LOCAL: Final = "hostmesh.local"
"""Key of an ASGI scope that came over the unix socket. Only `LocalSocket` sets it."""


class Role(IntEnum):
    """Each role may do all that the ones below it may."""

    VIEWER = 1
    """Reads."""
    EDITOR = 2
    """Applies and deletes configuration objects."""
    ADMIN = 3
    """Also hosts, join tokens and API tokens: whatever gives someone or something an identity."""


@dataclass(frozen=True, slots=True)
class Principal:
    name: str
    role: Role


ROOT: Final = Principal("root", Role.ADMIN)


class LocalSocket:
    """Wraps the app for the unix socket, whose 0600 mode is the proof that the caller is root."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, LOCAL: True}, receive, send)


class RequireRole:
    """A route's dependency: the caller, refused unless they have at least `role`."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request) -> Principal:
        principal = await _identify(request)
        request.state.role = principal.role.name.lower()
        if principal.role < self.role:
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                "forbidden",
                f"{principal.name} has the role {principal.role.name.lower()}; this needs {self.role.name.lower()}",
            )
        return principal


Viewer = Annotated[Principal, Depends(RequireRole(Role.VIEWER))]
Editor = Annotated[Principal, Depends(RequireRole(Role.EDITOR))]
Admin = Annotated[Principal, Depends(RequireRole(Role.ADMIN))]


async def _identify(request: Request) -> Principal:
    if request.scope.get(LOCAL) is True:
        return ROOT
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthorized("give an API token: Authorization: Bearer …, or HOSTMESH_TOKEN for the CLI")
    parts = parts_of(request)
    record = await asyncio.to_thread(parts.store.find_api_token, digest(token.strip()))
    if record is None:
        raise _unauthorized("the API token is not known; it may have been revoked")
    if record.expires_at is not None and record.expires_at <= parts.now():
        raise _unauthorized("the API token has expired; ask an administrator for a new one")
    return Principal(record.name, Role[record.role.upper()])


def _unauthorized(message: str) -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, "unauthorized", message)
