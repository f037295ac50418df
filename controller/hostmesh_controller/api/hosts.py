"""Hosts: what is known of them, how they come in and how they are put out."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query

from hostmesh_controller.api.bodies import RegisterRequest
from hostmesh_controller.api.documents import outcome_body
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.fleet import HostView, host_body, host_details
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Admin, Viewer
from hostmesh_controller.api.tokens import join_string
from hostmesh_controller.groups import MEMBER_OF
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.registrar import MissingError
from hostmesh_controller.review import Documents, read_one

router = APIRouter(prefix="/v1", tags=["hosts"])


@router.get("/hosts")
async def list_hosts(parts: Using, _who: Viewer) -> dict[str, Any]:
    """Every registered host."""
    return {"items": [host_body(each) for each in await views(parts)]}


@router.get("/hosts/{host}")
async def show_host(host: str, parts: Using, _who: Viewer) -> dict[str, Any]:
    """One host, with its last report and its certificates."""
    view = await view_of(parts, host)
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
        return outcome_body(await parts.registrar.remove_host(host, actor=who.name, workloads=workloads))
    except MissingError as error:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", str(error)) from error


@router.post("/register")
async def register(request: RegisterRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Make the Host, its WorkloadEntry if it has one, and a join string, which is in this answer and never again."""
    found = Documents()
    for document in registration(request):
        one = read_one(document, "request", request.namespace or "default")
        found = Documents(found.objects + one.objects, found.problems + one.problems)
    body = outcome_body(await parts.registrar.apply(found, actor=who.name))
    return {**body, **await join_string(parts, who, request.host, request.ttl_s)}


def registration(request: RegisterRequest) -> list[dict[str, Any]]:
    """Return the objects that a registration stands for: a Host, and a WorkloadEntry if a port or name is given."""
    host: dict[str, Any] = {
        "apiVersion": "hostmesh.io/v1",
        "kind": "Host",
        "metadata": {"name": request.host},
        "spec": {"addresses": request.addresses},
    }
    if request.ssh_host_keys:
        host["spec"]["sshHostKeys"] = request.ssh_host_keys
    if not request.ports and request.workload is None:
        # Without a workload nothing else tells where its short names resolve.
        if request.namespace is not None:
            host["spec"]["namespace"] = request.namespace
        return [host]
    workload: dict[str, Any] = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": request.workload or request.host, "namespace": request.namespace or "default"},
        "spec": {
            "address": request.addresses[0],
            "ports": {each.name: each.number for each in request.ports},
            "labels": request.labels,
            "serviceAccount": request.service_account,
        },
    }
    workload["spec"] = {key: value for key, value in workload["spec"].items() if value}
    return [host, workload]


async def views(parts: Parts) -> list[HostView]:
    """Every registered host as the API tells of it, by name."""
    proxies = {each.host: each for each in parts.hub.proxies()}
    return [await _view(parts, item, proxies) for item in parts.registrar.objects("Host")]


async def view_of(parts: Parts, host: str) -> HostView:
    """One host.

    Raises:
        ApiError: it is not registered.
    """
    item = parts.registrar.get(ObjectKey("Host", "", host))
    if item is None:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"host {host!r} is not registered; see: hostmesh host list")
    return await _view(parts, item, {each.host: each for each in parts.hub.proxies()})


async def _view(parts: Parts, item: ApiObject, proxies: dict[str, Any]) -> HostView:
    name = item.key.name
    return HostView(
        name=name,
        spec=item.spec.to_dict(),
        labels=item.metadata.labels,
        state=await parts.registrar.states.state(name),
        proxy=proxies.get(name),
        group=item.metadata.annotations.get(MEMBER_OF),
        workloads=tuple(f"{each.key.namespace}/{each.key.name}" for each in parts.registrar.mesh.workloads_of(name)),
    )
