"""apply, validate, diff and delete of whole documents."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

from hostmesh_controller.access import refusal
from hostmesh_controller.api.bodies import ApplyRequest, DeleteRequest, Documents, change_body
from hostmesh_controller.api.bounds import depth_of
from hostmesh_controller.api.effects import effects_body
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.observed import strict_warnings
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Editor, Principal, Viewer
from hostmesh_controller.checks.world import World
from hostmesh_controller.impact import Effect
from hostmesh_controller.limits import Limits
from hostmesh_controller.load import Problem
from hostmesh_controller.model import KINDS, ApiObject, ObjectKey
from hostmesh_controller.model.redaction import redacted
from hostmesh_controller.model.rollout import RolloutSpec
from hostmesh_controller.registrar import Guard, MissingError, Outcome
from hostmesh_controller.review import Documents as Read
from hostmesh_controller.review import problem_body, read, read_one
from hostmesh_controller.sweep import most_of
from hostmesh_controller.yaml_nodes import Limits as YamlLimits

router = APIRouter(prefix="/v1", tags=["documents"])


@router.post("/apply")
async def apply(request: ApplyRequest, parts: Using, who: Editor) -> dict[str, Any]:
    """Create or change objects, all of them or none."""
    documents = await _read(parts, request)
    refused = await strict_warnings(parts, documents.objects)
    if request.dry_run:
        outcome, effects = await parts.registrar.preview(documents, guard=applying(parts, who))
        body = {**outcome_body(outcome), **effects_body(seen_effects(parts, who, effects))}
    else:
        body = outcome_body(await parts.registrar.apply(documents, actor=who.actor, guard=applying(parts, who)))
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
async def diff(request: Documents, parts: Using, who: Viewer) -> dict[str, Any]:
    """Tell what apply would change: each object before and after, and each resource of the connected proxies."""
    documents = await _read(parts, request)
    for each in documents.objects:
        readable(who, each.key)
    outcome, effects = await parts.registrar.preview(documents)
    # What a proxy holds is of all namespaces that it serves and calls.
    whole = who.namespaces is None
    body = {
        **outcome_body(outcome),
        **await asyncio.to_thread(effects_body, seen_effects(parts, who, effects), whole=whole),
    }
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
    sure = {"is_confirmed": request.confirmed, "abandons": request.abandon}
    return await delete_keys(parts, who, keys, ignore_missing=request.ignore_missing, **sure)


async def delete_keys(
    parts: Using,
    who: Principal,
    keys: list[ObjectKey],
    *,
    ignore_missing: bool,
    is_confirmed: bool,
    abandons: bool = False,
) -> dict[str, Any]:
    guards = [writing(who)] if is_confirmed else [writing(who), _sparing]
    guard = _one_after_another(*guards, *([] if abandons else [_no_rollout_at_work(parts)]))
    try:
        outcome = await parts.registrar.delete(keys, actor=who.actor, ignore_missing=ignore_missing, guard=guard)
        return outcome_body(outcome)
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


def writing(who: Principal) -> Guard:
    """Return what ends a write of which one object is not the caller's to write; see `access`."""

    def guard(changes: Iterable[tuple[ObjectKey, ApiObject | None]], world: World) -> None:
        for key, after in changes:
            problem = refusal(who.grants, key, world.objects.get(key), after, world)
            if problem is not None:
                message = f"{who.name} has the role {who.role.word}; {problem}"
                raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", message, key=key)

    return guard


def applying(parts: Parts, who: Principal) -> Guard:
    """Return what ends an apply that the caller may not do, or that may not be done now."""
    return _one_after_another(writing(who), _no_other_rollout(parts))


def _one_after_another(*guards: Guard) -> Guard:
    def guard(changes: Iterable[tuple[ObjectKey, ApiObject | None]], world: World) -> None:
        known = list(changes)
        for each in guards:
            each(known, world)

    return guard


