"""What the mesh consists of, in its own words: the records that indexes hold and constructors read.

Every record is immutable and made by a pure function of configuration, so that one which did not change is the same
object in the next revision. What is built from records is reused for as long as they are the same objects.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.model.probes import NamedProbe
from hostmesh_controller.model.protocols import Protocol


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom hosts trust.

    `bundle_pem` holds every root. Certificates of the `tainted` ones (SHA-256, hexadecimal) are renewed at once, spread
    over `renew_within_s`.
    """

    bundle_pem: bytes = b""
    tainted: tuple[str, ...] = ()
    renew_within_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is decided once for the whole mesh.

    `mesh_config` is what the controller's file says, beneath the MeshConfig object. `reported_locality`: where
    nothing is declared, a host is where its agent says that it is. `agents_endpoints` and `join_endpoints` are
    `host:port` of the controller's ports, best first; none where hosts are not to be told.
    """

    trust_domain: str
    domain: str
    vip4: IPv4Network
    vip6: IPv6Network
    trust: Trust = field(default_factory=Trust)
    root_namespace: str = "istio-system"
    mesh_config: MeshConfigSpec = field(default_factory=MeshConfigSpec)
    reported_locality: bool = True
    agents_endpoints: tuple[str, ...] = ()
    join_endpoints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Update:
    """What a rollout tells a host: WantedUpdate of the protocol explains the fields."""

    component: str
    version: str
    manifest: bytes
    signature: bytes
    rollout: str
    attempt: int
    back: bool = False
    settled: bool = False
    source: str = ""


@dataclass(frozen=True, slots=True)
class HostRuntime:
    """What is true of a host now: it joined, these workloads (namespace, name) can be called with mutual TLS.

    `captured` are the ports on which that holds: a port that was declared a moment ago is not among them yet. None:
    every port. `healthy` are the workloads whose program is well as far as the agent knows; it decides about those
    that have a probe. `expelled`: it was denied and has not joined since; `denied` are its enrolments whose
    certificates must be refused. `locality` is where the host's agent says that it is (`region/zone`), "" for unknown.
    `ready` are the workloads of which all ports are served; `certified` those that have a certificate in place, so that
    each of their ports is served once it is captured. `silent`: it seems to be dead; `stalled`: its Envoy is down, so
    what is captured is served by nobody. `cpus` is 0 where it is not known, and `free_eighths`, of these cores, where
    it is not known or not asked for.
    """

    joined: bool = False
    ready: frozenset[tuple[str, str]] = frozenset()
    ipv6: bool = False
    captured: frozenset[int] | None = None
    healthy: frozenset[tuple[str, str]] = frozenset()
    expelled: bool = False
    withdrawn: bool = False
    """Its agent says that nobody is to call it: it is drained, or its Envoy hangs."""
    denied: frozenset[str] = frozenset()
    locality: str = ""
    silent: bool = False
    stalled: bool = False
    cpus: int = 0
    free_eighths: int = 0
    updates: tuple[Update, ...] = ()
    """Other versions that rollouts want there."""
    certified: frozenset[tuple[str, str]] = frozenset()
    presented: frozenset[tuple[tuple[str, str], str]] = frozenset()
    """Workloads with the SPIFFE ID that their callers are shown: the old one for a while after it was changed."""

    def serves(self, workload: tuple[str, str], port: int) -> bool:
        """Tell whether mutual TLS is served on a workload's own port."""
        if not self.joined:
            return False
        if self.captured is None:
            return workload in self.ready
        return port in self.captured and (workload in self.certified or workload in self.ready)

    def is_away(self, port: int) -> bool:
        """Tell whether nobody answers on a port, as far as is known."""
        return self.silent or (self.stalled and (self.captured is None or port in self.captured))


@dataclass(frozen=True, slots=True)
class Expulsions:
    """Whom all must refuse.

    `hosts` are the registered ones that are out; `enrolments` of which certificates are still valid, sorted;
    `addresses` those of the hosts that no other host has, sorted.
    """

    hosts: frozenset[str] = frozenset()
    enrolments: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Touched:
    """What a change can have changed; more than needed is allowed, less is a bug.

    `callers`: hosts for which other services, addresses or routes of connections may be there to call: their outbound
    listeners, what HostConfig says of it, and which clusters are in `*` may differ.
    `hosts`: hosts whose own resources may differ (listeners, clusters, HostConfig, and the names in `*`).
    `services`: dependency names (`xds.dependencies`) of which any resource may differ.
    `endpoints`: dependency names of which endpoints (EDS) alone may differ.
    `everything`: all of it.
    """

    hosts: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()
    everything: bool = False
    callers: frozenset[str] = frozenset()


