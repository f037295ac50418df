"""The whole translation offline: documents in, all that one host's Envoy could be sent out. No store, no network.

What Envoy asks for on demand is found as Envoy would find it: a virtual host for each name a program can call, the
clusters that routes and listeners name, the endpoints that clusters name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, cast

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import Rds
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import SdsSecretConfig
from envoy.service.discovery.v3.discovery_pb2 import Resource
from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from hostmesh_api.wire import (
    CLUSTER_TYPE,
    ENDPOINT_TYPE,
    EXTENSION_TYPE,
    HOST_CONFIG_TYPE,
    LISTENER_TYPE,
    ROUTE_TYPE,
    SECRET_TYPE,
    VIP4,
    VIP6,
    VIRTUAL_HOST_TYPE,
)
from hostmesh_controller import mesh as meshes
from hostmesh_controller import xds
from hostmesh_controller.checks.world import World
from hostmesh_controller.mesh import HostRuntime, Mesh, Settings
from hostmesh_controller.mesh.compiled import single_addresses, virtual_hostnames
from hostmesh_controller.mesh.visibility import view
from hostmesh_controller.model import ApiObject
from hostmesh_controller.names import TcpName, VirtualHostName, is_v6
from hostmesh_controller.review import Review, read, review
from hostmesh_controller.suggest import did_you_mean
from hostmesh_controller.xds.gateway_routes import is_gateway_table
from hostmesh_controller.xds.messages import as_json, unpacked

TYPES: Final[Mapping[str, str]] = {
    "host": HOST_CONFIG_TYPE,
    "listener": LISTENER_TYPE,
    "route": ROUTE_TYPE,
    "virtualhost": VIRTUAL_HOST_TYPE,
    "cluster": CLUSTER_TYPE,
    "endpoint": ENDPOINT_TYPE,
    "secret": SECRET_TYPE,
    "extension": EXTENSION_TYPE,
}
"""Short names of what is translated to, in the order in which Envoy comes to ask for it."""

_DISCOVERING: Final = frozenset(
    {
        "envoy.config.listener.v3.Filter",
        "envoy.config.listener.v3.ListenerFilter",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    }
)
"""Filters that may ask for their configuration by their name (ECDS)."""

_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""Offline, all objects are of the same age; their order is then that of their names."""


class UnknownHostError(Exception):
    """The documents have no Host of that name."""


@dataclass(frozen=True, slots=True)
class Translation:
    """`resources` are messages as JSON, by type's short name, each by resource name. Empty if `review` has errors."""

    review: Review
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class _Asked(NamedTuple):
    type_url: str
    name: str


def translate(
    sources: Iterable[tuple[str, str]], namespace: str, host: str, *, trust_domain: str, domain: str
) -> Translation:
    """Translate documents for one host, as if every host in them had joined and every workload were ready.

    Args:
        sources: name and text of each file.
        namespace: of objects that name none.
        host: whose Envoy.
        trust_domain: as in controller.toml.
        domain: as in controller.toml.

    Raises:
        UnknownHostError: no document describes the host.
    """
    documents = read(sources, namespace)
    verdict = review(documents, World(domain))
    if verdict.errors:
        return Translation(verdict)
    mesh = offline_mesh(documents.objects, trust_domain=trust_domain, domain=domain)
    if host not in mesh.hosts:
        hint = did_you_mean(host, mesh.hosts) or f"; there are: {', '.join(sorted(mesh.hosts)) or 'none'}"
        raise UnknownHostError(f"the documents have no Host {host!r}{hint}")
    found: dict[str, dict[str, Any]] = {name: {} for name in TYPES}
    short = {type_url: name for name, type_url in TYPES.items()}
    for asked, message in reachable(mesh, host):
        found[short[asked.type_url]][asked.name] = None if message is None else as_json(message)
    return Translation(verdict, found)


def select_types(names: Sequence[str]) -> frozenset[str]:
    """Return short names of types for what a user typed; plurals and any case are fine.

    Raises:
        ValueError: no such type.
    """
    chosen = set()
    for name in names:
        wanted = name.lower().replace("-", "").replace("_", "")
        found = next((each for each in TYPES if wanted in {each, f"{each}s"}), None)
        if found is None:
            raise ValueError(f"unknown type '{name}'{did_you_mean(wanted, TYPES) or '; known: ' + ', '.join(TYPES)}")
        chosen.add(found)
    return frozenset(chosen)


