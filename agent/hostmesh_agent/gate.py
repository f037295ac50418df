"""Between the controller's responses and the shelves: what goes on, and what is told of what is held back. Pure.

What `shrink` holds back is refused by name, and a confirmation is asked for: the controller answers once an operator
gives it. It is for one loss: it is asked for no more when that is over.
"""

from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from hostmesh_agent.belief import Belief
from hostmesh_agent.shrink import Held, ShrinkGuard
from hostmesh_api.delta import ClientStream, Update
from hostmesh_api.origin import Origin
from hostmesh_api.wire import CONFIRMATION_NAME, CONFIRMATION_TYPE, HELD_BACK

CURE: Final = (
    "if that is wanted: hostmesh host confirm HOST, or on the host hostmesh-agent config accept; "
    "else put the configuration right"
)
Passed = tuple[list[Update], list[DeltaDiscoveryRequest]]
"""What is to be taken, and what to tell the controller."""


class Gate:
    """What the controller sends on one stream after the other; `up` is that stream."""

    def __init__(self, up: ClientStream, held: Held, origin: Origin | None) -> None:
        """`held` returns what the host has of a type, by name; `origin` is that of what it has, as far as known."""
        self._up = up
        self._belief = Belief(origin, origin)
        self._guard = ShrinkGuard(held, self._belief)
        self._origin_of_good = origin

    @property
    def held_back(self) -> str:
        """What the controller would suddenly take away, and is held back; "" for nothing."""
        return self._guard.reason

    @property
    def undecided(self) -> bool:
        """Whether something of the controller's waits for what comes with it."""
        return self._guard.waits

    @property
    def origin(self) -> Origin | None:
        """From which state of its store the controller made what it sent last."""
        return self._belief.latest

    def origin_to_keep(self, *, is_ahead: bool) -> Origin | None:
        """Return what the next start has to know of the controller's store; None: nothing explains anything then.

        It is what the accepted resources are of: the next start has no others, and is told the rest again. `is_ahead`:
        Envoy has still to accept something that explains itself by its origin.
        """
        known, is_held = self._belief.known, self.undecided or bool(self.held_back)
        if known is None or is_held or not is_ahead:
            self._origin_of_good = known
        return self._origin_of_good

    def opened(self) -> None:
        """Begin a stream."""
        self._guard.opened()

    def opening_over(self) -> None:
        """Take note that the stream stands since `shrink.OPENING_S`."""
        self._guard.opening_over()

    def closed(self) -> None:
        """End the stream: the next one says again what there is."""
        self._guard.clear()
        self._confirmation_not_needed()

    def take(self, update: Update) -> Passed:
        """Take a response."""
        if update.type_url == CONFIRMATION_TYPE:
            parts, told = self.accept() if update.resources else ([], [])
            return parts, [ClientStream.ack(update.type_url, update.nonce), *told]
        was_held_back = bool(self.held_back)
        parts = self._guard.take(update) or []
        if was_held_back and not self.held_back:
            return parts, self._confirmation_not_needed()
        if not self.held_back or any(part.nonce for part in parts):
            return parts, []
        refusal = ClientStream.nack(update.type_url, update.nonce, f"{HELD_BACK}{self.held_back}; {CURE}")
        asked = self._up.want(CONFIRMATION_TYPE, [CONFIRMATION_NAME]), self._up.open_type(CONFIRMATION_TYPE, {})
        return parts, [refusal, *filter(None, asked)]

    def decide(self) -> list[Update]:
        """Return what has waited, to be taken."""
        return self._guard.decide()

    def accept(self) -> Passed:
        """Let through what is held back."""
        return self._guard.accept(), self._confirmation_not_needed()

    def _confirmation_not_needed(self) -> list[DeltaDiscoveryRequest]:
        dropped = self._up.drop(CONFIRMATION_TYPE, [CONFIRMATION_NAME])
        return [] if dropped is None else [dropped]
