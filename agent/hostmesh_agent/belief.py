"""Which responses of the controller are explained by a write of somebody who was allowed to. Pure.

A response says from which state of the store it was made, and whether that was written for this host. Such a one of the
same lineage and a higher revision than the last that was heard carries what operators wrote since. Of a type there may
be several: what is taken away comes after what leads elsewhere. What comes at a revision that was known before the
stream began, or after a write that was none of this host's, was made by the controller itself.
"""

from dataclasses import dataclass

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
    _doubting: bool = False

    def opened(self) -> None:
        """Begin a stream: that the controller is still at the revision that is known explains nothing."""
        self._before, self._doubting = self.known, False

    def hear(self, origin: Origin | None) -> bool:
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
        is_later = self._before is not None and origin.revision > self._before.revision
        return is_written and is_later

    def doubt(self) -> None:
        """Know nothing any more: a loss that nobody explained stays one, however many writes follow on it."""
        self.known = self._before = None
        self._doubting = True

    def trust(self) -> None:
        """Go on from what was heard last: what was doubted is settled."""
        if self._doubting:
            self.known = self._before = self.latest
            self._doubting = False
