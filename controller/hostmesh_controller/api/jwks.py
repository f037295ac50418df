"""The keys of RequestAuthentications, as far as the controller fetches them."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from hostmesh_controller.api.bodies import moment
from hostmesh_controller.api.parts import Using
from hostmesh_controller.api.principals import Viewer
from hostmesh_controller.key_sets import KeySet
from hostmesh_controller.model.objects import ObjectKey

router = APIRouter(prefix="/v1", tags=["jwks"])


@router.get("/jwks")
async def list_jwks(parts: Using, who: Viewer) -> dict[str, Any]:
    """Each URL from which keys are fetched, who uses it, and how that goes. Keys themselves are not told."""
    seen = (
        (found, [key for key in want.users if who.reads(key.namespace)])
        for found, want in parts.registrar.keys.states()
    )
    return {"items": [_body(found, users) for found, users in seen if users or who.namespaces is None]}


def _body(found: KeySet, users: Sequence[ObjectKey]) -> dict[str, Any]:
    return {
        "url": found.url,
        "source": found.source or None,
        "users": [f"{key.namespace}/{key.name}" for key in users],
        "state": found.state,
        "keys": list(found.keys),
        "fetched_at": moment(found.fetched_at),
        "next_at": moment(found.next_at),
        "failures": found.failures,
        "error": found.error,
    }
