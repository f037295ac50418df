"""What really calls what, and what follows from it."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from hostmesh_api.call_stats import Security
from hostmesh_controller.api.bodies import moment
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Viewer
from hostmesh_controller.callers import Addresses, addresses_of, whence
from hostmesh_controller.load import Problem
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.mesh.records import Workload, WorkloadKey
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.readiness import PlainCaller, Readiness, Seen, readiness, refused_by, security_of
from hostmesh_controller.review import problem_body
from hostmesh_controller.store import CallRecord
from hostmesh_controller.suggest_policy import Suggestion, suggest

router = APIRouter(prefix="/v1", tags=["observed calls"])

DAY_S = 86_400
_MISSED_REPORTS = 2
_REPORT_SLACK_S = 60

Namespace = Annotated[str, Query(max_length=63, description="Only of this namespace.")]
Workloads = Annotated[tuple[str, ...], Query(max_length=100, description="Only these workloads, by name.")]


@router.get("/calls")
async def calls(
    parts: Using,
    who: Viewer,
    namespace: Namespace = "",
    workload: Workloads = (),
    plaintext: bool = False,
) -> dict[str, Any]:
    """Who calls which port of which workload. `plaintext`: only those without the mesh's mutual TLS."""
    mesh, records = parts.registrar.mesh, tuple(parts.observations.calls.values())

    def body() -> list[dict[str, Any]]:
        known = addresses_of(mesh)
        chosen = (
            each
            for each in records
            if who.reads(each.key.namespace) and _wanted(each.key.namespace, each.key.workload, namespace, workload)
        )
        return [
            _call_body(mesh, known, each)
            for each in sorted(chosen, key=lambda each: each.key)
            if not plaintext or security_of(each.key) is not Security.MUTUAL_TLS
        ]

    return {"items": await asyncio.to_thread(body)}


@router.get("/mtls/readiness")
async def mtls_readiness(
    parts: Using,
    who: Viewer,
    namespace: Namespace = "",
    workload: Workloads = (),
    window_s: Annotated[int, Query(ge=1, le=400 * DAY_S, description="How long there must be no plaintext.")] = DAY_S,
) -> dict[str, Any]:
    """Whether each port could demand mutual TLS of everybody, and who still speaks plaintext."""
    seen, mesh, now = await seen_of(parts), parts.registrar.mesh, parts.now()
    window = timedelta(seconds=window_s)
    found = await asyncio.to_thread(readiness, mesh, seen, now, window)
    readable = (each for each in found if who.reads(each.workload.namespace))
    chosen = [each for each in readable if _wanted(*each.workload, namespace, workload)]
    return {
        "ready": bool(chosen) and all(each.ready for each in chosen),
        "window_s": window_s,
        "items": [_readiness_body(each) for each in chosen],
    }


@router.get("/authz/suggestions")
async def suggestions(
    parts: Using,
    who: Viewer,
    namespace: Namespace = "",
    workload: Workloads = (),
) -> dict[str, Any]:
    """AuthorizationPolicies, in dry-run form, that allow the calls that were seen."""
    seen, mesh, now = await seen_of(parts), parts.registrar.mesh, parts.now()

    def wanted(each: Workload) -> bool:
        return who.reads(each.key.namespace) and _wanted(*each.key, namespace, workload)

    found = await asyncio.to_thread(suggest, mesh, seen, now, wanted)
    return {"items": [_suggestion_body(each) for each in found]}


async def seen_of(parts: Parts) -> Seen:
    """Return all that was observed, as of now."""
    states = parts.registrar.states
    hosts = {host: await states.state(host) for host in sorted(parts.registrar.mesh.hosts)}
    stale = timedelta(seconds=_MISSED_REPORTS * states.interval_s() + _REPORT_SLACK_S)
    return Seen(dict(parts.observations.calls), dict(parts.observations.ports), hosts, stale)


async def strict_warnings(parts: Parts, items: Sequence[ApiObject]) -> list[dict[str, object]]:
    """Return a warning for each port whose callers objects that were or would be applied refuse from now on."""
    if not any(each.key.kind == "PeerAuthentication" for each in items):
        return []
    seen, mesh = await seen_of(parts), parts.registrar.mesh
    found = await asyncio.to_thread(lambda: list(refused_by(mesh, seen, items)))
    return [problem_body(_problem(item, text)) for item, text in found]


def _problem(item: ApiObject, text: str) -> Problem:
    path = ("spec", "mtls")
    place = item.origin.place(path) if item.origin is not None else None
    file = item.origin.file if item.origin is not None else str(item.key)
    line, column = (place.line, place.column) if place is not None else (0, 0)
    return Problem(file, line, column, ".".join(path), text, "plaintext-callers", "warning", item.key)


def _wanted(namespace: str, name: str, only_namespace: str, only: Iterable[str]) -> bool:
    names = set(only)
    return (not only_namespace or namespace == only_namespace) and (not names or name in names)


def _call_body(mesh: Mesh, known: Addresses, record: CallRecord) -> dict[str, Any]:
    key = record.key
    security = security_of(key)
    body = {
        "namespace": key.namespace,
        "workload": key.workload,
        "port": key.port,
        "security": security.value,
        "caller": key.caller or None,
        "protocol": "http" if record.methods else "tcp",
        "methods": sorted(record.methods),
        "count": record.count,
        "denied": record.denied,
        "first_seen": moment(record.first_seen),
        "last_seen": moment(record.last_seen),
    }
    workload = mesh.workloads.get(WorkloadKey(key.namespace, key.workload))
    if security is not Security.MUTUAL_TLS and workload is not None:
        found = whence(mesh, known, key.caller, workload, key.port)
        body |= {"host": found.host, "workloads": list(found.workloads), "reason": found.reason.value, "why": found.why}
    return body


def _readiness_body(each: Readiness) -> dict[str, Any]:
    return {
        "namespace": each.workload.namespace,
        "workload": each.workload.name,
        "port": each.port,
        "protocol": each.protocol,
        "host": each.host,
        "mode": each.mode.value,
        "state": each.state.value,
        "ready": each.ready,
        "why": each.why,
        "watched_since": moment(each.since),
        "plaintext": [_caller_body(caller) for caller in each.callers],
    }


def _caller_body(caller: PlainCaller) -> dict[str, Any]:
    record, found = caller.record, caller.whence
    return {
        "caller": record.key.caller or None,
        "own_tls": caller.own_tls,
        "host": found.host,
        "workloads": list(found.workloads),
        "reason": found.reason.value,
        "why": found.why,
        "count": record.count,
        "denied": record.denied,
        "methods": sorted(record.methods),
        "first_seen": moment(record.first_seen),
        "last_seen": moment(record.last_seen),
    }


def _suggestion_body(each: Suggestion) -> dict[str, Any]:
    return {
        "namespace": each.namespace,
        "workloads": list(each.workloads),
        "policy": each.policy,
        "comments": list(each.comments),
    }
