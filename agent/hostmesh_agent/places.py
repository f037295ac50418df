"""Two Envoys take turns on a host: where each of them listens. Pure.

The first has the ports that everybody knows. The second has three of its own beside them; what Envoy itself listens on
(a Gateway's ports, a Sidecar's) is taken by the first, so the second does not bind it: connections are redirected to
its door, which hands them over to the listener of the port that was dialled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hostmesh_agent.listening import ADDITIONAL, ADDITIONAL_ADDRESS, ADDRESS, BIND_TO_PORT, PORT, SOCKET, ports_of
from hostmesh_agent.wire_fields import bytes_field, inside, merged, number, number_field, rewritten
from hostmesh_api import wire
from hostmesh_api.delta import Resource

_FILTER_CHAINS: Final = 3
_DEFAULT_CHAIN: Final = 25
_MATCH: Final = 1
_DESTINATION_PORT: Final = 8
_VALUE: Final = 1
_PROTOCOL: Final = 1
_UDP: Final = 1
_HOST: Final = 2
# Of envoy.service.discovery.v3.Resource and of google.protobuf.Any.
_RESOURCE: Final = 2
_ANY_VALUE: Final = 2


class Instance(StrEnum):
    """Which of the two. Its value is the name of its cgroup, and what it calls itself to the relay."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def other(self) -> "Instance":
        return Instance.GREEN if self is Instance.BLUE else Instance.BLUE


INSTANCE_METADATA: Final = "hostmesh-instance"
"""Under which name the second Envoy says to the relay which one it is; without it is the first."""
BLUE: Final = Instance.BLUE
GREEN: Final = Instance.GREEN


@dataclass(frozen=True, slots=True)
class Ports:
    """Where connections and questions for names are redirected to. `door` None: it binds its other ports itself."""

    outbound: int
    inbound: int
    dns: int
    door: int | None


PORTS: Final = {
    BLUE: Ports(wire.OUTBOUND_PORT, wire.INBOUND_PORT, wire.DNS_PORT, None),
    GREEN: Ports(wire.SECOND_OUTBOUND_PORT, wire.SECOND_INBOUND_PORT, wire.SECOND_DNS_PORT, wire.DOOR_PORT),
}
_SECOND: Final = {
    wire.OUTBOUND_PORT: wire.SECOND_OUTBOUND_PORT,
    wire.INBOUND_PORT: wire.SECOND_INBOUND_PORT,
    wire.DNS_PORT: wire.SECOND_DNS_PORT,
}
_UNBOUND: Final = bytes_field(BIND_TO_PORT, number_field(_VALUE, 0))


@dataclass(frozen=True, slots=True, order=True)
class Doorway:
    """A TCP port that Envoy itself listens on. `address` "": on all of the host's addresses."""

    address: str
    port: int


def moved(resource: Resource, instance: Instance) -> Resource:
    """Return a listener as an Envoy of this instance gets it. What cannot be read stays: Envoy says what is wrong."""
    if instance is BLUE:
        return resource
    try:
        body = rewritten(resource.body, {_RESOURCE: lambda any_: rewritten(any_, {_ANY_VALUE: _moved})})
    except ValueError:
        return resource
    return resource._replace(body=body)


def doorways(resource: Resource) -> frozenset[Doorway]:
    """Return the TCP ports that Envoy would bind for a listener, beside its well-known ones."""
    try:
        listener = b"".join(each for any_ in inside(resource.body, _RESOURCE) for each in inside(any_, _ANY_VALUE))
        if not _binds_others(listener):
            return frozenset()
        return frozenset(_doorway(each) for each in _sockets(listener))
    except ValueError:
        return frozenset()


def _moved(listener: bytes) -> bytes:
    if not ports_of(listener) & _SECOND.keys():
        return listener + _UNBOUND if _binds_others(listener) else listener
    address = _changed(SOCKET, _port_moved)
    chain = _changed(_MATCH, _changed_port_of_match)
    return rewritten(
        listener,
        {
            ADDRESS: address,
            ADDITIONAL: _changed(ADDITIONAL_ADDRESS, address),
            # A connection to the port itself, which nothing redirected, is told apart by its number.
            _FILTER_CHAINS: chain,
            _DEFAULT_CHAIN: chain,
        },
    )


def _changed(field: int, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda message: rewritten(message, {field: change})


def _port_moved(socket: bytes) -> bytes:
    second = _SECOND.get(number(socket, PORT) or 0)
    return socket if second is None else socket + number_field(PORT, second)


def _changed_port_of_match(match: bytes) -> bytes:
    def change(wrapped: bytes) -> bytes:
        second = _SECOND.get(number(wrapped, _VALUE) or 0)
        return wrapped if second is None else number_field(_VALUE, second)

    return rewritten(match, {_DESTINATION_PORT: change})


def _binds_others(listener: bytes) -> bool:
    """Tell whether it is bound to TCP ports that are not among the well-known ones."""
    ports = ports_of(listener)
    return bool(ports) and not ports & _SECOND.keys() and all(number(s, _PROTOCOL) != _UDP for s in _sockets(listener))


def _sockets(listener: bytes) -> list[bytes]:
    addresses = inside(listener, ADDRESS)
    addresses += [each for more in inside(listener, ADDITIONAL) for each in inside(more, ADDITIONAL_ADDRESS)]
    return [socket for each in addresses if (socket := merged(each, SOCKET)) is not None]


def _doorway(socket: bytes) -> Doorway:
    address = b"".join(inside(socket, _HOST)[-1:]).decode("utf-8", "replace")
    return Doorway("" if address in {"0.0.0.0", "::"} else address, number(socket, PORT) or 0)  # noqa: S104 - compared