def offline_mesh(objects: Sequence[ApiObject], *, trust_domain: str, domain: str) -> Mesh:
    """Build the mesh of documents alone: virtual addresses in the order of names, every host joined, ready and well."""
    settings = Settings(trust_domain=trust_domain, domain=domain, vip4=VIP4, vip6=VIP6)
    aged = [replace(each, metadata=replace(each.metadata, creation_timestamp=_EPOCH)) for each in objects]
    names = sorted({name for each in aged for name in virtual_hostnames(each, domain)})
    vips = {name: index for index, name in enumerate(names, start=1)}
    first = meshes.build(settings, aged, vips, {})
    runtime = {
        name: HostRuntime(
            joined=True,
            ready=frozenset((each.key.namespace, each.key.name) for each in first.workloads_of(name)),
            ipv6=any(is_v6(address) for address in host.addresses),
            healthy=frozenset(each.key for each in first.workloads_of(name)),
        )
        for name, host in first.hosts.items()
    }
    return meshes.build(settings, aged, vips, runtime)


def reachable(mesh: Mesh, host: str) -> Iterator[tuple[_Asked, Message | None]]:
    """Yield every resource that a host's Envoy can come to ask for, each once, with the message (None: refused)."""
    queue = list(_first(mesh, host))
    seen = set(queue)
    for asked in queue:  # grows while it is walked
        resource = xds.resource(mesh, host, asked.type_url, asked.name)
        if resource is None:
            continue
        wrapped = Resource.FromString(resource.body)
        if not wrapped.HasField("resource"):
            yield asked, None
            continue
        message = unpacked(wrapped.resource)
        assert message is not None
        yield asked, message
        for next_asked in _referred(asked.type_url, message):
            if next_asked not in seen:
                seen.add(next_asked)
                queue.append(next_asked)


def _first(mesh: Mesh, host: str) -> Iterator[_Asked]:
    for type_url in (HOST_CONFIG_TYPE, LISTENER_TYPE, CLUSTER_TYPE):
        for name in xds.wildcard(mesh, host, type_url):
            yield _Asked(type_url, name)
    for service in view(mesh, mesh.viewer_of(host)).services:
        for port in service.ports:
            if port.protocol.is_http or port.protocol.is_detected:
                yield _Asked(VIRTUAL_HOST_TYPE, str(VirtualHostName(port.number, service.id.hostname)))
            if not port.protocol.is_http:
                for address in single_addresses(service):
                    yield _Asked(CLUSTER_TYPE, str(TcpName(address, port.number)))


def _referred(type_url: str, message: Message) -> Iterator[_Asked]:
    if type_url == CLUSTER_TYPE and isinstance(message, Cluster) and message.type == Cluster.EDS:
        yield _Asked(ENDPOINT_TYPE, message.eds_cluster_config.service_name or message.name)
    yield from _asked_in(message)


def _asked_in(message: Message) -> Iterator[_Asked]:
    """Yield what a message names: clusters (routes, mirrors, TCP proxies), whole route tables, secrets of the stream.

    The table of an outbound port is empty, and not told.
    """
    full_name = message.DESCRIPTOR.full_name
    if full_name == "google.protobuf.Any":
        inner = unpacked(cast("WireAny", message))
        if inner is not None:
            yield from _asked_in(inner)
        return
    if isinstance(message, Rds) and is_gateway_table(message.route_config_name):
        yield _Asked(ROUTE_TYPE, message.route_config_name)
    if isinstance(message, SdsSecretConfig) and message.sds_config.HasField("ads"):
        yield _Asked(SECRET_TYPE, message.name)
    if full_name in _DISCOVERING and message.HasField("config_discovery"):
        yield _Asked(EXTENSION_TYPE, getattr(message, "name", ""))
    weighted = message.DESCRIPTOR.name == "ClusterWeight"
    for descriptor, value in message.ListFields():
        if descriptor.type == FieldDescriptor.TYPE_STRING and (
            descriptor.name == "cluster" or (weighted and descriptor.name == "name")
        ):
            yield _Asked(CLUSTER_TYPE, value)
        elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _inside(value)


def _inside(value: Any) -> Iterator[_Asked]:
    if isinstance(value, Message):
        yield from _asked_in(value)
    elif hasattr(value, "values"):
        for each in value.values():
            if isinstance(each, Message):
                yield from _asked_in(each)
    else:
        for each in value:
            yield from _asked_in(each)
