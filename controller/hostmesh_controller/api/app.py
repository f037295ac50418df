"""The API as one ASGI application."""

from collections.abc import Iterator
from typing import Final

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.middleware.base import RequestResponseEndpoint
from starlette.responses import Response

from hostmesh_controller.api import (
    adoption,
    authority,
    authorization,
    documents,
    errors,
    explain,
    graph,
    hosts,
    jwks,
    objects,
    observed,
    operations,
    pending,
    proxies,
    rollouts,
    tokens,
)
from hostmesh_controller.api.bounds import BoundedBody
from hostmesh_controller.api.denials import Denials
from hostmesh_controller.api.parts import Parts
from hostmesh_controller.api.principals import RequireRole, Role
from hostmesh_controller.metrics import build_version

ROUTERS: Final = (
    documents.router,
    objects.router,
    tokens.router,
    hosts.router,
    pending.router,
    proxies.router,
    explain.router,
    authority.router,
    authorization.router,
    jwks.router,
    observed.router,
    graph.router,
    adoption.router,
    rollouts.router,
    operations.router,
    operations.open_router,
)


METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})


def create_app(parts: Parts) -> FastAPI:
    """Return the API over `parts`. Requests over the unix socket must come through `principals.LocalSocket`."""
    app = FastAPI(
        title="hostmesh",
        version=build_version(),
        # Their pages load scripts from elsewhere; the description itself is enough.
        docs_url=None,
        redoc_url=None,
    )
    app.state.parts = parts
    errors.install(app, Denials(parts).note)
    for router in ROUTERS:
        app.include_router(router)

    @app.middleware("http")
    async def count(request: Request, call_next: RequestResponseEndpoint) -> Response:
        code = "500"
        try:
            response = await call_next(request)
            code = str(response.status_code)
            return response
        finally:
            route = request.scope.get("route")
            path = route.path if isinstance(route, APIRoute) else "other"
            role = getattr(request.state, "role", "none")
            # The method is the caller's word: made-up ones must not make up series.
            method = request.method if request.method in METHODS else "other"
            parts.metrics.api_requests.labels(method, path, role, code).inc()

    app.add_middleware(BoundedBody, limits=parts.config.limits)
    return app


def roles() -> Iterator[tuple[str, str, Role | None]]:
    """Yield method, path and least role of every route; None: anybody may call it."""
    for route in (route for router in ROUTERS for route in router.routes):
        if isinstance(route, APIRoute):
            role = next((d.call.role for d in route.dependant.dependencies if isinstance(d.call, RequireRole)), None)
            for method in sorted(route.methods or ()):
                yield method, route.path, role
