"""What waits until the agent has applied its own configuration, and what Envoy keeps where it could not. Pure.

A HostConfig puts certificates in place and says which ports are captured. While it is applied, what names those
certificates waits, and so does a listener without the chain of a port that is released by it.

Where it is refused, or tried another time, only that listener waits: what programs call for the first time must not
fail because this host's disk is full.
"""

from dataclasses import dataclass
from typing import Final

from hostmesh_agent.listening import bound_ports
from hostmesh_agent.loss import loses_ports
from hostmesh_agent.shelf import Shelf
from hostmesh_api.delta import Resource
from hostmesh_api.wire import CLUSTER_TYPE, INBOUND_PORT, LISTENER_TYPE, ROUTE_TYPE, VIRTUAL_HOST_TYPE

_AFTER_OWN: Final = frozenset({CLUSTER_TYPE, LISTENER_TYPE, ROUTE_TYPE, VIRTUAL_HOST_TYPE})
"""What names certificates that the agent puts in place while it applies its own configuration; and routes, or they
would lead to clusters that Envoy does not have yet."""


@dataclass(slots=True)
class OwnFirst:
    """Looks at the shelf of the agent's `own` configuration and at that of the `listeners`."""

    own: Shelf
    listeners: Shelf
    is_again: bool = False
    """What is being applied was refused before."""

    @property
    def awaited(self) -> bool:
        """Whether a configuration that came is being applied."""
        return bool(self.own.owed or self.own.fresh) and not self.is_again

    @property
    def held_back(self) -> frozenset[str]:
        """The types of which Envoy is sent nothing for so long."""
        return _AFTER_OWN if self.awaited else frozenset()

    def in_place_of(self, listener: Resource) -> Resource | None:
        """Return the accepted listener that Envoy keeps in place of one; None: it gets that one."""
        good = self.listeners.good.get(listener.name)
        if good is None or good == listener or not self._captures_more():
            return None
        return good if INBOUND_PORT in bound_ports(good) else None

    def _captures_more(self) -> bool:
        """Tell whether ports are captured still that a configuration which is not in force takes away."""
        wanted = {name: self.own.held[name] for name in self.own.fresh if name in self.own.held}
        return loses_ports(self.own.good, wanted if self.is_again else self.own.refused)
