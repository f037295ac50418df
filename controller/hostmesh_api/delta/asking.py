"""The asking side of one delta stream, across reconnects."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from hostmesh_api.delta.messages import PUSH_ORDER, WILDCARD, Resource
from hostmesh_api.origin import Origin, parse_origin


class Update(NamedTuple):
    """What a server sent: resources to take over and names that are no more, to be acknowledged by `nonce`.

    `origin` is None where the server does not say from what it was made.
    """

    type_url: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]
    origin: Origin | None = None


class ClientStream:
    """The asking side of one delta ADS stream, across reconnects.

    It remembers what was asked for; what is held is the caller's (it says so when a stream opens), so that a reconnect
    costs the server nothing.
    """

    def __init__(self) -> None:
        self._wanted: dict[str, set[str]] = {}
        self._opened: set[str] = set()
        self._is_open = False

    @property
    def is_open(self) -> bool:
        """Whether there is a stream."""
        return self._is_open

    def want(self, type_url: str, names: Iterable[str]) -> DeltaDiscoveryRequest | None:
        """Ask for more names; return the request to send if a stream is open and anything is new."""
        wanted = self._wanted.setdefault(type_url, set())
        new = set(names) - wanted
        wanted |= new
        if not new or type_url not in self._opened:
            return None
        return DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=sorted(new))

    def drop(self, type_url: str, names: Iterable[str]) -> DeltaDiscoveryRequest | None:
        """Stop asking for names; return the request to send if a stream is open and anything changes."""
        wanted = self._wanted.get(type_url, set())
        gone = set(names) & wanted
        wanted -= gone
        if not gone or type_url not in self._opened:
            return None
        return DeltaDiscoveryRequest(type_url=type_url, resource_names_unsubscribe=sorted(gone))

    def wanted(self, type_url: str) -> frozenset[str]:
        """Return the names asked for."""
        return frozenset(self._wanted.get(type_url, ()))

    def count(self, type_url: str) -> int:
        """Return how many names are asked for."""
        return len(self._wanted.get(type_url, ()))

    def wants(self, type_url: str, name: str) -> bool:
        """Tell whether a name is asked for."""
        return name in self._wanted.get(type_url, ())

    def open(self, held: Mapping[str, Mapping[str, str]]) -> list[DeltaDiscoveryRequest]:
        """Return the first requests of a new stream; `held` is type to name to version of what we still have."""
        self._is_open = True
        self._opened = {type_url for type_url, names in self._wanted.items() if names}
        return [self._opening(type_url, held.get(type_url, {})) for type_url in self._ordered()]

    def open_type(self, type_url: str, held: Mapping[str, str]) -> DeltaDiscoveryRequest | None:
        """Return the first request for a type that came up while the stream was open; None where there is none due."""
        if not self._is_open or type_url in self._opened or not self._wanted.get(type_url):
            return None
        self._opened.add(type_url)
        return self._opening(type_url, held)

    def close(self) -> None:
        """Forget the stream, not the wishes."""
        self._opened = set()
        self._is_open = False

    def _ordered(self) -> list[str]:
        known = [type_url for type_url in PUSH_ORDER if type_url in self._opened]
        return known + sorted(self._opened.difference(PUSH_ORDER))

    def _opening(self, type_url: str, held: Mapping[str, str]) -> DeltaDiscoveryRequest:
        wanted = self._wanted[type_url]
        versions = {name: version for name, version in held.items() if WILDCARD in wanted or name in wanted}
        return DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=sorted(wanted), initial_resource_versions=versions
        )

    @staticmethod
    def update(response: DeltaDiscoveryResponse) -> Update:
        """Read a response; each resource keeps the bytes it came in."""
        resources = tuple(
            Resource(each.name, each.version, each.SerializeToString(deterministic=True)) for each in response.resources
        )
        origin = parse_origin(response.system_version_info)
        return Update(response.type_url, response.nonce, resources, tuple(response.removed_resources), origin)

    @staticmethod
    def ack(type_url: str, nonce: str) -> DeltaDiscoveryRequest:
        """Return the acknowledgement of a response."""
        return DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)

    @staticmethod
    def nack(type_url: str, nonce: str, message: str) -> DeltaDiscoveryRequest:
        """Return the refusal of a response, with the reason."""
        request = DeltaDiscoveryRequest(type_url=type_url, response_nonce=nonce)
        request.error_detail.code = 3  # google.rpc.Code.INVALID_ARGUMENT
        request.error_detail.message = message
        return request
