"""What the proxies have, and whether they all have a revision."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from hostmesh_controller.api.documents import sees_host
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.fleet import proxy_body
from hostmesh_controller.api.hosts import view_of, views
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Principal, Viewer
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.ingress import serves_mesh_tls

router = APIRouter(prefix="/v1", tags=["proxies"])

_LOOK_S: Final = 0.02
"""A waiting caller looks this often: what it waits for is many small events of many streams."""


@router.get("/proxies")
async def list_proxies(parts: Using, who: Viewer) -> dict[str, Any]:
    """The proxy of every registered host, connected or not."""
    now = parts.now()
    return {"items": [proxy_body(each, now) for each in await views(parts, who)]}


@router.get("/proxies/{host}")
async def get_proxy(host: str, parts: Using, who: Viewer) -> dict[str, Any]:
    """The proxy of one host."""
    return proxy_body(await view_of(parts, who, host), parts.now())


@router.get("/converged")
async def converged(
    parts: Using,
    who: Viewer,
    revision: Annotated[int, Query(ge=0)],
    timeout_s: Annotated[float, Query(ge=0, le=600)] = 0,
) -> dict[str, Any]:
    """Wait until every connected proxy has acknowledged all that the revision means for it and its workloads are ready.

    Of the hosts it lists those that the caller may know of; `converged` is about all. Answers at `timeout_s` at the
    latest, with `converged` false where it is not so yet.
    """
    if revision > parts.registrar.revision:
        message = f"revision {revision} does not exist; the newest is {parts.registrar.revision}"
        raise ApiError(HTTPStatus.NOT_FOUND, "no_such_revision", message)
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        body = _settled(parts, who, revision)
        if body["converged"] or asyncio.get_running_loop().time() >= deadline:
            return body
        await asyncio.sleep(_LOOK_S)


def _settled(parts: Parts, who: Principal, revision: int) -> dict[str, Any]:
    mesh = parts.hub.mesh
    hosts = []
    for host, acked in sorted(parts.hub.converged(revision).items()):
        # The ports of a gateway are Envoy's own: no agent vouches for them.
        waiting = dict.fromkeys(
            port.workload.key
            for port in inbound_ports(mesh, host)
            if not serves_mesh_tls(mesh, port.workload, port.number)
        )
        names = sorted(f"{namespace}/{name}" for namespace, name in waiting)
        hosts.append({"host": host, "acked": acked, "waiting_workloads": names})
    done = parts.hub.revision >= revision and all(each["acked"] and not each["waiting_workloads"] for each in hosts)
    shown = [each for each in hosts if sees_host(parts, who, str(each["host"]))]
    return {"revision": revision, "converged": done, "hosts": shown}
