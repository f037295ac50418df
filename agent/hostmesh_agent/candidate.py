"""What an Envoy lacks whose word does not count yet: it is served the same as the other, and decides nothing. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from hostmesh_agent.places import Instance
from hostmesh_agent.shelf import Shelf
from hostmesh_api.delta import Received, ServerStream
from hostmesh_api.wire import CLUSTER_TYPE, LISTENER_TYPE


@dataclass(slots=True)
class Candidates:
    """What such Envoys refused."""

    _refused: dict[Instance, dict[tuple[str, str], str]] = field(default_factory=dict)
    """Why, by type and name."""

    def forget(self, instance: Instance) -> None:
        """Begin anew with an Envoy, or with one that decides from now on."""
        self._refused.pop(instance, None)

    def heed(self, instance: Instance, received: Received) -> None:
        """Take note of what an Envoy says of what it was sent."""
        refused = self._refused.setdefault(instance, {})
        if received.nacked is not None and len(received.nacked.names) == 1:
            refused[received.type_url, received.nacked.names[0]] = received.nacked.message
        for name in received.acked or ():
            refused.pop((received.type_url, name), None)

    def offer(self, type_url: str, names: Iterable[str], instance: Instance | None = None) -> None:
        """Take note that something else is sent under these names, to one Envoy or to all."""
        told = list(names)
        for each, refused in self._refused.items():
            if instance in {None, each}:
                for name in told:
                    refused.pop((type_url, name), None)

    def lacks(self, instance: Instance, down: ServerStream | None, shelves: Mapping[str, Shelf]) -> tuple[str, ...]:
        """Say what an Envoy does not have of the listeners and clusters that are accepted; empty if it has all.

        `down` is its stream; None: there is none.
        """
        if down is None:
            return ("it has not asked for its configuration",)
        lacking = [f"it refuses {name}: {why}" for (_, name), why in sorted(self._refused.get(instance, {}).items())]
        for type_url in (CLUSTER_TYPE, LISTENER_TYPE):
            shelf, held = shelves.get(type_url, Shelf()), down.held(type_url)
            if not down.settled(type_url):
                lacking.append(f"it has not taken its {type_url.rpartition('.')[2].lower()}s yet")
            missing = [name for name in shelf.listed & shelf.good.keys() if held.get(name) != shelf.good[name].version]
            lacking += [f"it does not have {name}" for name in sorted(missing) if name not in shelf.lingering]
        return tuple(lacking)
