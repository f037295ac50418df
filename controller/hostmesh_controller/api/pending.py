"""Hosts that wait for an operator: who they say they are, by whose word, and with which key."""

import asyncio
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import APIRouter

from hostmesh_api.joinstring import JoinString
from hostmesh_controller.api.bodies import moment
from hostmesh_controller.api.documents import outcome_body
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Admin
from hostmesh_controller.attest.pending import expired
from hostmesh_controller.csr import fingerprint
from hostmesh_controller.review import read_one
from hostmesh_controller.store import PendingRecord

router = APIRouter(prefix="/v1", tags=["hosts"])

_log = structlog.stdlib.get_logger(__name__)


@router.get("/pending")
async def list_pending(parts: Using, _who: Admin) -> dict[str, Any]:
    """List the hosts that wait, and those that were decided about lately."""
    return {"items": [_body(each) for each in await _living(parts)]}


@router.post("/pending/{name}/approve")
async def approve(name: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Let a host in, by its name or the id of its entry. If it is not registered yet, it is, at its address."""
    entry = await _find(parts, name)
    body: dict[str, Any] = {"objects": []}
    trust = parts.config.attest.trust.get(entry.attestor)
    if not parts.registrar.registered(entry.host) and not (trust is not None and trust.policy.group):
        document = {
            "apiVersion": "hostmesh.io/v1",
            "kind": "Host",
            "metadata": {"name": entry.host},
            "spec": {"addresses": [entry.address]},
        }
        outcome = await parts.registrar.apply(read_one(document, "request", "default"), actor=who.name)
        body = outcome_body(outcome)
    return {**body, **await _decide(parts, entry, "approved", who.name)}


@router.post("/pending/{name}/deny")
async def deny(name: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Keep a host out, by its name or the id of its entry, as long as it asks with this key."""
    return await _decide(parts, await _find(parts, name), "denied", who.name)


@router.get("/join-string")
async def join_string(parts: Using, _who: Admin) -> dict[str, Any]:
    """Return what a host must know to join by evidence: where, and whom to trust. There is no secret in it."""
    endpoints = parts.config.join_endpoints
    return {"join_string": JoinString(endpoints, parts.root_der, "").encode()}


async def _decide(parts: Parts, entry: PendingRecord, decision: str, actor: str) -> dict[str, Any]:
    decided = await asyncio.to_thread(parts.store.decide_pending, entry.id, decision, actor, parts.now())
    if decided is None:
        raise ApiError(HTTPStatus.CONFLICT, "conflict", f"somebody else has decided about {entry.host!r} meanwhile")
    _log.info("host decided about", actor=actor, host=entry.host, id=entry.id, decision=decision)
    return _body(decided)


async def _living(parts: Parts) -> list[PendingRecord]:
    now = parts.now()
    return [each for each in await asyncio.to_thread(parts.store.pending) if not expired(each, now)]


async def _find(parts: Parts, which: str) -> PendingRecord:
    """Return the entry of that id, or the one undecided of that name."""
    waiting = [each for each in await _living(parts) if not each.decision]
    found = [each for each in waiting if each.id == which] or [each for each in waiting if each.host == which]
    if not found:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"no host {which!r} waits; see: hostmesh host pending")
    if len(found) > 1:
        ids = ", ".join(f"{each.id} ({fingerprint(each.key_sha256)})" for each in found)
        message = f"{len(found)} hosts wait as {which!r}, with keys of their own: name one by its id: {ids}"
        raise ApiError(HTTPStatus.CONFLICT, "conflict", message)
    return found[0]


def _body(entry: PendingRecord) -> dict[str, Any]:
    return {
        "id": entry.id,
        "host": entry.host,
        "address": entry.address,
        "attestor": entry.attestor,
        "evidence": entry.summary,
        "key_fingerprint": fingerprint(entry.key_sha256),
        "state": entry.decision or "pending",
        "asked_at": moment(entry.asked_at),
        "seen_at": moment(entry.seen_at),
        "decided_at": moment(entry.decided_at),
        "decided_by": entry.decided_by,
    }