def _sparing(changes: Iterable[tuple[ObjectKey, ApiObject | None]], world: World) -> None:
    """End a deletion that would take most of the mesh away; it is the caller's to say that this is meant."""
    told = most_of((key for key, after in changes if after is None), world.objects)
    if told:
        message = f"nothing was deleted: {told}, which is most of the mesh; if that is meant, confirm it (--yes)"
        raise ApiError(HTTPStatus.CONFLICT, "most_would_go", message)


def _no_rollout_at_work(parts: Parts) -> Guard:
    """Return what ends a deletion of a Rollout that hosts are in the middle of."""

    def guard(changes: Iterable[tuple[ObjectKey, ApiObject | None]], _world: World) -> None:
        for key, after in changes:
            why = parts.rollouts.why_not_gone(key.name) if key.kind == "Rollout" and after is None else ""
            if why:
                message = f"nothing was deleted: rollout {key.name!r}: {why}; --abandon deletes it all the same"
                raise ApiError(HTTPStatus.CONFLICT, "rollout_at_work", message)

    return guard


def _no_other_rollout(parts: Parts) -> Guard:
    """Return what ends a write that makes something else of a Rollout that hosts are in the middle of."""

    def guard(changes: Iterable[tuple[ObjectKey, ApiObject | None]], world: World) -> None:
        for key, after in changes:
            before = world.objects.get(key)
            if before is None or after is None or key.kind != "Rollout":
                continue
            assert isinstance(before.spec, RolloutSpec)
            assert isinstance(after.spec, RolloutSpec)
            why = parts.rollouts.why_not_changed(key.name, before.spec, after.spec)
            if why:
                message = f"nothing was changed: rollout {key.name!r}: {why}"
                raise ApiError(HTTPStatus.CONFLICT, "rollout_at_work", message)

    return guard


def readable(who: Principal, key: ObjectKey) -> None:
    """Raise the refusal of an object that the caller may not read, whether it is there or not."""
    if not who.reads(key.namespace):
        where = f"namespace {key.namespace!r}" if key.namespace else "what is in no namespace"
        raise ApiError(HTTPStatus.FORBIDDEN, "forbidden", f"{who.name} has no grant to read {where}", key=key)


def sees_host(parts: Parts, who: Principal, host: str) -> bool:
    """Tell whether a caller may know of a host: one with a workload in a namespace that they read."""
    return who.namespaces is None or any(
        who.reads(each.key.namespace) for each in parts.registrar.mesh.workloads_of(host)
    )


def seen_effects(parts: Parts, who: Principal, effects: Sequence[Effect]) -> list[Effect]:
    """Return what a change does to the proxies that the caller may know of."""
    if who.namespaces is None:
        return list(effects)
    shown = (replace(each, hosts=tuple(host for host in each.hosts if sees_host(parts, who, host))) for each in effects)
    return [each for each in shown if each.hosts]


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
    limits = parts.config.limits
    for document in request.documents:
        shallow(document, limits)
    size_bytes = sum(len(each.text.encode("utf-8", "surrogatepass")) for each in request.sources)
    if size_bytes > limits.document_bytes:
        message = f"{size_bytes} bytes of YAML, more than {limits.document_bytes}; send fewer documents at a time"
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message)
    found = await asyncio.get_running_loop().run_in_executor(parts.reading, _parse, request, limits)
    if len(found.objects) > limits.documents:
        message = f"more than {limits.documents} documents; send fewer at a time"
        raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", message)
    return found


def shallow(document: object, limits: Limits) -> None:
    """Raise the refusal of a document that is nested too deep."""
    if depth_of(document) > limits.document_depth:
        message = f"a document is nested deeper than {limits.document_depth} levels"
        raise ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, "too_deep", message)


def _parse(request: Documents, limits: Limits) -> Read:
    bounds = YamlLimits(limits.document_bytes, limits.document_depth, limits.document_values, limits.documents)
    found = read(((each.name, each.text) for each in request.sources), request.namespace, bounds)
    for index, document in enumerate(request.documents):
        one = read_one(document, f"documents[{index}]", request.namespace)
        found = Read(found.objects + one.objects, found.problems + one.problems)
    return found
