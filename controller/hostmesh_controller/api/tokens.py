"""Join tokens, with which hosts join, and API tokens, with which people and programs call this API."""

import asyncio
import secrets
from collections.abc import Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import APIRouter

from hostmesh_api.joinstring import JoinString
from hostmesh_controller.access import check_grants
from hostmesh_controller.api.bodies import ApiTokenRequest, TokenRequest, api_token_body, token_body
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Admin, Principal
from hostmesh_controller.grants import grants_text
from hostmesh_controller.groups import group_key
from hostmesh_controller.store import ApiTokenRecord, TokenRecord
from hostmesh_controller.tokens import digest, new_group_token, new_token

router = APIRouter(prefix="/v1", tags=["tokens"])

_API_TOKEN_BYTES: Final = 32

_log = structlog.stdlib.get_logger(__name__)


@router.post("/tokens")
async def create_token(request: TokenRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Make a join token for a registered host or a group; the join string is in this answer and never again."""
    if request.group:
        return await _group_join_string(parts, who, request)
    if not parts.registrar.registered(request.host):
        message = f"host {request.host!r} is not registered; do so with: hostmesh register {request.host} --address IP"
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", message)
    return await join_string(parts, who, request.host, request.ttl_s, request.allowed_addresses)


@router.get("/tokens")
async def list_tokens(parts: Using, _who: Admin) -> dict[str, Any]:
    """List join tokens, without what makes them work."""
    now = parts.now()
    return {"items": [token_body(each, now) for each in await asyncio.to_thread(parts.store.tokens)]}


@router.delete("/tokens/{token_id}")
async def revoke_token(token_id: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Make a join token useless."""
    if not await asyncio.to_thread(parts.store.revoke_token, token_id, parts.now(), who.actor):
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"no join token {token_id!r} that could still be used")
    _log.info("join token revoked", actor=who.name, token_id=token_id)
    return {"id": token_id, "revoked": True}


@router.post("/api-tokens")
async def create_api_token(request: ApiTokenRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Make an API token; it is in this answer and never again."""
    now = parts.now()
    grants = request.parsed()
    problem = check_grants(grants, parts.config.root_namespace)
    if problem is not None:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", problem)
    token = secrets.token_urlsafe(_API_TOKEN_BYTES)
    record = ApiTokenRecord(
        id=secrets.token_hex(6),
        name=request.name,
        role=max(each.role for each in grants).word,
        grants=grants_text(grants),
        created_by=who.name,
        digest=digest(token),
        created_at=now,
        expires_at=now + timedelta(seconds=request.ttl_s) if request.ttl_s is not None else None,
    )
    await asyncio.to_thread(parts.store.add_api_token, record, who.actor)
    _log.info("API token made", actor=who.name, token_id=record.id, name=record.name, grants=record.grants)
    return {**api_token_body(record, now), "token": token}


@router.get("/api-tokens")
async def list_api_tokens(parts: Using, _who: Admin) -> dict[str, Any]:
    """List API tokens, without what makes them work."""
    now = parts.now()
    return {"items": [api_token_body(each, now) for each in await asyncio.to_thread(parts.store.api_tokens)]}


@router.delete("/api-tokens/{token_id}")
async def revoke_api_token(token_id: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Make an API token useless, at once."""
    if not await asyncio.to_thread(parts.store.revoke_api_token, token_id, parts.now(), who.actor):
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"no API token {token_id!r} that could still be used")
    _log.info("API token revoked", actor=who.name, token_id=token_id)
    return {"id": token_id, "revoked": True}


async def join_string(
    parts: Parts, who: Principal, host: str, ttl_s: int, allowed: Sequence[str] = ()
) -> dict[str, Any]:
    """Make a token for a host and wrap it up with all that the host needs to join."""
    try:
        token, record = new_token(host, parts.now(), timedelta(seconds=ttl_s), who.actor, allowed=allowed)
    except ValueError as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", str(error)) from error
    return await _keep(parts, token, record)


async def _group_join_string(parts: Parts, who: Principal, request: TokenRequest) -> dict[str, Any]:
    group = group_key(request.group)
    if group is None or parts.registrar.get(group) is None:
        message = (
            f"there is no WorkloadGroup {request.group!r}; name one as NAMESPACE/NAME (hostmesh get workloadgroups)"
        )
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", message)
    try:
        token, record = new_group_token(
            (group.namespace, group.name),
            parts.now(),
            timedelta(seconds=request.ttl_s),
            who.actor,
            max_joins=request.max_joins,
            allowed=request.allowed_addresses,
        )
    except ValueError as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", str(error)) from error
    return await _keep(parts, token, record)


async def _keep(parts: Parts, token: str, record: TokenRecord) -> dict[str, Any]:
    await asyncio.to_thread(parts.store.add_token, record)
    endpoints = parts.config.join_endpoints
    text = JoinString(endpoints=endpoints, root_der=parts.root_der, token=token).encode()
    return {**token_body(record, parts.now()), "join_string": text}
