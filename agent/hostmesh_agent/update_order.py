"""What of a controller's wish for another version is to be done: the owner's word, the signature and the floor. Pure.

A controller may be in the wrong hands. What it can have of this host is what the key in agent.toml has signed, for this
machine, not below the floor, and only where the owner lets controllers bring versions at all.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from hostmesh_agent.config import UpdateSettings
from hostmesh_api.manifest import ENVOY, Manifest, order_of, parse

if TYPE_CHECKING:
    from hostmesh_api.v1.hostmesh_pb2 import WantedUpdate  # the privileged program does without

MIRROR: Final = "mirror"
PACKAGES: Final = "packages"
FETCHING: Final = "fetching"
CHANGING: Final = "changing"
DONE: Final = "done"
FAILED: Final = "failed"
REFUSED: Final = "refused"
_CONCLUDED: Final = {DONE, FAILED, REFUSED}


class Offer(Protocol):
    """What a controller offers: a WantedUpdate, or what was written down of one."""

    @property
    def component(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def manifest(self) -> bytes: ...

    @property
    def signature(self) -> bytes: ...


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
    """What is on disk, of one component.

    Attributes:
        order: the last one.
        state, reason: how that went.
        rollout: which one changed this component last; "" for none.
        choice: what was chosen before it (`chosen_binary`), None for what agent.toml says.
        package: the version of the package before it; "" where it did not come as one.
        before: how calls went before it: fields of CallFigures.
        floor: no version below this is taken; "": any is.
        boot, ended, restarts: of the agent that the order brought: in which boot it was last, whether it was told to
            end, and how often it began anew without having been told.
    """

    order: Order | None = None
    state: str = ""
    reason: str = ""
    rollout: str = ""
    choice: Mapping[str, str] | None = None
    package: str = ""
    before: Mapping[str, float] = field(default_factory=dict)
    floor: str = ""
    boot: str = ""
    ended: bool = True
    restarts: int = 0

    def concluded(self, order: Order) -> bool:
        return self.order == order and self.state in _CONCLUDED


def order_in(update: "WantedUpdate") -> Order:
    return Order(update.version, update.rollout, update.attempt, update.back)


def token_of(order: Order, component: str, more: str = "") -> str:
    """Return what tells a request for this order from all others."""
    words = (component, order.version, order.rollout, str(order.attempt), str(order.back), more)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def allowed(settings: UpdateSettings, component: str) -> None:
    """Raises RefusedUpdateError where the owner lets no controller change this."""
    if component not in settings.controller:
        raise RefusedUpdateError(
            f"the host's owner lets no controller bring versions of {component} "
            f'(agent.toml: [updates] controller = ["{component}"])'
        )


def judged(
    update: Offer,
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
    of_source(settings, MIRROR)
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
    lowest = (settings.min_envoy, "min_envoy") if manifest.component == ENVOY else (settings.min_package, "min_package")
    not_below(manifest.version, floor, *lowest)
    return manifest


def of_source(settings: UpdateSettings, source: str) -> None:
    """Raises RefusedUpdateError where the owner wants nothing from there."""
    if source not in settings.sources:
        raise RefusedUpdateError(
            f'the host\'s owner takes no versions from there (agent.toml: [updates] sources = ["{source}"])'
        )


def not_below(version: str, floor: str, lowest: str, name: str) -> None:
    """Raises RefusedUpdateError for a version below a floor: the kept one, or that of a setting of agent.toml."""
    for each, whose in ((lowest, f"{name} of agent.toml"), (floor, "what was rolled out before")):
        if each and order_of(version) < order_of(each):
            raise RefusedUpdateError(f"{version} is below {each}, the floor of this host ({whose})")


def from_packages(version: str, component: str, settings: UpdateSettings, floor: str) -> None:
    """Raises RefusedUpdateError where the host does not take a version that its package manager has."""
    allowed(settings, component)
    of_source(settings, PACKAGES)
    not_below(version, floor, settings.min_package, "min_package")


def raised(floor: str, manifest: Manifest) -> str:
    """Return the floor once a version is everywhere."""
    return max(floor, manifest.least, key=order_of) if manifest.least else floor


def written(standing: Standing) -> dict[str, Any]:
    """Return the document for the disk."""
    return asdict(standing)


def read(document: Any) -> Standing:
    """Return what `written` returned. Raises KeyError, TypeError, ValueError."""
    order = document["order"]
    before = {str(name): float(value) for name, value in document["before"].items()}
    return Standing(**{**document, "order": None if order is None else Order(**order), "before": before})
