"""What of a controller's wish for another version is to be done: the owner's word, the signature and the floor. Pure.

A controller may be in the wrong hands. What it can have of this host is what the key in agent.toml has signed, for this
machine, not below the floor, and only where the owner lets controllers bring versions at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hostmesh_agent.config import UpdateSettings
from hostmesh_api.manifest import Manifest, order_of, parse
from hostmesh_api.v1.hostmesh_pb2 import WantedUpdate

FILE: Final = "updates.json"
"""In the state directory: what is known of the last order, and the floor."""
FETCHING: Final = "fetching"
CHANGING: Final = "changing"
DONE: Final = "done"
FAILED: Final = "failed"
REFUSED: Final = "refused"
_CONCLUDED: Final = {DONE, FAILED, REFUSED}


class RefusedUpdateError(Exception):
    """This host does not take it; the text says why and, where its owner can change that, how."""


@dataclass(frozen=True, slots=True)
class Order:
    """One wish of one rollout. It is tried once: an agent that starts anew does not try again what failed."""

    version: str
    rollout: str
    attempt: int
    back: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What is on disk.

    Attributes:
        order: the last one.
        state, reason: how that went.
        rollout: which one changed this host's Envoy last; "" for none.
        choice: what was chosen before it (`chosen_binary`), None for what agent.toml says.
        before: how calls went before it: fields of CallFigures.
        floor: no version below this is taken; "": any is.
    """

    order: Order | None = None
    state: str = ""
    reason: str = ""
    rollout: str = ""
    choice: Mapping[str, str] | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    floor: str = ""

    def concluded(self, order: Order) -> bool:
        return self.order == order and self.state in _CONCLUDED


def order_in(update: WantedUpdate) -> Order:
    return Order(update.version, update.rollout, update.attempt, update.back)


def allowed(settings: UpdateSettings, component: str) -> None:
    """Raises RefusedUpdateError where the owner lets no controller change this."""
    if component not in settings.controller:
        raise RefusedUpdateError(
            f"the host's owner lets no controller bring versions of {component} "
            f'(agent.toml: [updates] controller = ["{component}"])'
        )


def judged(
    update: WantedUpdate,
    settings: UpdateSettings,
    floor: str,
    machine: str,
    signed_by: Callable[[bytes, bytes, bytes], bool],
) -> Manifest:
    """Return what is to be fetched.

    Args:
        update: what the controller wants.
        settings: what the host's owner says.
        floor: the highest that was kept.
        machine: as `uname -m` says it.
        signed_by: tells whether a key (of 32 bytes) made the signature of some bytes.

    Raises:
        RefusedUpdateError: this host does not take it.
    """
    allowed(settings, update.component)
    if not any(signed_by(key, update.manifest, update.signature) for key in settings.key_bytes):
        raise RefusedUpdateError("the manifest is signed by no key of [updates] keys in agent.toml")
    try:
        manifest = parse(update.manifest)
    except ValueError as error:
        raise RefusedUpdateError(f"the manifest cannot be read: {error}") from None
    said, wanted = (manifest.component, manifest.version), (update.component, update.version)
    if said != wanted:
        raise RefusedUpdateError(f"the manifest is of {' '.join(said)}, and not of {' '.join(wanted)}")
    if manifest.machine != machine:
        raise RefusedUpdateError(f"the manifest is for {manifest.machine}, this host is {machine}")
    for lowest, whose in ((settings.min_envoy, "min_envoy of agent.toml"), (floor, "what was rolled out before")):
        if lowest and order_of(manifest.version) < order_of(lowest):
            raise RefusedUpdateError(f"{manifest.version} is below {lowest}, the floor of this host ({whose})")
    return manifest


def raised(floor: str, manifest: Manifest) -> str:
    """Return the floor once a version is everywhere."""
    return max(floor, manifest.least, key=order_of) if manifest.least else floor


def written(standing: Standing) -> dict[str, Any]:
    """Return the document for the disk."""
    order = standing.order
    return {
        "order": None
        if order is None
        else {"version": order.version, "rollout": order.rollout, "attempt": order.attempt, "back": order.back},
        "state": standing.state,
        "reason": standing.reason,
        "rollout": standing.rollout,
        "choice": None if standing.choice is None else dict(standing.choice),
        "before": dict(standing.before),
        "floor": standing.floor,
    }


def read(document: Any) -> Standing:
    """Return what `written` returned. Raises KeyError, TypeError, ValueError."""
    order = document["order"]
    return Standing(
        None if order is None else Order(**order),
        str(document["state"]),
        str(document["reason"]),
        str(document["rollout"]),
        document["choice"],
        {str(name): float(value) for name, value in document["before"].items()},
        str(document["floor"]),
    )
