"""Hosts: what is known of them, how they come in and how they are put out."""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query

from hostmesh_controller.api.bodies import ExpelRequest, RegisterRequest
from hostmesh_controller.api.documents import outcome_body, sees_host
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.fleet import HostView, host_body, host_details, is_overdue
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Admin, Principal, Viewer
from hostmesh_controller.api.registration import registration
from hostmesh_controller.api.tokens import join_string
from hostmesh_controller.enrolments import Denial
from hostmesh_controller.groups import MEMBER_OF
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.registrar import MissingError
from hostmesh_controller.review import Documents, read_one

router = APIRouter(prefix="/v1", tags=["hosts"])


@router.get("/hosts")
async def list_hosts(parts: Using, who: Viewer) -> dict[str, Any]:
    """Every registered host that the caller may know of."""
    return {"items": [host_body(each) for each in await views(parts, who)]}


@router.get("/leases")
async def show_leases(parts: Using, _: Viewer) -> dict[str, Any]:
    """How many hosts live, are missing or are withdrawn, and what keeps hosts that are missing from being withdrawn."""
    leases = parts.registrar.leases.leases
    return {
        "hosts": {str(sign): count for sign, count in leases.counts().items()},
        "envoy_down": leases.stalled_count(),
        "panic_guard": leases.panic,
        "limits": {"panic_percent": leases.limits.percent, "panic_hosts": leases.limits.hosts},
    }


@router.get("/hosts/{host}")
async def show_host(host: str, parts: Using, who: Viewer) -> dict[str, Any]:
    """One host, with its last report and its certificates."""
    view = await view_of(parts, who, host)
    return host_details(view, await asyncio.to_thread(parts.store.certificates, host))


@router.delete("/hosts/{host}")
async def remove_host(
    host: str,
    parts: Using,
    who: Admin,
    workloads: Annotated[bool, Query(description="Also delete the WorkloadEntries on it.")] = False,
) -> dict[str, Any]:
    """Put a host out of the mesh: its stream is cut, its certificates are forgotten."""
    try:
        return outcome_body(await parts.registrar.remove_host(host, actor=who.actor, workloads=workloads))
    except MissingError as error:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", str(error)) from error


@router.post("/hosts/{host}/expel")
async def expel_host(host: str, request: ExpelRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Refuse a host everywhere at once: its stream, its certificates, its connections. It stays registered."""
    try:
        await parts.expulsion.deny(host, Denial.EXPELLED, request.reason, actor=who.actor)
    except MissingError as error:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", str(error)) from error
    return host_body(await view_of(parts, who, host))


@router.post("/hosts/{host}/readmit")
async def readmit_host(host: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Let a host that was expelled or quarantined join again, with a new token; what it had stays refused."""
    try:
        readmitted = await parts.expulsion.readmit(host, actor=who.actor)
    except MissingError as error:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", str(error)) from error
    if not readmitted:
        message = f"host {host!r} was neither expelled nor quarantined: there is nothing to undo"
        raise ApiError(HTTPStatus.CONFLICT, "not_denied", message)
    return host_body(await view_of(parts, who, host))


@router.post("/hosts/{host}/confirm")
async def confirm_host(host: str, parts: Using, who: Admin) -> dict[str, Any]:
    """Tell a host's agent to take the configuration that it holds back, because it takes most of what it had away."""
    view = await view_of(parts, who, host)
    if not parts.hub.confirm(host, parts.now()):
        message = f"host {host!r} is not connected, or holds nothing back; see: hostmesh proxy status"
        raise ApiError(HTTPStatus.CONFLICT, "nothing_held_back", message)
    key = ObjectKey("Host", "", host)
    await asyncio.to_thread(partial(parts.store.add_event, "host.confirm", key, actor=who.actor, now=parts.now()))
    return host_body(view)


@router.post("/register")
async def register(request: RegisterRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Make the Host, its WorkloadEntry if it has one, and a join string, which is in this answer and never again.

    Where they are there already, what is named is set; `before` are those that were changed, as they were.
    """
    found = Documents()
    try:
        documents = registration(request, parts.registrar.get)
    except ValueError as error:
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", str(error)) from error
    for document in documents:
        one = read_one(document, "request", request.namespace or "default")
        found = Documents(found.objects + one.objects, found.problems + one.problems)
    outcome = await parts.registrar.apply(found, actor=who.actor, dry_run=request.dry_run)
    body = outcome_body(outcome)
    body["before"] = [each.before for each in outcome.changes if each.action == "configured"]
    if request.dry_run or not request.token:
        return body
    return {**body, **await join_string(parts, who, request.host, request.ttl_s)}


async def views(parts: Parts, who: Principal) -> list[HostView]:
    """Every registered host that the caller may know of, as the API tells of it, by name."""
    proxies = {each.host: each for each in parts.hub.proxies()}
    found = [item for item in parts.registrar.objects("Host") if sees_host(parts, who, item.key.name)]
    return [await _view(parts, item, proxies) for item in found]


async def view_of(parts: Parts, who: Principal, host: str) -> HostView:
    """One host.

    Raises:
        ApiError: it is not registered, or not for the caller to know of.
    """
    if not sees_host(parts, who, host):
        message = f"{who.name} has no grant to read any namespace of the workloads of host {host!r}"
        raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", message, key=ObjectKey("Host", "", host))
    item = parts.registrar.get(ObjectKey("Host", "", host))
    if item is None:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"host {host!r} is not registered; see: hostmesh host list")
    return await _view(parts, item, {each.host: each for each in parts.hub.proxies()})


async def _view(parts: Parts, item: ApiObject, proxies: dict[str, Any]) -> HostView:
    name, leases = item.key.name, parts.registrar.leases
    state = await parts.registrar.states.state(name)
    return HostView(
        name=name,
        spec=item.spec.to_dict(),
        labels=item.metadata.labels,
        state=state,
        proxy=proxies.get(name),
        group=item.metadata.annotations.get(MEMBER_OF),
        standing=parts.registrar.enrolments.standing(name),
        lease=str(leases.leases.sign(name)),
        missing_since=leases.missing_since(name, parts.now()),
        envoy_down=leases.leases.is_stalled(name),
        overdue=is_overdue(state.last_report_at, parts.registrar.states.interval_s(), parts.now()),
        workloads=tuple(f"{each.key.namespace}/{each.key.name}" for each in parts.registrar.mesh.workloads_of(name)),
    )
