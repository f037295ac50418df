"""What a change would send, as the API gives it."""

from collections.abc import Sequence
from typing import Any, Final

from hostmesh_api.delta import Resource
from hostmesh_controller.impact import Effect
from hostmesh_controller.translation import TYPES
from hostmesh_controller.xds.messages import as_json, message_of

WHOLE: Final = 200
"""Resources that are given with what they hold; of more, only the names."""
_KEYS: Final = ".Secret"
"""How the type of certificates with their keys ends: they are told to proxies only."""
_SHORT: Final = {type_url: name for name, type_url in TYPES.items()}


def effects_body(effects: Sequence[Effect], *, whole: bool = False) -> dict[str, Any]:
    """Return `proxies` (the hosts that would be sent something) and `resources`; `whole`: with both sides as JSON."""
    hosts = sorted({host for each in effects for host in each.hosts})
    resources = [_body(each, whole=whole and index < WHOLE) for index, each in enumerate(effects)]
    return {"proxies": hosts, "resources": resources}


def _body(effect: Effect, *, whole: bool) -> dict[str, Any]:
    action = "added" if effect.before is None else "removed" if effect.after is None else "changed"
    body: dict[str, Any] = {
        "type": _SHORT.get(effect.type_url, effect.type_url.rpartition(".")[2].lower()),
        "name": effect.name,
        "action": action,
        "proxies": list(effect.hosts),
    }
    if whole and not effect.type_url.endswith(_KEYS):
        body |= {"before": _json(effect.before), "after": _json(effect.after)}
    return body


def _json(resource: Resource | None) -> dict[str, Any] | None:
    message = message_of(resource) if resource is not None else None
    return None if message is None else as_json(message)
