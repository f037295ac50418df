"""Every error of the API has one shape: {"error": {"code", "message", "problems": [...]}}."""

import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from http import HTTPStatus
from typing import cast

import structlog
from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from hostmesh_controller.load import Problem
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.review import problem_body
from hostmesh_controller.store import StoreError

_log = structlog.stdlib.get_logger(__name__)


class ApiError(Exception):
    """A refusal that the caller can act on.

    `code` is stable, for programs; `message` is a sentence with the cure, for people. `key` is the object that the
    caller may not have, if it is about one.
    """

    def __init__(
        self,
        status: HTTPStatus,
        code: str,
        message: str,
        problems: Sequence[Problem] = (),
        *,
        key: ObjectKey | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.problems = tuple(problems)
        self.key = key


def error_response(status: HTTPStatus, code: str, message: str, problems: Iterable[dict[str, object]] = ()) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status is HTTPStatus.UNAUTHORIZED else None
    body = {"error": {"code": code, "message": message, "problems": list(problems)}}
    # ASCII alone: the message may quote what came in, and JSON can escape what UTF-8 cannot carry.
    return Response(json.dumps(body), status_code=status, headers=headers, media_type="application/json")


def install(app: FastAPI, denied: "Callable[[Request, ApiError], Awaitable[None]]") -> None:
    """Make every error of `app` leave in the one shape, and no traceback with it.

    Args:
        app: whose errors.
        denied: is told of what a caller may not do.
    """

    async def refused(request: Request, error: Exception) -> Response:
        refusal = cast("ApiError", error)
        if refusal.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            await denied(request, refusal)
        return error_response(refusal.status, refusal.code, refusal.message, map(problem_body, refusal.problems))

    async def malformed(_request: Request, error: Exception) -> Response:
        problems = [_field_problem(item) for item in cast("RequestValidationError", error).errors()]
        return error_response(
            HTTPStatus.UNPROCESSABLE_ENTITY, "malformed_request", "the request's fields are not as expected", problems
        )

    async def http(_request: Request, error: Exception) -> Response:
        status = HTTPStatus(cast("HTTPException", error).status_code)
        return error_response(status, status.name.lower(), str(cast("HTTPException", error).detail))

    async def failed(request: Request, error: Exception) -> Response:
        _log.error("an API request failed inside", method=request.method, path=request.url.path, exc_info=error)
        return error_response(
            HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "the controller failed; its log has the reason"
        )

    async def store(_request: Request, error: Exception) -> Response:
        # The details name files of the controller: they are for its operator.
        _log.error("the store failed", error=str(error))
        return error_response(
            HTTPStatus.SERVICE_UNAVAILABLE, "store", "the controller's store fails; its log has the reason"
        )

    app.add_exception_handler(ApiError, refused)
    app.add_exception_handler(StoreError, store)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, failed)


def _field_problem(item: object) -> dict[str, object]:
    """One of pydantic's errors as a problem; its `input` stays out, because it may hold a secret."""
    found = cast("dict[str, object]", jsonable_encoder(item, exclude={"input", "ctx", "url"}))
    where = cast("list[object]", found.get("loc", []))
    return {
        "file": "request",
        "line": None,
        "column": None,
        "path": ".".join(str(part) for part in where),
        "message": str(found.get("msg", "")),
        "code": str(found.get("type", "")),
        "istio_code": "",
        "severity": "error",
    }
