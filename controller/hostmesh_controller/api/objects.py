"""Single objects by key, and lists of them."""

import asyncio
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query

from hostmesh_controller.api.bodies import key_body, object_body
from hostmesh_controller.api.documents import applying, delete_keys, key_of, outcome_body, readable, refuse, shallow
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Using
from hostmesh_controller.api.principals import Editor, Viewer
from hostmesh_controller.model import KINDS
from hostmesh_controller.review import read_one

router = APIRouter(prefix="/v1/objects", tags=["objects"])


@router.get("")
async def list_objects(
    parts: Using,
    who: Viewer,
    kind: Annotated[str | None, Query()] = None,
    namespace: Annotated[str | None, Query(description="Objects of this namespace; - for those of none.")] = None,
) -> dict[str, Any]:
    """List objects, of all kinds or one, of all namespaces or one."""
    if kind is not None and kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise ApiError(HTTPStatus.NOT_FOUND, "unknown_kind", f"unknown kind '{kind}'; known: {known}")
    place = "" if namespace == "-" else namespace
    found = await asyncio.to_thread(parts.store.objects, kind, place)
    return {"items": [object_body(each) for each in found if who.reads(each.key.namespace)]}


@router.get("/{kind}/{namespace}/{name}")
async def get_object(kind: str, namespace: str, name: str, parts: Using, who: Viewer) -> dict[str, Any]:
    """One object. The namespace of a kind that has none is written as "-"."""
    key = key_of(kind, namespace, name)
    readable(who, key)
    found = await asyncio.to_thread(parts.store.get, key)
    if found is None:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", f"not found: {key}")
    return object_body(found)


@router.put("/{kind}/{namespace}/{name}")
async def put_object(
    kind: str, namespace: str, name: str, document: Annotated[dict[str, Any], Body()], parts: Using, who: Editor
) -> dict[str, Any]:
    """Create or replace one object; its document must carry the key of the path."""
    key = key_of(kind, namespace, name)
    shallow(document, parts.config.limits)
    documents = await asyncio.to_thread(read_one, document, "request", key.namespace or "default")
    refuse(documents.problems)
    if [each.key for each in documents.objects] != [key]:
        found = ", ".join(str(each.key) for each in documents.objects) or "nothing"
        message = f"the path names {key}, the document {found}"
        raise ApiError(HTTPStatus.BAD_REQUEST, "key_mismatch", message)
    outcome = await parts.registrar.apply(documents, actor=who.actor, guard=applying(parts, who))
    body = outcome_body(outcome)
    return {**key_body(key), "action": body["objects"][0]["action"], **{k: body[k] for k in ("revision", "warnings")}}


@router.delete("/{kind}/{namespace}/{name}")
async def delete_object(kind: str, namespace: str, name: str, parts: Using, who: Editor) -> dict[str, Any]:
    """Delete one object."""
    return await delete_keys(parts, who, [key_of(kind, namespace, name)], ignore_missing=False, is_confirmed=False)
