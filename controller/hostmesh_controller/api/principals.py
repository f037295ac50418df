"""Who calls the API, by which proof, and what they may do."""

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import parts_of
from hostmesh_controller.client_certificates import AdminCertificate, UnreadableCertificateError, principal_of, read
from hostmesh_controller.grants import Grant, Role, parse_grants, readable, role_of
from hostmesh_controller.store import Actor
from hostmesh_controller.tokens import digest

__all__ = ["LOCAL", "PEER_CERTIFICATE", "Admin", "Editor", "LocalSocket", "Principal", "RequireRole", "Role", "Viewer"]

LOCAL: Final = "hostmesh.local"
"""Key of an ASGI scope that came over the unix socket. Only `LocalSocket` sets it."""
PEER_UID: Final = "hostmesh.peer_uid"
"""Key of an ASGI scope: the user id of the process at the other end of the unix socket, as the kernel tells it."""
PEER_CERTIFICATE: Final = "hostmesh.peer_certificate"
"""Key of an ASGI scope: the verified certificate (DER) of a client that showed one. Only the server sets it."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls.

    `way` is how they proved it (socket, token, certificate), `proof` which one it was (the user id, the token's id, the
    certificate's serial), `address` where they call from, "" over the socket.
    """

    name: str
    grants: tuple[Grant, ...]
    way: str = "socket"
    proof: str = ""
    address: str = ""

    @property
    def role(self) -> Role:
        """The highest role of all."""
        return role_of(self.grants) or Role.VIEWER

    @property
    def actor(self) -> Actor:
        """For the audit."""
        return Actor(self.name, way=self.way, proof=self.proof, address=self.address)

    @property
    def namespaces(self) -> frozenset[str] | None:
        """Those that may be read; None: all, and what is in none."""
        return readable(self.grants)

    def reads(self, namespace: str) -> bool:
        """Tell whether objects of a namespace ("": of none) may be read."""
        mine = self.namespaces
        return mine is None or namespace in mine


class LocalSocket:
    """Wraps the app for the unix socket, whose 0600 mode is the proof that the caller is root."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, LOCAL: True}, receive, send)


class RequireRole:
    """A route's dependency: the caller, refused unless they have at least `role`, somewhere."""

    def __init__(self, role: Role) -> None:
        self.role = role

    async def __call__(self, request: Request) -> Principal:
        principal = await _identify(request)
        request.state.role = principal.role.word
        request.state.principal = principal
        if principal.role < self.role:
            raise ApiError(
                HTTPStatus.FORBIDDEN,
                "forbidden",
                f"{principal.name} has the role {principal.role.word}; this needs {self.role.word}",
            )
        return principal


Viewer = Annotated[Principal, Depends(RequireRole(Role.VIEWER))]
Editor = Annotated[Principal, Depends(RequireRole(Role.EDITOR))]
Admin = Annotated[Principal, Depends(RequireRole(Role.ADMIN))]

_ROOT: Final = (Grant(Role.ADMIN),)


async def _identify(request: Request) -> Principal:
    scope = request.scope
    if scope.get(LOCAL) is True:
        uid = scope.get(PEER_UID)
        return Principal("root", _ROOT, "socket", "" if uid is None else f"uid {uid}")
    address = request.client.host if request.client else ""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return await _by_token(request, token.strip(), address)
    certificate = scope.get(PEER_CERTIFICATE)
    if certificate is not None and not scheme:
        return _by_certificate(request, certificate, address)
    raise _unauthorized("give an API token: Authorization: Bearer …, or HOSTMESH_TOKEN for the CLI")


async def _by_token(request: Request, token: str, address: str) -> Principal:
    parts = parts_of(request)
    record = await asyncio.to_thread(parts.store.find_api_token, digest(token))
    if record is None:
        raise _unauthorized("the API token is not known; it may have been revoked")
    now = parts.now()
    if record.expires_at is not None and record.expires_at <= now:
        raise _unauthorized("the API token has expired; ask an administrator for a new one")
    if parts.uses.due(record.id, now):
        await asyncio.to_thread(parts.store.note_api_token_use, record.id, now)
    return Principal(record.name, parse_grants(record.grants or record.role), "token", record.id, address)


def _by_certificate(request: Request, der: Any, address: str) -> Principal:
    try:
        found: AdminCertificate = read(der)
    except UnreadableCertificateError as error:
        raise _unauthorized(f"the client certificate cannot be used: {error}") from error
    client = principal_of(found, parts_of(request).config.admin.clients)
    if client is None:
        raise _unauthorized(
            f"the client certificate ({found.shown}) is nobody's here: [[admin.client]] in controller.toml says whose"
        )
    name, grants = client
    return Principal(name, grants, "certificate", found.serial, address)


def _unauthorized(message: str) -> ApiError:
    return ApiError(HTTPStatus.UNAUTHORIZED, "unauthorized", message)
