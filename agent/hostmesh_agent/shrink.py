"""A sudden loss of configuration is held back until somebody wants it. Pure.

A mistake of the controller, or a store that was restored to half of what it was, must not empty a host. What a write of
an operator explains passes (`belief`). What nothing explains is compared with what is here (`loss`): where it would
take much of any one type away, all that changes of the host's configuration is kept aside, and what ran goes on.

A loss shows in several types, one response each: in one it may be much of what there is, in another not. So what is
not explained waits a moment for the rest, and is judged with it. Once a stream stands, two do not wait: endpoints
alone, which come and go with the hosts, and what takes nothing away while nothing else waits. A workload that becomes
ready or leaves changes the identities of clusters too, and callers must hear of both at once, in their order. Things
that are new here pass at any time.

What is aside is let in when it is no loss any more (the controller sent back what was missing), or when it is wanted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from hostmesh_agent.belief import Belief
from hostmesh_agent.loss import MANY_ENDPOINTS, WORDS, gone, loses_ports, loss
from hostmesh_api.delta import PUSH_ORDER, Resource, Update
from hostmesh_api.wire import ENDPOINT_TYPE, HOST_CONFIG_TYPE

WAIT_S: Final = 2.0
"""How long what is not explained waits for what comes with it: the controller sends all types in one go, and a
thousand hosts that come back at once are served in a third of a second."""
OPENING_S: Final = 10.0
"""How long a stream may take to say how all that is here differs from what there is: five times that wait."""

Aside = dict[str, Resource | None]
Held = Callable[[str], Mapping[str, Resource]]
"""Returns what the host has of a type, by name."""


@dataclass(slots=True)
class ShrinkGuard:
    """What is held back on one stream."""

    held: Held
    belief: Belief = field(default_factory=Belief)
    _lost: str = ""
    """Why all that is aside is held back; "" while it only waits."""
    _emptied: str = ""
    """Why the endpoints in `_empty` are held back."""
    _aside: dict[str, Aside] = field(default_factory=dict)
    _empty: Aside = field(default_factory=dict)
    _begun: set[str] = field(default_factory=set)
    """Types of which this stream has brought a response."""
    _is_opening: bool = True

    @property
    def reason(self) -> str:
        """What would be lost, in words; "" while nothing is held back."""
        return self._lost or self._emptied

    @property
    def waits(self) -> bool:
        """Whether something waits for `decide`."""
        return bool(self._aside) and not self._lost

    def opened(self) -> None:
        """Begin a stream."""
        self._is_opening = True
        self.belief.opened()

    def opening_over(self) -> None:
        """Take note that what the stream began with has come: a type of which nothing came was as it is here."""
        self._is_opening = False

    def take(self, update: Update) -> list[Update] | None:
        """Return what to go on with in place of an update, or None: all there is to it is held back now.

        The last one returned carries its nonce, unless something of it is held back.
        """
        type_url = update.type_url
        if type_url not in WORDS:
            return [update]
        is_explained = self.belief.hear(update.origin)
        is_first = self._is_opening and type_url not in self._begun
        self._begun.add(type_url)
        new: Aside = {each.name: each for each in update.resources} | dict.fromkeys(update.removed)
        if self._lost:
            return self._hold(update, new)
        if is_explained:
            self._overtake(type_url, new)
            return [update]
        if update.origin is None and not self._emptied and not loss(type_url, self.held(type_url), new):
            # A controller that never explains anything would make each of its changes wait.
            return [update]
        is_quiet = not (self._is_opening or self._aside or self._emptied)
        if is_quiet and not self._takes_away(type_url, new):
            return [update]
        if type_url == ENDPOINT_TYPE and not is_first and (self._emptied or not self._aside):
            return self._endpoints(update, new)
        return self._wait(update, new)

    def _takes_away(self, type_url: str, new: Aside) -> bool:
        held = self.held(type_url)
        if type_url == HOST_CONFIG_TYPE:
            return loses_ports(held, new)
        return bool(gone(type_url, held, new) or loss(type_url, held, new))

    def _overtake(self, type_url: str, new: Aside) -> None:
        """Forget what waits of names of which something newer came."""
        waiting = self._aside.pop(type_url, {})
        self._keep(type_url, {name: each for name, each in waiting.items() if name not in new})

    def _keep(self, type_url: str, aside: Aside) -> None:
        if aside:
            self._aside[type_url] = aside

    def _wait(self, update: Update, new: Aside) -> list[Update] | None:
        """Put aside what changes of things that are here, and judge all that is aside."""
        passing = self._put_aside(update.type_url, new)
        self._lost = loss(update.type_url, self.held(update.type_url), self._aside.get(update.type_url, {}))
        if self._lost:
            self.belief.doubt()
            self._keep(ENDPOINT_TYPE, self._empty | self._aside.get(ENDPOINT_TYPE, {}))
            self._emptied, self._empty = "", {}
        return _rest(update, passing, is_refused=bool(self._lost))

    def _put_aside(self, type_url: str, new: Aside) -> Aside:
        """Put aside what changes of things that are here; return what passes."""
        held = self.held(type_url)
        if type_url == HOST_CONFIG_TYPE and not loses_ports(held, new):
            # It also says who was expelled: it waits for nobody.
            self._aside.pop(type_url, None)
            return new
        changed = {name: each for name, each in new.items() if name in held}
        self._keep(type_url, self._aside.get(type_url, {}) | changed)
        return {name: each for name, each in new.items() if name not in held}

    def _hold(self, update: Update, new: Aside) -> list[Update] | None:
        passing = self._put_aside(update.type_url, new)
        if not any(loss(type_url, self.held(type_url), aside) for type_url, aside in self._aside.items()):
            return [*self.accept(), _update(update.type_url, passing, update.nonce)]
        if update.type_url == HOST_CONFIG_TYPE and passing:
            return [update]
        return _rest(update, passing, is_refused=True)

    def _endpoints(self, update: Update, new: Aside) -> list[Update] | None:
        """Hold back endpoints alone, where far too many services would lose theirs while the stream lasts."""
        self._overtake(ENDPOINT_TYPE, new)
        held = self.held(ENDPOINT_TYPE)
        still = {name: each for name, each in self._empty.items() if name not in new}
        empty = still | {name: new[name] for name in gone(ENDPOINT_TYPE, held, new)}
        self._emptied = loss(ENDPOINT_TYPE, held, empty, MANY_ENDPOINTS)
        if not self._emptied:
            self._empty = {}
            self.belief.trust()
            return [_update(ENDPOINT_TYPE, still | new, update.nonce)]
        self._empty = empty
        self.belief.doubt()
        return _rest(update, {name: each for name, each in new.items() if name not in empty}, is_refused=True)

    def decide(self) -> list[Update]:
        """Return what has waited for long enough: what came with it takes not much away either."""
        if self._lost:
            return []
        aside, self._aside = self._aside, {}
        return _ordered(aside)

    def accept(self) -> list[Update]:
        """Return all that is aside: it is wanted."""
        aside = self._aside
        if self._empty:
            aside[ENDPOINT_TYPE] = self._empty | aside.get(ENDPOINT_TYPE, {})
        self._forget()
        self.belief.trust()
        return _ordered(aside)

    def clear(self) -> None:
        """Forget what is aside: the stream is over, and the next one says again what there is."""
        self._forget()
        self._begun.clear()

    def _forget(self) -> None:
        self._lost = self._emptied = ""
        self._aside, self._empty = {}, {}


def _rest(update: Update, passing: Aside, *, is_refused: bool) -> list[Update] | None:
    if not is_refused:
        return [_update(update.type_url, passing, update.nonce)]
    return [_update(update.type_url, passing, "")] if passing else None


def _ordered(aside: Mapping[str, Aside]) -> list[Update]:
    """Make before break, as the controller sends it."""
    return [_update(type_url, aside[type_url], "") for type_url in PUSH_ORDER if aside.get(type_url)]


def _update(type_url: str, new: Mapping[str, Resource | None], nonce: str) -> Update:
    resources: Iterable[Resource] = (each for each in new.values() if each is not None)
    return Update(type_url, nonce, tuple(resources), tuple(name for name, each in new.items() if each is None))
