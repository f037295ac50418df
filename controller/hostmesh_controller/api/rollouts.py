"""Rollouts: how far they are, and what operators do with them."""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

from hostmesh_controller.api.bodies import moment
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Admin
from hostmesh_controller.rollout.progress import Mark, Touched
from hostmesh_controller.rollout.steering import NotNowError
from hostmesh_controller.rollout_keeper import UnknownRolloutError, View

router = APIRouter(prefix="/v1", tags=["rollouts"])


@router.get("/rollouts")
async def list_rollouts(parts: Using, _who: Admin) -> dict[str, Any]:
    """All rollouts, and how far they are."""
    await parts.rollouts.look()
    return {"items": [_body(each) for each in parts.rollouts.views()]}


@router.get("/rollouts/{name}")
async def get_rollout(name: str, parts: Using, _who: Admin) -> dict[str, Any]:
    """One rollout, with its hosts."""
    await parts.rollouts.look()
    try:
        return _with_hosts(parts.rollouts.view(name))
    except UnknownRolloutError:
        raise _unknown(name) from None


@router.post("/rollouts/{name}/pause")
async def pause(name: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Let no more hosts have the new version."""
    return await _ask(parts, name, "pause", who.name)


@router.post("/rollouts/{name}/resume")
async def resume(name: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Go on after a pause, or try again after a halt."""
    return await _ask(parts, name, "resume", who.name)


@router.post("/rollouts/{name}/abort")
async def abort(name: str, parts: Using, who: Admin) -> dict[str, Any]:
    """End it for good, and return all hosts to what they had."""
    return await _ask(parts, name, "abort", who.name)


async def _ask(parts: Parts, name: str, verb: str, actor: str) -> dict[str, Any]:
    try:
        return _with_hosts(await parts.rollouts.ask(name, verb, actor))
    except UnknownRolloutError:
        raise _unknown(name) from None
    except NotNowError as error:
        raise ApiError(HTTPStatus.CONFLICT, "conflict", f"rollout {name!r}: {error}") from None


def _unknown(name: str) -> ApiError:
    return ApiError(HTTPStatus.NOT_FOUND, "not_found", f"no rollout {name!r}; see: hostmesh rollout status")


def _body(view: View) -> dict[str, Any]:
    progress = view.progress
    counts = {mark.value: len(progress.marked(mark)) for mark in Mark}
    last = len(view.spec.waves) + 1
    return {
        "name": view.name,
        "component": view.spec.component,
        "source": view.spec.source,
        "version": progress.version,
        "stage": progress.stage.value,
        "paused": progress.paused or view.spec.paused,
        "wave": "canary" if progress.wave == 0 else f"{progress.wave} of {last}",
        "hosts_total": view.total,
        "counts": counts,
        "absent": sorted(progress.absent),
        "reason": progress.reason,
        "problems": list(view.problems),
    }


def _with_hosts(view: View) -> dict[str, Any]:
    hosts = view.progress.hosts
    return {**_body(view), "hosts": [_host(view, name, hosts[name]) for name in sorted(hosts)]}


def _host(view: View, name: str, touched: Touched) -> dict[str, Any]:
    return {
        "host": name,
        "state": touched.mark.value,
        "version": view.versions.get(name, ""),
        "before": touched.before,
        "since": moment(datetime.fromtimestamp(touched.since, UTC)),
        "reason": touched.reason or view.reasons.get(name, ""),
    }
