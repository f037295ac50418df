"""Programs that were found listening on hosts, and how an operator makes services of them."""

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

from hostmesh_controller.api.bodies import AdoptRequest
from hostmesh_controller.api.documents import outcome_body, refuse, sees_host, writing
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Editor, Principal, Viewer
from hostmesh_controller.found_services import Found, NotAdoptedError, Wish, chosen, documents, found_on
from hostmesh_controller.mesh.viewer import namespace_of
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.model.exports import EVERY
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.names import canonical_address
from hostmesh_controller.reports import report_of
from hostmesh_controller.review import Documents, read_one

router = APIRouter(prefix="/v1/hosts", tags=["found services"])


@router.get("/{host}/services")
async def services(host: str, parts: Using, who: Viewer) -> dict[str, Any]:
    """What listens on a host, and what adopting it would make. Nothing is adopted by itself."""
    item = _host(parts, who, host)
    found = await _found(parts, host)
    return {"items": [_found_body(each, _namespace(parts, item)) for each in found]}


@router.post("/{host}/adopt")
async def adopt(host: str, request: AdoptRequest, parts: Using, who: Editor) -> dict[str, Any]:
    """Make a WorkloadEntry, and a Service where there is none, of a program that was found. Checked as `apply` is."""
    item = _host(parts, who, host)
    wish = Wish(host, **request.model_dump(exclude={"dry_run"}))
    namespace = request.namespace or _namespace(parts, item)
    try:
        ports = chosen(await _found(parts, host), wish)
        made = documents(wish, ports, _address(item, ports), namespace, _services(parts, namespace))
    except NotAdoptedError as error:
        raise ApiError(HTTPStatus.CONFLICT, "not_adopted", str(error)) from error
    read = Documents()
    for document in made:
        one = read_one(document, "adopt", namespace)
        read = Documents(read.objects + one.objects, read.problems + one.problems)
    refuse(read.problems)
    if request.dry_run:
        outcome, _ = await parts.registrar.preview(read, guard=writing(who))
    else:
        outcome = await parts.registrar.apply(read, actor=who.actor, guard=writing(who))
    return {**outcome_body(outcome), "documents": made}


def _host(parts: Parts, who: Principal, host: str) -> ApiObject:
    """Return a host whose listening programs the caller may know of.

    They are told to whoever may know of the host, and to whoever reads a namespace whose editors may place workloads
    on it: its administrator said so.
    """
    item = parts.registrar.get(ObjectKey("Host", "", host))
    places = item.spec.workload_namespaces if item is not None and isinstance(item.spec, HostSpec) else ()
    if not sees_host(parts, who, host) and not any(each != EVERY and who.reads(each) for each in places):
        message = f"{who.name} has no grant to read any namespace of the workloads of host {host!r}"
        raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", message, key=ObjectKey("Host", "", host))
    if item is None:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"host {host!r} is not registered; see: hostmesh host list")
    return item


async def _found(parts: Parts, host: str) -> list[Found]:
    return found_on(parts.registrar.mesh, host, report_of(await parts.registrar.states.state(host)))


def _namespace(parts: Parts, item: ApiObject) -> str:
    """Return where a service goes whose namespace nobody named: the host's."""
    host = parts.registrar.mesh.hosts.get(item.key.name)
    return "default" if host is None else namespace_of(parts.registrar.mesh, host)


def _services(parts: Parts, namespace: str) -> dict[ObjectKey, ApiObject]:
    kinds = ("Service", "WorkloadEntry")
    return {
        each.key: each for kind in kinds for each in parts.registrar.objects(kind) if each.key.namespace == namespace
    }


def _address(item: ApiObject, ports: list[Found]) -> str:
    """Return the host's address at which the programs listen: the first where all of them do.

    Raises:
        NotAdoptedError: there is none.
    """
    assert isinstance(item.spec, HostSpec)
    for each in item.spec.addresses:
        plain = canonical_address(each) or each
        # A socket of IPv6 at :: takes IPv4 as well, where the host does not say otherwise.
        anywhere = {"::"} if ":" in plain else {"0.0.0.0", "::"}  # noqa: S104 - what a program listens on
        if all(set(found.addresses) & {plain, *anywhere} for found in ports):
            return each
    heard = ", ".join(sorted({address for found in ports for address in found.addresses}))
    raise NotAdoptedError(
        f"host {item.key.name} has no address in Host.spec.addresses at which port {ports[0].port} listens ({heard})"
    )


def _found_body(each: Found, namespace: str) -> dict[str, Any]:
    return {
        "port": each.port,
        "addresses": list(each.addresses),
        "program": each.program or None,
        "unit": each.unit or None,
        "container": each.container or None,
        "uid": each.uid,
        "protocol": each.protocol,
        "adopted": list(each.adopted),
        "services": list(each.services),
        "refused": each.system or None,
        "would_be": None if each.system or each.adopted else f"{namespace}/{each.name}",
    }
