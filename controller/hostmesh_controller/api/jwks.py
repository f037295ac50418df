"""The keys of RequestAuthentications, as far as the controller fetches them."""

from typing import Any

from fastapi import APIRouter

from hostmesh_controller.api.bodies import moment
from hostmesh_controller.api.parts import Using
from hostmesh_controller.api.principals import Viewer
from hostmesh_controller.key_sets import KeySet, Want

router = APIRouter(prefix="/v1", tags=["jwks"])


@router.get("/jwks")
async def list_jwks(parts: Using, _who: Viewer) -> dict[str, Any]:
    """Each URL from which keys are fetched, who uses it, and how that goes. Keys themselves are not told."""
    return {"items": [_body(found, want) for found, want in parts.registrar.keys.states()]}


def _body(found: KeySet, want: Want) -> dict[str, Any]:
    return {
        "url": found.url,
        "source": found.source or None,
        "users": [f"{key.namespace}/{key.name}" for key in want.users],
        "state": found.state,
        "keys": list(found.keys),
        "fetched_at": moment(found.fetched_at),
        "next_at": moment(found.next_at),
        "failures": found.failures,
        "error": found.error,
    }
