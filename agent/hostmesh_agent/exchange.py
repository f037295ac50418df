"""Between Envoy and the controller, without I/O: two delta streams around one set of resources.

Envoy is answered from what is here, so it needs no controller to start. What Envoy accepts becomes last-known-good;
what it refuses is undone here and told to the controller, and only then. The controller's response counts as
acknowledged when Envoy has settled all of it.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, Protocol

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from hostmesh_agent.absence import AWAY, is_no_cluster, is_no_virtual_host, no_virtual_host
from hostmesh_agent.cache import Change, Entry
from hostmesh_agent.candidate import Candidates
from hostmesh_agent.chosen import BY_PROGRAMS, MAX_CHOSEN, make_room
from hostmesh_agent.client_filter import without_clients
from hostmesh_agent.gate import Gate
from hostmesh_agent.loss import WORDS
from hostmesh_agent.own_first import OwnFirst
from hostmesh_agent.places import BLUE, Instance, moved
from hostmesh_agent.refusals import Refusal, with_refusal
from hostmesh_agent.shelf import Shelf
from hostmesh_api.delta import (
    WILDCARD,
    WILDCARD_TYPES,
    Answer,
    ClientStream,
    Push,
    Received,
    Resource,
    ServerStream,
    Update,
)
from hostmesh_api.origin import Origin
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    HOST_CONFIG_NAME,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    VIRTUAL_HOST_TYPE,
)

GIVEN_UP_AFTER: Final = timedelta(seconds=30)
"""An Envoy that ends gives up all its names on the way out: only what a living one gives up is forgotten."""
_INBOUND_CLUSTER: Final = "inbound|"


class Extensions(Protocol):
    """What makes configurations of extensions fit for this host: they may name what has to be fetched first."""

    def given(self, resource: Resource) -> Resource | None:
        """Return what Envoy gets for what the controller sent, under a version of its own; None: not decided yet."""

    def refused(self, resource: Resource, why: str) -> None:
        """Take to the answer that stands for what Envoy would not have."""

    def forget(self, name: str) -> None: ...


class Cold(Protocol):
    """What is known of things that this host may call and has not called: for the time without a controller."""

    def answer(self, type_url: str, name: str) -> Resource | None:
        """Return a resource as the controller would send it; None: there is no such thing, or it is not known."""


class Exchange:
    """The state between the two streams. Callers feed it events and write what it returns."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        *,
        max_chosen: int = MAX_CHOSEN,
        extensions: Extensions | None = None,
        cold: Cold | None = None,
        host_refuses: Callable[[str, Resource], str] = lambda *_: "",
        origin: Origin | None = None,
    ) -> None:
        """`origin` is that of the entries, as far as it is known.

        `host_refuses` returns why Envoy must not get a resource of a type, whatever the controller says; or "".
        """
        self._host_refuses = host_refuses
        self._kept_back: set[tuple[str, str]] = set()
        self._max_chosen = max_chosen
        self._extensions = extensions
        self._cold = cold
        self._shelves: dict[str, Shelf] = {}
        self._own_first = OwnFirst(self._shelf(HOST_CONFIG_TYPE), self._shelf(LISTENER_TYPE))
        self._downs: dict[Instance, ServerStream] = {}
        self._judge = BLUE
        self._use_clients: frozenset[Instance] = frozenset()
        self._candidates = Candidates()
        self._up = ClientStream()
        self._cut_off = False
        self._given_up: dict[tuple[str, str], datetime] = {}
        self._returning: set[str] = set()
        """Clusters of which Envoy has only that they do not exist, and which exist now."""
        self._changes: dict[tuple[str, str], Change] = {}
        self.refusals: list[Refusal] = []
        self._gate = Gate(self._up, lambda type_url: self._shelf(type_url).held, origin)
        for entry in entries:
            self._restore(entry)
        self._up.want(HOST_CONFIG_TYPE, [HOST_CONFIG_NAME])

    def _restore(self, entry: Entry) -> None:
        if self._host_refuses(entry.type_url, entry.resource):
            # What the host's owner allows may have changed since.
            return
        shelf = self._shelf(entry.type_url)
        name = entry.resource.name
        shelf.held[name] = shelf.good[name] = entry.resource
        if entry.listed:
            shelf.listed.add(name)
            shelf.complete = True
            self._up.want(entry.type_url, [WILDCARD])
        else:
            self._up.want(entry.type_url, [name])

    def _shelf(self, type_url: str) -> Shelf:
        return self._shelves.setdefault(type_url, Shelf())

    # Who judges

    @property
    def _down(self) -> ServerStream | None:
        """The stream of the Envoy whose word counts: what it accepts is good, what it refuses is undone."""
        return self._downs.get(self._judge)

    def judged_by(self, instance: Instance) -> None:
        """Take the word of this Envoy from now on. Another one is served the same, and decides nothing."""
        if instance is self._judge:
            return
        self._judge = instance
        self._candidates.forget(instance)
        self._given_up.clear()

    def lacks(self, instance: Instance) -> tuple[str, ...]:
        """Say what an Envoy does not have of the listeners and clusters that are accepted; empty if it has all."""
        return self._candidates.lacks(instance, self._downs.get(instance), self._shelves)

    def _mark(self, type_url: str, names: Iterable[str]) -> None:
        told = list(names)
        for down in self._downs.values():
            down.mark(type_url, told)

    # The controller's side

    def connected(self) -> list[DeltaDiscoveryRequest]:
        """Open the stream to the controller; return its first requests."""
        self._cut_off = False
        self._gate.opened()
        return self._up.open({type_url: shelf.versions() for type_url, shelf in self._shelves.items()})

    def disconnected(self) -> None:
        """Close the stream to the controller; what it is owed is void."""
        self._up.close()
        self._gate.closed()
        for shelf in self._shelves.values():
            shelf.owed.clear()

    def cut_off(self) -> None:
        """Stop waiting for the controller: answer what is unknown as absent, until it is back.

        A request to a name nobody here knows must fail at once rather than hang for the length of an outage.
        """
        self._cut_off = True
        for down in self._downs.values():
            down.mark_all()

    def update(self, update: Update) -> list[DeltaDiscoveryRequest]:
        """Take a response of the controller for Envoy; return what to tell of it at once.

        What would take away much of what there is, and nobody explains, is held back and refused; what goes on
        meanwhile is what was. While `undecided`, `decide` is to be called after `shrink.WAIT_S`.
        """
        return self._let_in(*self._gate.take(update))

    def _let_in(self, parts: Iterable[Update], told: list[DeltaDiscoveryRequest]) -> list[DeltaDiscoveryRequest]:
        for part in parts:
            self._take(part)
        return told

    @property
    def held_back(self) -> str:
        """What the controller would suddenly take away, and is held back; "" for nothing."""
        return self._gate.held_back

    @property
    def undecided(self) -> bool:
        """Whether something of the controller's waits for what comes with it."""
        return self._gate.undecided

    def opening_over(self) -> None:
        """Take note that the stream to the controller stands since `shrink.OPENING_S`."""
        self._gate.opening_over()

    def decide(self) -> None:
        """Take what has waited."""
        self._let_in(self._gate.decide(), [])

    @property
    def origin(self) -> Origin | None:
        """From which state of its store the controller made what it sent last."""
        return self._gate.origin

    def accept(self) -> list[DeltaDiscoveryRequest]:
        """Take what is held back; return what to tell."""
        return self._let_in(*self._gate.accept())

    def _take(self, update: Update) -> None:
        shelf = self._shelf(update.type_url)
        type_url = update.type_url
        if type_url == HOST_CONFIG_TYPE:
            self._own_first.is_again = False
        everything = self._up.wants(type_url, WILDCARD)
        if type_url == CLUSTER_TYPE:
            # The endpoints of a cluster that comes (back) are on their way. That there were none was said when it went:
            # told so once more, Envoy would take the cluster into use without endpoints.
            came = [each.name for each in update.resources if is_no_cluster(shelf.held.get(each.name))]
            self._shelf(ENDPOINT_TYPE).absent.difference_update(came)
            self._returning.update(name for name in came if name in shelf.held)
        for resource in update.resources:
            shelf.put(resource, listed=not self._up.wants(type_url, resource.name))
            self._keep_back(type_url, shelf, resource)
        for name in update.removed:
            if (type_url, name) in self._kept_back:
                self._kept_back.discard((type_url, name))
                shelf.failures.pop(name, None)
            shelf.remove(name, asked=self._up.wants(type_url, name), lingers=self._lingers(type_url, name))
        names = [*(resource.name for resource in update.resources), *update.removed]
        shelf.fresh.update(names)
        if update.nonce:
            shelf.owed.append(update.nonce)
        shelf.complete = shelf.complete or everything
        self._mark(type_url, names)
        self._candidates.offer(type_url, names)
        if everything:
            for down in self._downs.values():
                down.mark_all(type_url)

    def _keep_back(self, type_url: str, shelf: Shelf, resource: Resource) -> None:
        """Refuse a resource in Envoy's place if the host's floor forbids it."""
        self._kept_back.discard((type_url, resource.name))
        why = self._host_refuses(type_url, resource)
        if why:
            shelf.undo(resource.name)
            # Not to be offered to Envoy another time.
            shelf.refused.pop(resource.name, None)
            shelf.failures[resource.name] = why
            self._kept_back.add((type_url, resource.name))

    def _lingers(self, type_url: str, name: str) -> bool:
        """Tell whether Envoy keeps what the controller removed.

        Connections that came while a port was captured live on under the chain that let them in, for as long as Envoy
        drains it, and their next requests still go to its cluster. Without a chain nothing else gets there. And a
        filter that has lost its configuration refuses everything until its chain goes.
        """
        has_it = self._down is not None and name in self._shelf(type_url).held
        is_inbound = type_url == CLUSTER_TYPE and name.startswith(_INBOUND_CLUSTER)
        return has_it and (is_inbound or type_url == EXTENSION_TYPE)

    # The agent's own resource

    def host_config(self) -> Resource | None:
        """Return the newest HostConfig; None before the first."""
        return self._shelf(HOST_CONFIG_TYPE).held.get(HOST_CONFIG_NAME)

    def own_in_force(self, own: Resource) -> None:
        """Say that the agent has applied a HostConfig which is not the newest any more."""
        shelf = self._shelf(HOST_CONFIG_TYPE)
        shelf.good[own.name] = own
        self._to_disk(HOST_CONFIG_TYPE, shelf, own.name)

    def own_settled(self, error: str, now: datetime) -> list[DeltaDiscoveryRequest]:
        """Say that the agent has applied (or, with `error`, refused) its HostConfig; return what to tell."""
        shelf = self._shelf(HOST_CONFIG_TYPE)
        if error:
            for name in shelf.fresh:
                shelf.failures[name] = error
        self._own_first.is_again = False
        # What Envoy kept in place of others may have to go now.
        self._mark(LISTENER_TYPE, self._shelf(LISTENER_TYPE).fresh)
        return self._conclude(HOST_CONFIG_TYPE, shelf, now)

    # Envoy's side

    def envoy_connected(self, instance: Instance = BLUE, *, uses_clients: bool = False) -> None:
        """Begin a stream with an Envoy; an earlier one of the same instance is forgotten.

        `uses_clients`: it may use its clients' addresses.
        """
        self._use_clients = self._use_clients - {instance} | ({instance} if uses_clients else set())
        self._downs[instance] = ServerStream()
        self._candidates.forget(instance)
        if instance is self._judge:
            self._given_up.clear()
            for shelf in self._shelves.values():
                shelf.end_lingering()

    def envoy_disconnected(self, instance: Instance = BLUE) -> None:
        """End the stream with an Envoy."""
        self._downs.pop(instance, None)
        if instance is self._judge:
            self._given_up.clear()

    def receive(
        self, request: DeltaDiscoveryRequest, now: datetime, instance: Instance = BLUE
    ) -> list[DeltaDiscoveryRequest]:
        """Take a request of an Envoy; return what to ask of the controller because of it."""
        down = self._downs.get(instance)
        if down is None:
            return []
        received = down.receive(request)
        type_url = received.type_url
        shelf = self._shelf(type_url)
        if instance is self._judge:
            self._heed(received, shelf, now)
        else:
            self._candidates.heed(instance, received)
        for name in received.subscribed:
            self._given_up.pop((type_url, name), None)
        asked, dropped = received.subscribed, None
        if type_url in BY_PROGRAMS and request.resource_names_subscribe:
            # A name that was given up here and is asked for again by Envoy, which has it still, counts as new.
            asked, given_up = make_room(type_url, shelf, self._up, request.resource_names_subscribe, self._max_chosen)
            for name in given_up:
                self._forget(type_url, shelf, name)
            dropped = self._up.drop(type_url, given_up)
        requests = [dropped, self._up.want(type_url, asked), self._up.open_type(type_url, shelf.versions())]
        return [request for request in requests if request is not None]

    def _heed(self, received: Received, shelf: Shelf, now: datetime) -> None:
        """Take note of what the judge refuses and gives up."""
        type_url = received.type_url
        if received.nacked is not None and len(received.nacked.names) == 1:
            (name,) = received.nacked.names
            shelf.failures[name] = received.nacked.message
            shelf.fresh.add(name)
            self.refusals = with_refusal(self.refusals, Refusal(now, type_url, name, received.nacked.message))
        for name in received.unsubscribed:
            if name != WILDCARD:
                self._given_up[type_url, name] = now

    def _forget_given_up(self, now: datetime) -> list[DeltaDiscoveryRequest]:
        due = [key for key, since in self._given_up.items() if now - since >= GIVEN_UP_AFTER]
        requests = [self._up.drop(type_url, [name]) for type_url, name in due]
        for type_url, name in due:
            del self._given_up[type_url, name]
            self._forget(type_url, self._shelf(type_url), name)
        return [request for request in requests if request is not None]

    def extension_decided(self, name: str) -> None:
        """Say that `Extensions.given` has another answer for a name."""
        self._mark(EXTENSION_TYPE, [name])

    def _forget(self, type_url: str, shelf: Shelf, name: str) -> None:
        if type_url == EXTENSION_TYPE and self._extensions is not None:
            self._extensions.forget(name)
        if shelf.forget(name):
            self._to_disk(type_url, shelf, name)

    def pushes(self, instance: Instance = BLUE) -> list[Push]:
        """Return the responses that are due to an Envoy now."""
        down = self._downs.get(instance)
        if down is None:
            return []
        pushes: list[Push] = []
        for push in down.pushes(_Served(self, instance, down), self._own_first.held_back):
            if push.type_url == CLUSTER_TYPE:
                # Envoy warms a changed cluster until it is told the endpoints again, and does not ask for what it has.
                down.force(ENDPOINT_TYPE, push.names)
                if instance is self._judge:
                    returning = self._returning.intersection(push.removed)
                    self._returning -= returning
                    down.mark(CLUSTER_TYPE, returning)
            pushes.append(push)
        return pushes

    def settle(self, now: datetime) -> list[DeltaDiscoveryRequest]:
        """Return what to tell the controller, now that Envoy has nothing more to say about some of its responses."""
        if self._down is None:
            return []
        requests = self._forget_given_up(now)
        for type_url, shelf in self._shelves.items():
            if type_url == HOST_CONFIG_TYPE or not (shelf.owed or shelf.fresh) or self._is_undecided(type_url, shelf):
                continue
            if self._down.settled(type_url):
                requests += self._conclude(type_url, shelf, now)
        return requests

    def _is_undecided(self, type_url: str, shelf: Shelf) -> bool:
        """Tell whether Envoy has not been sent something that came: what it needs is being fetched, or it must wait."""
        if type_url == LISTENER_TYPE:
            came = (shelf.held[name] for name in shelf.fresh if name in shelf.held)
            return any(self._own_first.in_place_of(each) for each in came)
        extensions = self._extensions
        if type_url != EXTENSION_TYPE or extensions is None:
            return False
        return any(name in shelf.held and extensions.given(shelf.held[name]) is None for name in shelf.fresh)

    def _conclude(self, type_url: str, shelf: Shelf, now: datetime) -> list[DeltaDiscoveryRequest]:
        failures = {name: message for name, message in shelf.failures.items() if name in shelf.fresh}
        for name in shelf.fresh:
            if (type_url, name) in self._kept_back:
                continue
            if name in failures and not self._stands_in(type_url, shelf, name, failures[name]):
                shelf.undo(name)
                self._tell_others(type_url, name)
            elif shelf.accept(name):
                self._to_disk(type_url, shelf, name)
        shelf.fresh.clear()
        shelf.failures.clear()
        nonces, shelf.owed = shelf.owed, []
        if not failures:
            return [ClientStream.ack(type_url, nonce) for nonce in nonces]
        for name, message in failures.items():
            # Envoy's own are noted when it tells them.
            if type_url == HOST_CONFIG_TYPE or (type_url, name) in self._kept_back:
                self.refusals = with_refusal(self.refusals, Refusal(now, type_url, name, message))
        told = "; ".join(f"{name}: {message}" for name, message in sorted(failures.items()))
        return [ClientStream.nack(type_url, nonce, told) for nonce in nonces]

    def _tell_others(self, type_url: str, name: str) -> None:
        """Send what the judge would not have in its former version to who may have taken it."""
        for instance, down in self._downs.items():
            if instance is not self._judge:
                down.mark(type_url, [name])
                self._candidates.offer(type_url, [name], instance)

    def try_again(self) -> None:
        """Offer once more what Envoy refused, or the agent: a certificate that was missing may be there now."""
        for type_url, shelf in self._shelves.items():
            again = shelf.offer_again()
            if type_url == HOST_CONFIG_TYPE and again:
                self._own_first.is_again = True
            for down in self._downs.values():
                if again:
                    down.force(type_url, again)

    def has_refused(self) -> bool:
        """Tell whether there is something that Envoy, or the agent, would not take."""
        return any(shelf.refused for shelf in self._shelves.values())

    def _stands_in(self, type_url: str, shelf: Shelf, name: str, message: str) -> bool:
        """Tell whether Envoy gets something else in place of a first configuration of an extension that it refused.

        Without any, its filter would refuse everything, whatever the configuration says of failures.
        """
        resource = shelf.held.get(name)
        if type_url != EXTENSION_TYPE or self._extensions is None or resource is None or name in shelf.good:
            return False
        self._extensions.refused(resource, message)
        return True

    def _to_disk(self, type_url: str, shelf: Shelf, name: str) -> None:
        good = shelf.good.get(name)
        entry = None if good is None else Entry(type_url, name in shelf.listed, good)
        self._changes[type_url, name] = Change(type_url, name, entry)

    def take_changes(self) -> list[Change]:
        """Return what is to be written to disk since the last call."""
        changes, self._changes = list(self._changes.values()), {}
        return changes

    def origin_to_keep(self) -> Origin | None:
        """Return what the next start has to know of the controller's store; None: nothing explains anything then."""
        return self._gate.origin_to_keep(
            is_ahead=any(shelf.is_ahead for type_url, shelf in self._shelves.items() if type_url in WORDS)
        )

    def return_changes(self, changes: Iterable[Change]) -> None:
        """Take back what could not be written, unless it has changed again meanwhile."""
        for change in changes:
            self._changes.setdefault((change.type_url, change.name), change)

    def accepted_version(self, type_url: str, name: str) -> str | None:
        """Return the version of a resource that Envoy has accepted; None if it has none."""
        resource = self._shelf(type_url).good.get(name)
        return None if resource is None else resource.version

    def held(self, type_url: str) -> Iterable[Resource]:
        """Return the newest resources of a type."""
        return self._shelf(type_url).held.values()

    def accepted_resource(self, type_url: str, name: str) -> Resource | None:
        """Return a resource that Envoy has accepted; None if it has none."""
        return self._shelf(type_url).good.get(name)

    def accepted(self) -> Mapping[str, int]:
        """Return how many resources of each type are accepted."""
        return {type_url: len(shelf.good) for type_url, shelf in self._shelves.items() if shelf.good}

    # What Envoy's stream asks of its source

    def names(self, type_url: str) -> Iterable[str] | None:
        """Return the names that "*" stands for; None while the controller has not said and nothing is on disk."""
        shelf = self._shelf(type_url)
        if shelf.complete or type_url not in WILDCARD_TYPES:
            return list(shelf.listed)
        return None

    def answer(
        self, type_url: str, name: str, instance: Instance = BLUE, down: ServerStream | None = None
    ) -> Answer | None:
        """Return what an Envoy is told of a name; None while the controller may still say."""
        shelf = self._shelf(type_url)
        resource = shelf.held.get(name)
        if resource is None:
            cold = None if name in shelf.absent else self._cold_answer(type_url, name)
            if cold is not None:
                return Answer(cold)
            known = name in shelf.absent or not self._up.wants(type_url, name) or self._cut_off
            if not known:
                return None
            if type_url == ENDPOINT_TYPE and down is not None and self._is_led_to(name, down):
                return None
            if type_url != VIRTUAL_HOST_TYPE:
                return Answer(None)
            resource = no_virtual_host(name)
        if type_url == EXTENSION_TYPE and self._extensions is not None:
            given = self._extensions.given(resource)
            return None if given is None else Answer(given)
        if type_url == VIRTUAL_HOST_TYPE and down is not None and self._takes_away(resource, down):
            return Answer(None)
        if type_url == CLUSTER_TYPE and instance is self._judge and self._makes_way(name):
            return Answer(None)
        if type_url == LISTENER_TYPE:
            resource = self._own_first.in_place_of(resource) or resource
            own = resource if instance in self._use_clients else without_clients(resource)
            return Answer(moved(own, instance))
        return Answer(resource)

    def _cold_answer(self, type_url: str, name: str) -> Resource | None:
        """Return what the cold copy has of a name, while there is no controller to ask.

        It is not kept: what the controller says when it is back takes its place, and is not sent if it is the same.
        """
        if self._cold is None or self._up.is_open or not self._up.wants(type_url, name):
            return None
        found = self._cold.answer(type_url, name)
        return None if found is None or self._host_refuses(type_url, found) else found

    def _makes_way(self, name: str) -> bool:
        """Tell whether Envoy has to be told that a cluster is removed before it is sent it.

        What it has stands for a cluster that does not exist, and would go on answering 503 while the new one is
        warming. Without it, requests wait for the new one.
        """
        if name in self._returning and self._down is not None and name in self._down.held(CLUSTER_TYPE):
            return True
        self._returning.discard(name)
        return False

    def _is_led_to(self, name: str, down: ServerStream) -> bool:
        """Tell whether Envoy may call endpoints that are gone: what would lead it elsewhere is held back."""
        return self._own_first.awaited and name in down.held(ENDPOINT_TYPE)

    @staticmethod
    def _takes_away(resource: Resource, down: ServerStream) -> bool:
        """Tell whether Envoy has to be told that a virtual host it holds is removed.

        It would keep it when told that there is none. After the removal it asks again with the next request, and then
        the answer "there is none" counts (observed with Envoy 1.40).
        """
        version = down.held(VIRTUAL_HOST_TYPE).get(resource.name)
        return version not in (None, AWAY, resource.version) and is_no_virtual_host(resource)


class _Served:
    """What the stream of one Envoy asks: the same resources for each, listeners at the places of its own."""

    def __init__(self, exchange: Exchange, instance: Instance, down: ServerStream) -> None:
        self._exchange = exchange
        self._instance = instance
        self._down = down

    def names(self, type_url: str) -> Iterable[str] | None:
        return self._exchange.names(type_url)

    def answer(self, type_url: str, name: str) -> Answer | None:
        return self._exchange.answer(type_url, name, self._instance, self._down)
