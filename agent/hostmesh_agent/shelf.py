"""What the exchange holds of one type: the controller's newest, what Envoy accepted, and what is not settled yet."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hostmesh_api.delta import Resource


@dataclass(slots=True)
class Shelf:
    """One type's resources."""

    held: dict[str, Resource] = field(default_factory=dict)
    """The controller's newest."""
    good: dict[str, Resource] = field(default_factory=dict)
    """What Envoy accepted; on disk."""
    listed: set[str] = field(default_factory=set)
    """Names that came under "*"."""
    lingering: set[str] = field(default_factory=set)
    """Names the controller removed that Envoy keeps until it connects again; in `held` and `listed` for so long."""
    absent: set[str] = field(default_factory=set)
    """Names the controller said do not exist."""
    fresh: set[str] = field(default_factory=set)
    """Names that changed and are not settled yet."""
    owed: list[str] = field(default_factory=list)
    """Nonces of the controller's responses that are not acknowledged yet."""
    failures: dict[str, str] = field(default_factory=dict)
    """What Envoy said of names that it refused; it counts for those that are `fresh`."""
    refused: dict[str, Resource] = field(default_factory=dict)
    """What Envoy would not take, for another try when its files have changed."""
    complete: bool = False
    """The controller has answered "*", now or in an earlier life."""

    def put(self, resource: Resource, *, listed: bool) -> None:
        """Take what the controller sent; `listed`: because of "*" and not by its name."""
        self.refused.pop(resource.name, None)
        self.held[resource.name] = resource
        self.lingering.discard(resource.name)
        self.absent.discard(resource.name)
        if listed:
            self.listed.add(resource.name)

    def remove(self, name: str, *, asked: bool, lingers: bool) -> None:
        """Take note that the controller removed a name; `asked`: it is asked for by its name, so it is absent."""
        self.refused.pop(name, None)
        if lingers:
            self.lingering.add(name)
            return
        self.held.pop(name, None)
        self.listed.discard(name)
        if asked:
            self.absent.add(name)

    def end_lingering(self) -> None:
        """Let go of what Envoy kept only for its old connections."""
        for name in self.lingering:
            self.held.pop(name, None)
            self.listed.discard(name)
        self.lingering.clear()

    @property
    def is_ahead(self) -> bool:
        """Whether Envoy has still to accept something."""
        return any(True for _ in self._unsettled())

    def _unsettled(self) -> Iterator[str]:
        return (name for name in self.fresh if self.held.get(name) != self.good.get(name))

    def accept(self, name: str) -> bool:
        """Take note that Envoy accepted what is held of a name, if it is not gone; tell whether that is to be kept."""
        resource = self.held.get(name)
        if resource is None or name in self.lingering:
            return self.good.pop(name, None) is not None
        self.good[name] = resource
        return True

    def undo(self, name: str) -> None:
        """Go back to what Envoy accepted before, or to nothing."""
        if name in self.held:
            self.refused[name] = self.held[name]
        good = self.good.get(name)
        if good is None:
            self.held.pop(name, None)
            self.absent.add(name)
        else:
            self.held[name] = good

    def offer_again(self) -> Iterable[str]:
        """Hold what Envoy refused once more; return the names."""
        again, self.refused = self.refused, {}
        self.held.update(again)
        self.absent.difference_update(again)
        self.fresh.update(again)
        return again.keys()

    def forget(self, name: str) -> bool:
        """Forget a name that nobody asks for any more; tell whether Envoy had accepted it."""
        self.held.pop(name, None)
        self.absent.discard(name)
        self.fresh.discard(name)
        return self.good.pop(name, None) is not None

    def versions(self) -> Mapping[str, str]:
        """Return the version of each resource that Envoy accepted; "" for what is not settled yet.

        A controller that went back to what was accepted, while nobody heard it, would have nothing to say otherwise.
        """
        told = {name: resource.version for name, resource in self.good.items()}
        return told | dict.fromkeys(self._unsettled(), "")
