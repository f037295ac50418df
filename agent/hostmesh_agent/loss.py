"""How much a response would take away of what a host has. Pure."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_agent.absence import is_no_cluster, is_no_virtual_host
from hostmesh_agent.wire_fields import inside
from hostmesh_api.delta import Resource
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    VIRTUAL_HOST_TYPE,
)


class Measure(NamedTuple):
    """So many at least, and more than this part of those there are."""

    least: int
    part: float

    def is_much(self, lost: int, before: int) -> bool:
        return lost >= self.least and lost > self.part * before


MUCH: Final = Measure(4, 1 / 3)
"""Of what nobody has explained. A third: half of a mesh is far beyond it, whichever type shows it. Four: a host that
calls three services in all is not worth an alarm."""
PORTS: Final = Measure(1, 1 / 3)
"""Of the host's own programs. One: most hosts serve one, and without its port they are out of the mesh."""
MANY_ENDPOINTS: Final = Measure(8, 1 / 2)
"""Of services that lose their endpoints while a stream lasts: leases, readiness and hosts that leave do that, and the
controller's own guard has judged them. Beyond this it is likelier that the controller is wrong."""
LEAST_TABLE_BYTES: Final = 8 * 1024
"""Of a listener that is a table of the whole mesh: one so large that loses more than a third of its bytes is a loss of
its own. 8 KiB are the names of 20 services; in smaller ones the rest weighs too much."""
_TABLES: Final = frozenset({"dns", "virtualOutbound"})
"""Of names and of ports: what goes elsewhere goes from one of these too. Others shrink by themselves: that of a gateway
has the keys of end users' tokens in it, and one that was withdrawn must not go on to count."""
_ENDPOINTS: Final = 2
"""Field of ClusterLoadAssignment."""

WORDS: Final[Mapping[str, str]] = {
    LISTENER_TYPE: "listeners",
    ROUTE_TYPE: "route tables",
    CLUSTER_TYPE: "clusters",
    ENDPOINT_TYPE: "services' endpoints",
    VIRTUAL_HOST_TYPE: "virtual hosts",
    HOST_CONFIG_TYPE: "ports of this host's programs",
}
"""The types that are guarded, and what is counted of them. Secrets, expulsions and other filters by name (ECDS) take
nothing away that is called, and must not wait."""

Names = Mapping[str, Resource | None]
"""What a response says of each name; None: there is no such thing any more."""


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


def gone(type_url: str, held: Mapping[str, Resource], new: Names) -> list[str]:
    """Return the names that stand for something in `held`, and for nothing in `new`."""
    return [name for name, each in new.items() if there(type_url, held.get(name)) and not there(type_url, each)]


def loss(type_url: str, held: Mapping[str, Resource], new: Names, measure: Measure | None = None) -> str:
    """Return what `new` would take away of what is held, in words; "" if it is not much.

    `measure` None: PORTS of ports, and MUCH of all else.
    """
    if type_url not in WORDS:
        return ""
    measure = measure or (PORTS if type_url == HOST_CONFIG_TYPE else MUCH)
    if type_url == HOST_CONFIG_TYPE:
        lost, before = _ports_lost(held, new)
    else:
        lost = len(gone(type_url, held, new))
        before = sum(there(type_url, each) for each in held.values()) if lost >= measure.least else 0
    if measure.is_much(lost, before):
        return f"{lost} of {before} {WORDS[type_url]} would go at once"
    if type_url == LISTENER_TYPE:
        return next(filter(None, (_lost_table(held.get(name), each) for name, each in new.items())), "")
    return ""


def loses_ports(held: Mapping[str, Resource], new: Names) -> bool:
    """Tell whether a HostConfig has fewer ports of the host's own programs, be it one."""
    return _ports_lost(held, new)[0] > 0


def _lost_table(before: Resource | None, after: Resource | None) -> str:
    if before is None or after is None or before.name not in _TABLES or len(before.body) < LEAST_TABLE_BYTES:
        return ""
    if len(before.body) - len(after.body) <= MUCH.part * len(before.body):
        return ""
    return f"listener {before.name} would lose more than a third of what is in it"


def _ports_lost(held: Mapping[str, Resource], new: Names) -> tuple[int, int]:
    """Return how many ports would go, and how many there are."""
    lost = before = 0
    for name, each in new.items():
        old = _ports(held.get(name))
        lost += len(old - _ports(each))
        before += len(old)
    return lost, before


def _ports(resource: Resource | None) -> frozenset[tuple[str, str, int]]:
    if resource is None:
        return frozenset()
    config = HostConfig()
    ResourceMessage.FromString(resource.body).resource.Unpack(config)
    return frozenset((each.namespace, each.name, port) for each in config.workloads for port in each.ports)
