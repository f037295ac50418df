"""The serving side of one delta stream."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from sys import intern

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from hostmesh_api.delta.messages import (
    PUSH_ORDER,
    WILDCARD,
    WILDCARD_TYPES,
    Nack,
    Push,
    Received,
    Source,
    encode_response,
)
from hostmesh_api.wire import HELD_BACK


@dataclass(slots=True)
class _Subscription:
    """One type on one stream."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    held: dict[str, str] = field(default_factory=dict)
    """Name to version of what the client has, as far as it was told or told us."""
    dirty: set[str] = field(default_factory=set)
    dirty_all: bool = False
    waiting: set[str] = field(default_factory=set)
    """Names of which the source knows nothing yet. They may stay so for long: nothing else waits for them."""
    forced: set[str] = field(default_factory=set)
    """Names to answer even when the version is the one the client has."""
    must_answer: bool = False
    """The client waits for a first answer, even an empty one."""
    alone: set[str] = field(default_factory=set)
    """Names of a refused response: sent alone, so that one bad resource does not hold back the others."""
    nonce: str = ""
    in_flight: tuple[str, ...] = ()

    def due(self) -> bool:
        """Tell whether something may have to be sent, now or once what is in flight has been answered."""
        return bool(self.dirty or self.dirty_all or self.waiting or self.must_answer)

    def owes(self) -> bool:
        """Tell whether the client has still to be told something that is known."""
        return bool(self.nonce or self.dirty or self.dirty_all or (self.must_answer and not self.waiting))


def _place(type_url: str) -> int:
    return PUSH_ORDER.index(type_url) if type_url in PUSH_ORDER else len(PUSH_ORDER)


