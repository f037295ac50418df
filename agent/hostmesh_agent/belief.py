"""Which responses of the controller are explained by a write of somebody who was allowed to. Pure.

A response says from which state of the store it was made, and whether that was written for this host. Such a one of the
same lineage and a higher revision than the last that was heard carries what operators wrote since. Of each type it is
the first response of that revision: the controller has one response of a type in flight, and puts all that is due into
the next one. What comes at a revision that was known before the stream began, after a write that was none of this
host's, or a second time, was made by the controller itself.
"""

from dataclasses import dataclass, field

from hostmesh_api.origin import Origin


@dataclass(slots=True)
class Belief:
    """What one agent knows of the controller's store, across streams."""

    known: Origin | None = None
    """The last origin that was heard, to be remembered across restarts; None: nothing that explains anything."""
    latest: Origin | None = None
    """The same, but for doubts: what the controller is told when a stream begins."""
    _before: Origin | None = None
    """What was known before `known` was heard on this stream."""
    _heard: set[str] = field(default_factory=set)
    """Types of which there was a response at `known` on this stream."""
    _doubting: bool = False

    def opened(self) -> None:
        """Begin a stream: that the controller is still at the revision that is known explains nothing."""
        self._before, self._doubting = self.known, False
        self._heard.clear()

    def hear(self, type_url: str, origin: Origin | None) -> bool:
        """Take note of a response; return whether its losses are explained."""
        is_written = origin is not None and origin.is_written
        origin = None if origin is None else origin._replace(is_written=False)
        self.latest = origin or self.latest
        if self._doubting:
            return False
        known = self.known
        if origin is None or known is None or origin.lineage != known.lineage or origin.revision < known.revision:
            self.known = self._before = origin
            return False
        if origin.revision > known.revision:
            self.known, self._before = origin, known
            self._heard.clear()
        is_later = self._before is not None and origin.revision > self._before.revision
        if not is_written or type_url in self._heard:
            return False
        self._heard.add(type_url)
        return is_later

    def doubt(self) -> None:
        """Know nothing any more: a loss that nobody explained stays one, however many writes follow on it."""
        self.known = self._before = None
        self._doubting = True

    def trust(self) -> None:
        """Go on from what was heard last: what was doubted is settled."""
        if self._doubting:
            self.known = self._before = self.latest
            self._doubting = False
