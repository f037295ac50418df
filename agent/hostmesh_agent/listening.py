"""Where a listener would listen, read from its bytes. Pure."""

from typing import Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage

from hostmesh_agent.wire_fields import inside, merged, number
from hostmesh_api.delta import Resource

# Numbers of fields: envoy/config/listener/v3/listener.proto and envoy/config/core/v3/address.proto.
ADDRESS: Final = 2
BIND_TO_PORT: Final = 26
ADDITIONAL: Final = 33
ADDITIONAL_ADDRESS: Final = 1
SOCKET: Final = 1
PORT: Final = 3
_VALUE: Final = 1


def bound_ports(resource: Resource) -> frozenset[int]:
    """Return the ports that Envoy would bind for a listener; none for what cannot be read, which Envoy refuses."""
    try:
        return ports_of(ResourceMessage.FromString(resource.body).resource.value)
    except ValueError:
        return frozenset()


def ports_of(listener: bytes) -> frozenset[int]:
    """Return the ports that Envoy would bind for a listener on the wire.

    Raises:
        ValueError: it cannot be read.
    """
    binds = merged(listener, BIND_TO_PORT)
    if binds is not None and not number(binds, _VALUE):
        return frozenset()
    addresses = inside(listener, ADDRESS)
    addresses += [each for more in inside(listener, ADDITIONAL) for each in inside(more, ADDITIONAL_ADDRESS)]
    found = (number(where, PORT) for each in addresses for where in inside(each, SOCKET))
    return frozenset(port for port in found if port is not None)