class ServerStream:
    """The serving side of one delta ADS stream.

    At most one response per type is in flight: changes that come meanwhile are folded into the next one, so a slow
    client costs memory for names only.
    """

    def __init__(self, at_most: int = 0) -> None:
        """`at_most` bounds the names of one response; 0: any number."""
        self._at_most = at_most
        self._types: dict[str, _Subscription] = {}
        """In the order in which they are pushed."""
        self._count = 0

    def receive(self, request: DeltaDiscoveryRequest) -> Received:
        """Take a request: an acknowledgement, a change of subscription, or both."""
        type_url = request.type_url
        known = self._types.get(type_url)
        first = known is None
        state = self._open(type_url) if known is None else known
        acked, nacked = self._settle(type_url, state, request)
        subscribe: tuple[str, ...] = tuple(request.resource_names_subscribe)
        if not (first or subscribe or request.resource_names_unsubscribe):
            # An acknowledgement alone is what nearly all requests are: the rest of this took half of its time.
            return Received(type_url, (), (), acked, nacked)
        if first:
            # Of thousands of clients that say the same, the words are kept once.
            state.held.update((intern(name), intern(held)) for name, held in request.initial_resource_versions.items())
            state.must_answer = not state.held
            if not subscribe and type_url in WILDCARD_TYPES:
                subscribe = (WILDCARD,)
        new = self._subscribe(state, subscribe, first=first)
        gone = self._unsubscribe(state, request.resource_names_unsubscribe)
        return Received(type_url, new, gone, acked, nacked)

    def _open(self, type_url: str) -> _Subscription:
        state = _Subscription()
        types = {**self._types, type_url: state}
        self._types = {each: types[each] for each in sorted(types, key=_place)}
        return state

    def _settle(
        self, type_url: str, state: _Subscription, request: DeltaDiscoveryRequest
    ) -> tuple[tuple[str, ...] | None, Nack | None]:
        if not request.response_nonce or request.response_nonce != state.nonce:
            return None, None
        names, state.in_flight, state.nonce = state.in_flight, (), ""
        if not request.HasField("error_detail"):
            return names, None
        if len(names) > 1 and not request.error_detail.message.startswith(HELD_BACK):
            state.alone.update(names)
            state.dirty.update(names)
            state.forced.update(names)
        return None, Nack(type_url, names, request.error_detail.message)

    @staticmethod
    def _subscribe(state: _Subscription, names: Iterable[str], *, first: bool) -> tuple[str, ...]:
        new: list[str] = []
        for name in names:
            if name == WILDCARD:
                if not state.wildcard:
                    new.append(name)
                state.wildcard = state.dirty_all = True
                continue
            if name not in state.names:
                new.append(name)
                state.names.add(name)
            state.dirty.add(name)
            # Asking again for a name means that the client forgot it; on a new stream it says what it still has.
            if not (first and name in state.held):
                state.forced.add(name)
        return tuple(new)

    @staticmethod
    def _unsubscribe(state: _Subscription, names: Iterable[str]) -> tuple[str, ...]:
        gone: list[str] = []
        for name in names:
            if name == WILDCARD:
                state.wildcard = False
            elif name in state.names:
                state.names.discard(name)
            else:
                continue
            gone.append(name)
            state.held.pop(name, None)
            for pending in (state.dirty, state.waiting, state.forced, state.alone):
                pending.discard(name)
        return tuple(gone)

    def mark(self, type_url: str, names: Iterable[str]) -> None:
        """Say that these names may have changed; those that the client did not ask for are passed over."""
        state = self._types.get(type_url)
        if state is not None:
            state.dirty.update(name for name in names if name in state.names or name in state.held)

    def mark_listed(self, type_url: str, names: Iterable[str]) -> None:
        """Say that these names may have changed, or are new or gone, of those that the client gets without asking.

        Passed over by a client that asked for others only.
        """
        state = self._types.get(type_url)
        if state is not None:
            state.dirty.update(name for name in names if state.wildcard or name in state.names or name in state.held)

    def force(self, type_url: str, names: Iterable[str]) -> None:
        """Have these names sent again, changed or not; those that the client did not ask for are passed over."""
        state = self._types.get(type_url)
        if state is not None:
            asked = [name for name in names if name in state.names or name in state.held]
            state.dirty.update(asked)
            state.forced.update(asked)

    def mark_all(self, type_url: str | None = None) -> None:
        """Say that anything the client asked for may have changed, of one type or of all."""
        for each, state in self._types.items():
            if type_url is None or each == type_url:
                state.dirty_all = True

    def has_room(self, type_url: str, limit: int) -> bool:
        """Tell whether a request for a type would leave the stream with at most `limit` types."""
        return type_url in self._types or len(self._types) < limit

    def subscriptions(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield each type with the names asked for, "*" among them where all are."""
        for type_url, state in self._types.items():
            yield type_url, frozenset(state.names | ({WILDCARD} if state.wildcard else set()))

    def types(self) -> Iterable[str]:
        """Return the types that the client has asked for."""
        return self._types.keys()

    def has_wildcard(self, type_url: str) -> bool:
        """Tell whether the client wants all that there is of a type."""
        state = self._types.get(type_url)
        return state is not None and state.wildcard

    def has_asked(self, type_url: str, name: str) -> bool:
        """Tell whether the client asked for a name itself."""
        state = self._types.get(type_url)
        return state is not None and name in state.names

    def held(self, type_url: str) -> Mapping[str, str]:
        """Return name to version of what the client has of a type."""
        state = self._types.get(type_url)
        return {} if state is None else state.held

    def settled(self, type_url: str) -> bool:
        """Tell whether the client has acknowledged (or refused) all that it is due of a type."""
        state = self._types.get(type_url)
        return state is None or not state.owes()

    def idle(self) -> bool:
        """Tell whether the client has acknowledged (or refused) all that it is due."""
        return all(self.settled(type_url) for type_url in self._types)

    def due(self) -> bool:
        """Tell whether `pushes` may have something: an acknowledgement mostly leaves nothing to do."""
        return any(not state.nonce and state.due() for state in self._types.values())

    def pushes(self, source: Source, held_back: Container[str] = ()) -> Iterator[Push]:
        """Yield the responses that are due now, in make-before-break order; the caller writes each.

        Types in `held_back` stay due.
        """
        for type_url, state in list(self._types.items()):
            while not state.nonce and state.due() and type_url not in held_back:
                push = self._push(type_url, state, source)
                if push is None:
                    break
                yield push

    def _push(self, type_url: str, state: _Subscription, source: Source) -> Push | None:
        due = self._due(type_url, state, source)
        if due is None:
            return None
        now = self._at_once(state, due)
        bodies: list[bytes] = []
        sent: list[str] = []
        removed: list[str] = []
        waiting: set[str] = set()
        for index, name in enumerate(now):
            if self._at_most and len(sent) + len(removed) >= self._at_most:
                now = now[:index]
                break
            answer = source.answer(type_url, name)
            if answer is None:
                waiting.add(name)
            elif answer.resource is None:
                self._drop(state, name, removed)
            elif name in state.forced or state.held.get(name) != answer.resource.version:
                bodies.append(answer.resource.body)
                sent.append(name)
                state.held[name] = answer.resource.version
                state.forced.discard(name)
        state.dirty = set() if now is due else set(due).difference(now)
        state.waiting = state.waiting.difference(now) | waiting
        nothing = not bodies and not removed
        if nothing and (waiting or not state.must_answer):
            return None
        state.must_answer = False
        self._count += 1
        state.nonce = format(self._count, "x")
        state.in_flight = (*sent, *removed)
        data = encode_response(type_url, state.nonce, bodies, removed)
        return Push(type_url, state.nonce, tuple(sent), tuple(removed), data)

    @staticmethod
    def _at_once(state: _Subscription, due: list[str]) -> list[str]:
        """Return those of the due names that go into one response: all, or one that must be alone."""
        alone = next((name for name in due if name in state.alone), None) if state.alone else None
        if alone is None:
            return due
        state.alone.discard(alone)
        return [alone]

    @staticmethod
    def _due(type_url: str, state: _Subscription, source: Source) -> list[str] | None:
        due = state.dirty | state.waiting
        if state.dirty_all:
            everything = set(state.names)
            if state.wildcard:
                listed = source.names(type_url)
                if listed is None:
                    return None
                everything.update(listed)
                everything.update(state.held)
            due = due | everything
            state.dirty_all = False
        return sorted(due)

    @staticmethod
    def _drop(state: _Subscription, name: str, removed: list[str]) -> None:
        if state.held.pop(name, None) is not None or name in state.forced:
            removed.append(name)
        state.forced.discard(name)
