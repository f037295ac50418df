"""Why a resource of the controller's is not taken by this host. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from envoy.service.discovery.v3.discovery_pb2 import Resource as ResourceMessage
from google.protobuf.json_format import Error as JsonError
from google.protobuf.message import DecodeError

from hostmesh_agent.bootstrap import field_name
from hostmesh_agent.config import FloorSettings
from hostmesh_agent.listening import ports_of
from hostmesh_agent.policy_floor.entrance import OWN_PORTS, Entrance
from hostmesh_agent.policy_floor.reach import Reach, Walk
from hostmesh_agent.policy_floor.table import Table
from hostmesh_api.delta import Resource
from hostmesh_api.wire import CLUSTER_TYPE, HOST_CONFIG_TYPE, LISTENER_TYPE, RELAY_CLUSTER

_BOOTSTRAP: Final = "envoy.config.bootstrap.v3.Bootstrap"


class Floor:
    """The floor of one host. `ssh` returns the ports where its SSH servers listen, as far as that is known."""

    def __init__(self, settings: FloorSettings, table: Table, ssh: Callable[[], frozenset[int]]) -> None:
        self._walk = Walk(table, Reach(settings.unix_sockets, settings.files, settings.refused_extensions))
        self._entrance = Entrance(
            settings.min_mtls,
            None if settings.listen_ports is None else frozenset(settings.listen_ports),
            frozenset(settings.never_listen_ports),
        )
        self._ssh = ssh

    def problem(self, type_url: str, resource: Resource) -> str:
        """Return why Envoy must not get a resource; "" if it may."""
        if type_url == HOST_CONFIG_TYPE:
            return ""
        try:
            wrapped = ResourceMessage.FromString(resource.body).resource
            if not wrapped.type_url:
                return ""  # It says that there is no such thing.
            if wrapped.type_url != type_url:
                return f"it is of type {wrapped.type_url} and comes as {type_url}"
            return self._of_value(type_url, resource.name, wrapped.value)
        except (ValueError, DecodeError, JsonError) as error:
            return f"this agent cannot read it: {error}"

    def bootstrap_problem(self, patch: Mapping[str, Any]) -> str:
        """Return why Envoy's bootstrap must not be patched like this, as protobuf's JSON; "" if it may."""
        try:
            why = self._walk.problem_of_json(_BOOTSTRAP, patch)
            return why or self._entrance.of_ports(_static_ports(patch), self._ssh() | OWN_PORTS) or _of_names(patch)
        except (ValueError, TypeError, JsonError) as error:
            return f"this agent cannot read it: {error}"

    def _of_value(self, type_url: str, name: str, value: bytes) -> str:
        if type_url == LISTENER_TYPE:
            why = self._entrance.of_ports(ports_of(value), self._ssh()) or self._entrance.of_listener(value)
            if why:
                return why
        if type_url == CLUSTER_TYPE:
            why = _of_cluster_name(name) or self._entrance.of_cluster(name, value)
            if why:
                return why
        return self._walk.problem(type_url, value)


def _of_cluster_name(name: str) -> str:
    return f"{RELAY_CLUSTER} is the agent's own" if name == RELAY_CLUSTER else ""


def _of_names(patch: Mapping[str, Any]) -> str:
    clusters = (each for key, each in _static(patch) if key == "clusters")
    return next(filter(None, (_of_cluster_name(str(each.get("name", ""))) for each in clusters)), "")


def _static_ports(patch: Mapping[str, Any]) -> frozenset[int]:
    """Return every port that listeners of a bootstrap name as their own."""
    listeners = [each for key, each in _static(patch) if key == "listeners"]
    addresses = [each for listener in listeners for each in _all(listener, "address")]
    more = (each for listener in listeners for each in _all(listener, "additional_addresses"))
    addresses += [each for one in more for each in _all(one, "address")]
    sockets = (each for address in addresses for each in _all(address, "socket_address"))
    return frozenset(int(float(port)) for each in sockets for port in _all(each, "port_value"))


def _static(patch: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for resources in _all(patch, "static_resources"):
        for key in ("clusters", "listeners"):
            yield from ((key, each) for each in _all(resources, key))


def _all(message: Any, wanted: str) -> list[Any]:
    """Return what a message in JSON says of a field, in either of its spellings, as a list."""
    if not isinstance(message, Mapping):
        raise ValueError(f"an object with {wanted} is expected")
    found = [value for key, value in message.items() if field_name(str(key)) == wanted and value is not None]
    return [each for value in found for each in (value if isinstance(value, list) else [value])]
