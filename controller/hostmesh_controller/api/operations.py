"""Health, metrics, version and audit."""

import asyncio
from datetime import timedelta
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from hostmesh_controller.api.bodies import audit_body
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Using
from hostmesh_controller.api.principals import Viewer
from hostmesh_controller.metrics import CONTENT_TYPE, build_version
from hostmesh_controller.store import AuditQuery

router = APIRouter(tags=["operations"])
open_router = APIRouter(tags=["operations"])
"""Routes for probes and scrapers, which have no token; they tell nothing of what is configured."""


@open_router.get("/healthz")
async def healthz() -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok"}


@open_router.get("/readyz")
async def readyz(parts: Using) -> dict[str, Any]:
    """All ports are open and the mesh is built."""
    if not parts.ready():
        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "the controller is starting or stopping")
    return {"status": "ready"}


@open_router.get("/metrics")
async def metrics(parts: Using) -> Response:
    """For Prometheus."""
    return Response(parts.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/v1/version")
async def version(parts: Using, _who: Viewer) -> dict[str, Any]:
    """What runs here."""
    return {
        "version": build_version(),
        "trust_domain": parts.config.trust_domain,
        "domain": parts.config.domain,
        "revision": parts.registrar.revision,
    }


@router.get("/v1/audit")
async def audit(
    parts: Using,
    who: Viewer,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before_id: Annotated[int | None, Query(le=2**63 - 1, ge=0, description="Only records older than this one.")] = None,
    actor: Annotated[str | None, Query(max_length=256)] = None,
    action: Annotated[str | None, Query(max_length=64)] = None,
    kind: Annotated[str | None, Query(max_length=64)] = None,
    namespace: Annotated[str | None, Query(max_length=64, description="- for what is in none.")] = None,
    result: Annotated[str | None, Query(pattern="^(ok|denied)$")] = None,
    since_s: Annotated[int | None, Query(ge=1, le=100 * 365 * 86_400, description="Only of the last so many.")] = None,
) -> dict[str, Any]:
    """Who changed what, or was refused to, newest first; of the namespaces that the caller may read."""
    namespaces = who.namespaces
    if namespace is not None:
        wanted = frozenset({"" if namespace == "-" else namespace})
        namespaces = wanted if namespaces is None else wanted & namespaces
    query = AuditQuery(
        before_id=before_id,
        actor=actor,
        action=action,
        kind=kind,
        result=result,
        since=None if since_s is None else parts.now() - timedelta(seconds=since_s),
        namespaces=namespaces,
    )
    records = await asyncio.to_thread(lambda: parts.store.audit(limit, query=query))
    return {"items": [audit_body(each) for each in records]}
