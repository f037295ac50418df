"""What a source of more filters is asked, and what it answers."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Workload
from hostmesh_controller.mesh.viewer import Face, face_of, faces_of

ANY_PORT: Final = 0
"""Of traffic in a filter chain that is for all port numbers."""


class Direction(StrEnum):
    """Which side of a call a filter chain is on; a gateway's is its own."""

    INBOUND = "INBOUND"
    OUTBOUND = "OUTBOUND"
    GATEWAY = "GATEWAY"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a filter chain serves: `port` as the program sees it, and `workload` whose port it is.

    None: the whole host's, as is what its programs call, and a gateway's port on a host without workloads.
    """

    direction: Direction
    port: int
    workload: Workload | None = None


def faces_behind(mesh: Mesh, host: Host, traffic: Traffic) -> tuple[Face, ...]:
    """Return whoever the traffic belongs to: one workload, or the whole host."""
    return faces_of(mesh, host) if traffic.workload is None else (face_of(host, traffic.workload),)


@dataclass(frozen=True, slots=True)
class Extensions:
    """HTTP filters by the place where they stand, and network filters before the proxy's own.

    `key` names all that they are made from besides the configuration objects in `inputs`. `first` and `tcp_first` say
    who may not call at all, and ask external authorizers; `authn` who the end user is; `authz` and `tcp_authz` what
    each may do. `network` stands in every chain, the `tcp_*` only where no HTTP filters follow.
    """

    key: tuple[object, ...] = ()
    inputs: tuple[object, ...] = ()
    first: tuple[HttpFilter, ...] = ()
    before_authn: tuple[HttpFilter, ...] = ()
    authn: tuple[HttpFilter, ...] = ()
    before_authz: tuple[HttpFilter, ...] = ()
    authz: tuple[HttpFilter, ...] = ()
    before_stats: tuple[HttpFilter, ...] = ()
    last: tuple[HttpFilter, ...] = ()
    tcp_first: tuple[Filter, ...] = ()
    network: tuple[Filter, ...] = ()
    tcp_authz: tuple[Filter, ...] = ()

    @property
    def http(self) -> tuple[HttpFilter, ...]:
        """All HTTP filters, in order."""
        return (
            *self.first,
            *self.before_authn,
            *self.authn,
            *self.before_authz,
            *self.authz,
            *self.before_stats,
            *self.last,
        )

    @property
    def tcp(self) -> tuple[Filter, ...]:
        """All filters of a chain without HTTP, in order."""
        return (*self.tcp_first, *self.network, *self.tcp_authz)


NONE: Final = Extensions()