class Order(NamedTuple):
    """Istio's tie-break: the oldest wins, then the name."""

    created: float
    namespace: str
    name: str


class WorkloadKey(NamedTuple):
    """A workload's name. An endpoint written inside a ServiceEntry is named `<service entry>@<address>`."""

    namespace: str
    name: str


class ServiceId(NamedTuple):
    """A service as one object defines it: several objects may claim one host name, see `mesh.visibility`."""

    hostname: str
    source: ObjectKey

    @property
    def namespace(self) -> str:
        return self.source.namespace


class Mode(StrEnum):
    """Mutual TLS that a workload's port demands of its callers."""

    DISABLE = "DISABLE"
    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Resolution(StrEnum):
    """Where a service's endpoints come from."""

    STATIC = "STATIC"
    DNS = "DNS"
    DNS_ROUND_ROBIN = "DNS_ROUND_ROBIN"
    NONE = "NONE"
    DYNAMIC_DNS = "DYNAMIC_DNS"


@dataclass(frozen=True, slots=True)
class Host:
    """A machine. `namespace` is as declared, None if its workloads decide. `capture_all` None: a policy may decide."""

    name: str
    addresses: tuple[str, ...]
    namespace: str | None
    outbound_identity: str | None
    capture_all: bool | None
    labels: Mapping[str, str] = field(default_factory=dict)
    locality: str = ""
    per_workload_identity: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """One running instance of something.

    `host` is None outside the mesh; `owner` is the ServiceEntry it stands in; `group` the WorkloadGroup that it was
    made from, which says how it is probed. An endpoint inside a ServiceEntry that declares no service account has that
    of the WorkloadEntry on one of its ports `adopting` (None: it declares one), in `account_namespace` (None: its own).
    `by_cores`: its weight is the number of its host's cores, once that is known; `by_load`: the eighths of cores that
    are free on its host. `probes` are those of its own.
    """

    key: WorkloadKey
    address: str
    ports: Mapping[str, int]
    labels: Mapping[str, str]
    service_account: str
    weight: int
    locality: str
    host: str | None
    owner: ObjectKey | None = None
    group: ObjectKey | None = None
    adopting: frozenset[int] | None = None
    account_namespace: str | None = None
    by_cores: bool = False
    by_load: bool = False
    probes: tuple[NamedProbe, ...] = ()


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port as callers see it. `target` is a number, the name of a workload's port, or None: the same number."""

    number: int
    name: str
    protocol: Protocol
    target: int | str | None = None


@dataclass(frozen=True, slots=True)
class NamedEndpoint:
    """An endpoint that is found by DNS."""

    address: str
    ports: Mapping[str, int]
    labels: Mapping[str, str]
    weight: int
    locality: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A name that can be called.

    `addresses` are explicit ones (canonical prefixes); `vip4` and `vip6` are its virtual addresses, None for a name
    that has none. `short` tells that it has Kubernetes' short names. `export_to` holds namespaces, or `*`. `parts` are
    the services that are one with it, itself the first, where there are several (see `mesh.merging`).
    """

    id: ServiceId
    order: Order
    ports: tuple[ServicePort, ...]
    addresses: tuple[str, ...]
    vip4: str | None
    vip6: str | None
    resolution: Resolution
    external: bool
    selector: Mapping[str, str] | None
    named_endpoints: tuple[NamedEndpoint, ...]
    export_to: frozenset[str]
    subject_alt_names: tuple[str, ...] = ()
    short: bool = False
    parts: tuple["Service", ...] = ()

    def port(self, number: int) -> ServicePort | None:
        return next((port for port in self.ports if port.number == number), None)

    @property
    def is_wildcard(self) -> bool:
        return self.id.hostname.startswith("*")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one port of a service can be reached. `tls`: with the mesh's mutual TLS.

    `away`: nobody seems to answer there. It is called only where there is no other.
    """

    address: str
    port: int
    labels: Mapping[str, str]
    weight: int
    locality: str
    tls: bool
    away: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """What one workload is to one service: an endpoint per service port, and who may answer there (none: outside)."""

    endpoints: Mapping[int, Endpoint]
    identities: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All workloads of one service. `identities` are the SPIFFE IDs that may answer, sorted."""

    members: Mapping[WorkloadKey, Member] = field(default_factory=dict)
    identities: tuple[str, ...] = ()
