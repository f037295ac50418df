"""apply, validate, diff and delete of whole documents."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

from hostmesh_controller.api.bodies import ApplyRequest, DeleteRequest, Documents, change_body
from hostmesh_controller.api.bounds import MAX_DEPTH, depth_of
from hostmesh_controller.api.effects import effects_body
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.observed import strict_warnings
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Editor, Principal, Role, Viewer
from hostmesh_controller.load import Problem
from hostmesh_controller.model import KINDS, ObjectKey
from hostmesh_controller.model.redaction import redacted
from hostmesh_controller.registrar import MissingError, Outcome
from hostmesh_controller.review import Documents as Read
from hostmesh_controller.review import problem_body, read, read_one

router = APIRouter(prefix="/v1", tags=["documents"])

GUARDED_KINDS = frozenset({"Host"})
"""Kinds that give a machine an identity: for administrators."""


@router.post("/apply")
async def apply(request: ApplyRequest, parts: Using, who: Editor) -> dict[str, Any]:
    """Create or change objects, all of them or none."""
    documents = await _read(parts, request)
    guard(who, (each.key for each in documents.objects))
    refused = await strict_warnings(parts, documents.objects)
    if request.dry_run:
        outcome, effects = await parts.registrar.preview(documents)
        body = {**outcome_body(outcome), **effects_body(effects)}
    else:
        body = outcome_body(await parts.registrar.apply(documents, actor=who.name))
    return {**body, "warnings": [*body["warnings"], *refused]}


@router.post("/validate")
async def validate(request: Documents, parts: Using, _who: Viewer) -> dict[str, Any]:
    """Check objects against each other and against what is stored; nothing is changed."""
    outcome = await parts.registrar.apply(await _read(parts, request), actor="", dry_run=True)
    return {
        "valid": not outcome.review.errors,
        "problems": [problem_body(each) for each in outcome.review.errors],
        "warnings": [problem_body(each) for each in outcome.review.warnings],
    }


@router.post("/diff")
async def diff(request: Documents, parts: Using, _who: Viewer) -> dict[str, Any]:
    """Tell what apply would change: each object before and after, and each resource of the connected proxies."""
    outcome, effects = await parts.registrar.preview(await _read(parts, request))
    body = {**outcome_body(outcome), **await asyncio.to_thread(effects_body, effects, whole=True)}
    body["objects"] = [
        {**change_body(each), "before": _shown(each.before), "after": _shown(each.after)} for each in outcome.changes
    ]
    return body


def _shown(document: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if document is None else redacted(document)


@router.post("/delete")
async def delete(request: DeleteRequest, parts: Using, who: Editor) -> dict[str, Any]:
    """Delete objects, by key or by the documents that describe them; all of them or none."""
    keys = [key_of(each.kind, each.namespace, each.name) for each in request.keys]
    if request.sources or request.documents:
        documents = await _read(parts, request)
        refuse(documents.problems)
        keys += [each.key for each in documents.objects]
    return await delete_keys(parts, who, keys, ignore_missing=request.ignore_missing)


async def delete_keys(parts: Using, who: Principal, keys: list[ObjectKey], *, ignore_missing: bool) -> dict[str, Any]:
    guard(who, keys)
    try:
        return outcome_body(await parts.registrar.delete(keys, actor=who.name, ignore_missing=ignore_missing))
    except MissingError as error:
        raise ApiError(HTTPStatus.NOT_FOUND, "not_found", str(error)) from error


def outcome_body(outcome: Outcome) -> dict[str, Any]:
    """The answer to a write that was accepted.

    Raises:
        ApiError: it was not.
    """
    refuse(outcome.review.errors)
    return {
        "revision": outcome.revision,
        "objects": [change_body(each) for each in outcome.changes],
        "warnings": [problem_body(each) for each in outcome.review.warnings],
    }


def refuse(problems: Sequence[Problem]) -> None:
    """Raise the one refusal that carries all problems, if there is any."""
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", f"refused, nothing was changed: {count}", problems)


def guard(who: Principal, keys: Iterable[ObjectKey]) -> None:
    """Keep kinds that give machines an identity from all but administrators."""
    guarded = sorted({key.kind for key in keys if key.kind in GUARDED_KINDS})
    if guarded and who.role < Role.ADMIN:
        raise ApiError(
            HTTPStatus.FORBIDDEN,
            "forbidden",
            f"{who.name} has the role {who.role.name.lower()}; objects of kind {', '.join(guarded)} need admin",
        )


def key_of(kind: str, namespace: str, name: str) -> ObjectKey:
    """A key as the store has it; "-" and "" both mean no namespace.

    Raises:
        ApiError: no such kind, or a namespace where there is none (or the other way round).
    """
    info = KINDS.get(kind)
    if info is None:
        known = ", ".join(sorted(KINDS))
        raise ApiError(HTTPStatus.NOT_FOUND, "unknown_kind", f"unknown kind '{kind}'; known: {known}")
    place = "" if namespace == "-" else namespace
    if info.namespaced and not place:
        raise ApiError(HTTPStatus.BAD_REQUEST, "bad_key", f"a {kind} is in a namespace: name it instead of '-'")
    if not info.namespaced and place:
        raise ApiError(HTTPStatus.BAD_REQUEST, "bad_key", f"a {kind} is in no namespace: write '-' for it")
    return ObjectKey(kind, place, name)


async def _read(parts: Parts, request: Documents) -> Read:
    for document in request.documents:
        if depth_of(document) > MAX_DEPTH:
            message = f"a document is nested deeper than {MAX_DEPTH} levels"
            raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "too_deep", message)
    return await asyncio.get_running_loop().run_in_executor(parts.reading, _parse, request)


def _parse(request: Documents) -> Read:
    found = read(((each.name, each.text) for each in request.sources), request.namespace)
    for index, document in enumerate(request.documents):
        one = read_one(document, f"documents[{index}]", request.namespace)
        found = Read(found.objects + one.objects, found.problems + one.problems)
    return found
