"""A sudden loss of configuration is held back until somebody wants it. Pure.

A mistake of the controller, or a store that was restored to half of what it was, must not empty a host. What the
controller sends is compared with what is here: where one response would take away most of what there is of a type, it
and what else changes of the host's configuration is kept aside, and what ran goes on. Things that are new here pass.
So do secrets, expulsions and other filters by name (ECDS): they take nothing away that is called, and must not wait.

What is aside is let in when it is no loss any more (the controller sent back what was missing), or when it is wanted.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_agent.absence import is_no_cluster, is_no_virtual_host
from hostmesh_agent.wire_fields import inside
from hostmesh_api.delta import Resource, Update
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    VIRTUAL_HOST_TYPE,
)

LEAST: Final[Mapping[str, int]] = {
    LISTENER_TYPE: 4,
    ROUTE_TYPE: 4,
    CLUSTER_TYPE: 8,
    ENDPOINT_TYPE: 8,
    VIRTUAL_HOST_TYPE: 8,
}
"""So many must go at once, and more than half of those there are. Fewer is what people do: an application of a few
services is deleted, a program leaves the host."""
LEAST_PORTS: Final = 8
"""Of the host's own programs: a host that serves a few is emptied on purpose now and then."""
LEAST_TABLE_BYTES: Final = 16 * 1024
"""Of a listener that is a table of the whole mesh (names, ports): one so large that loses more than half of its bytes
is a loss of its own. 16 KiB are the names of 40 services."""
_INBOUND: Final = "virtualInbound"
_ENDPOINTS: Final = 2
"""Field of ClusterLoadAssignment."""

_WORDS: Final[Mapping[str, str]] = {
    LISTENER_TYPE: "listeners",
    ROUTE_TYPE: "route tables",
    CLUSTER_TYPE: "clusters",
    ENDPOINT_TYPE: "services' endpoints",
    VIRTUAL_HOST_TYPE: "virtual hosts",
}

Aside = dict[str, Resource | None]


def there(type_url: str, resource: Resource | None) -> bool:
    """Tell whether a resource stands for something, and not for there being no such thing."""
    if resource is None:
        return False
    if type_url == CLUSTER_TYPE:
        return not is_no_cluster(resource)
    if type_url == VIRTUAL_HOST_TYPE:
        return not is_no_virtual_host(resource)
    if type_url == ENDPOINT_TYPE:
        return bool(inside(ResourceMessage.FromString(resource.body).resource.value, _ENDPOINTS))
    return True


def loss(type_url: str, held: Mapping[str, Resource], new: Mapping[str, Resource | None]) -> str:
    """Return what `new` would suddenly take away of what is held, in words; "" if it may."""
    if type_url == HOST_CONFIG_TYPE:
        return next(filter(None, (_lost_ports(held.get(name), each) for name, each in new.items())), "")
    least = LEAST.get(type_url)
    if least is None:
        return ""
    lost = [name for name, each in new.items() if there(type_url, held.get(name)) and not there(type_url, each)]
    if len(lost) >= least:
        before = sum(there(type_url, each) for each in held.values())
        if 2 * len(lost) > before:
            return f"{len(lost)} of {before} {_WORDS[type_url]} would go at once"
    if type_url == LISTENER_TYPE:
        return next(filter(None, (_lost_table(held.get(name), each) for name, each in new.items())), "")
    return ""


def _lost_table(before: Resource | None, after: Resource | None) -> str:
    if before is None or after is None or before.name == _INBOUND or len(before.body) < LEAST_TABLE_BYTES:
        return ""
    if 2 * len(after.body) >= len(before.body):
        return ""
    return f"listener {before.name} would lose more than half of what is in it"


def _lost_ports(before: Resource | None, after: Resource | None) -> str:
    old, new = _ports(before), _ports(after)
    lost = old - new
    if len(lost) < LEAST_PORTS or 2 * len(lost) <= len(old):
        return ""
    return f"{len(lost)} of {len(old)} ports of this host's programs would go at once"


def _ports(resource: Resource | None) -> frozenset[tuple[str, str, int]]:
    if resource is None:
        return frozenset()
    config = HostConfig()
    ResourceMessage.FromString(resource.body).resource.Unpack(config)
    return frozenset((each.namespace, each.name, port) for each in config.workloads for port in each.ports)


@dataclass(slots=True)
class ShrinkGuard:
    """What is held back on one stream. `held` returns what the host has of a type, by name."""

    held: Callable[[str], Mapping[str, Resource]]
    reason: str = ""
    """What would be lost, in words; "" while nothing is held back."""
    _aside: dict[str, Aside] = field(default_factory=dict)

    def take(self, update: Update) -> list[Update] | None:
        """Return what to go on with in place of an update, or None: all there is to it is held back now.

        The last one returned carries its nonce.
        """
        type_url = update.type_url
        if type_url not in LEAST and type_url != HOST_CONFIG_TYPE:
            return [update]
        held = self.held(type_url)
        new: Aside = {each.name: each for each in update.resources} | dict.fromkeys(update.removed)
        reason = loss(type_url, held, new)
        if not self.reason and not reason:
            return [update]
        if type_url == HOST_CONFIG_TYPE and not reason:
            self._aside.pop(type_url, None)
            return [*self._released(), update]
        self.reason = self.reason or reason
        aside = self._aside.setdefault(type_url, {})
        aside |= {name: each for name, each in new.items() if name in held}
        released = self._released()
        passing = _update(type_url, {name: each for name, each in new.items() if name not in held}, update.nonce)
        if released or not self.reason:
            return [*released, passing]
        return [passing._replace(nonce="")] if passing.resources or passing.removed else None

    def _released(self) -> list[Update]:
        """Return all that is aside if it is no loss any more."""
        if any(loss(type_url, self.held(type_url), aside) for type_url, aside in self._aside.items()):
            return []
        return self.accept()

    def accept(self) -> list[Update]:
        """Return all that is aside: it is wanted."""
        aside, self._aside, self.reason = self._aside, {}, ""
        return [_update(type_url, each, "") for type_url, each in aside.items() if each]

    def clear(self) -> None:
        """Forget what is aside: the stream is over, and the next one says again what there is."""
        self._aside, self.reason = {}, ""


def _update(type_url: str, new: Mapping[str, Resource | None], nonce: str) -> Update:
    resources: Iterable[Resource] = (each for each in new.values() if each is not None)
    return Update(type_url, nonce, tuple(resources), tuple(name for name, each in new.items() if each is None))
