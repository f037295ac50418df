"""Sidecar: which of the visible services a viewer takes part of, and what happens to all other destinations.

A viewer without a Sidecar, or with one that says nothing of its egress, takes everything that is exported to it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from hostmesh_controller.mesh.capture_policies import spec_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Service, ServicePort
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.protocols import Protocol, entry_protocol
from hostmesh_controller.model.sidecar import EgressListener, SidecarSpec
from hostmesh_controller.names import OutboundName, expand, hosts_overlap


class Import(NamedTuple):
    """A host pattern of a namespace; the namespace `*` is every one."""

    namespace: str
    host: str

    def covers(self, namespace: str, host: str) -> bool:
        """Tell whether a host of a namespace is meant; of two wildcards, whether one covers the other."""
        return self.namespace in {"*", namespace} and hosts_overlap(self.host, host)


@dataclass(frozen=True, slots=True)
class Scope:
    """What the egress listeners of a Sidecar import: `by_port` for those of one port, `rest` for all other ports.

    `protocols` is what is spoken on a port as its listener has it, whatever services say.
    """

    by_port: dict[int, tuple[Import, ...]]
    rest: tuple[Import, ...]
    protocols: dict[int, Protocol] = field(default_factory=dict)

    def takes_port(self, service: Service, port: ServicePort) -> bool:
        wanted = self.by_port.get(port.number, self.rest)
        return any(each.covers(service.id.namespace, service.id.hostname) for each in wanted)

    def as_spoken(self, port: ServicePort) -> ServicePort:
        """Return a port with what the listener of its number says of its protocol."""
        protocol = self.protocols.get(port.number, port.protocol)
        return port if protocol is port.protocol else replace(port, protocol=protocol)

    def takes(self, namespace: str, host: str) -> bool:
        """Tell whether a host is imported on any port: so are the VirtualServices that name it."""
        everything: Iterable[Import] = (*self.rest, *(each for own in self.by_port.values() for each in own))
        return any(each.covers(namespace, host) for each in everything)


def sidecar(mesh: Mesh, viewer: Viewer) -> SidecarSpec | None:
    """Return the Sidecar that holds for a viewer, None if there is none."""
    item = mesh.objects.get(viewer.sidecar) if viewer.sidecar is not None else None
    if item is None:
        return None
    assert isinstance(item.spec, SidecarSpec)
    return item.spec


def scope(mesh: Mesh, viewer: Viewer) -> Scope | None:
    """Return what a viewer imports, None for everything."""
    spec = sidecar(mesh, viewer)
    if spec is None or not spec.egress:
        return None
    assert viewer.sidecar is not None
    own = _own_namespace(mesh, viewer, viewer.sidecar.namespace)
    return mesh.memo.get(("scope", viewer.sidecar, own), (spec,), lambda: _scope(spec, own))


def _scope(spec: SidecarSpec, own: str) -> Scope:
    by_port: dict[int, tuple[Import, ...]] = {}
    rest: tuple[Import, ...] = ()
    protocols: dict[int, Protocol] = {}
    for listener in spec.egress:
        imports = tuple(_import(host, own) for host in listener.hosts)
        if listener.port is None:
            rest = imports
        elif listener.port.number:
            by_port[listener.port.number] = imports
            if listener.port.protocol:
                protocols[listener.port.number] = entry_protocol(listener.port.protocol)
    return Scope(by_port, rest, protocols)


def imports_of(mesh: Mesh, viewer: Viewer, listener: EgressListener) -> tuple[Import, ...]:
    """Return what one egress listener of the viewer's Sidecar imports."""
    assert viewer.sidecar is not None
    own = _own_namespace(mesh, viewer, viewer.sidecar.namespace)
    return tuple(_import(host, own) for host in listener.hosts)


def _own_namespace(mesh: Mesh, viewer: Viewer, namespace: str) -> str:
    # In the root namespace a Sidecar is for all namespaces: "." is then the viewer's own.
    return viewer.namespace if namespace == mesh.settings.root_namespace else namespace


def _import(text: str, own: str) -> Import:
    namespace, _, host = text.partition("/")
    return Import(own if namespace == "." else namespace, host.lower())


@dataclass(frozen=True, slots=True)
class Beyond:
    """What happens to destinations that a viewer does not see: nothing special, unless one of these says otherwise.

    `closed`: they cannot be called. `proxy`: the cluster to which all of them go, "" if there is none.
    """

    closed: bool = False
    proxy: str = ""

    @property
    def is_open(self) -> bool:
        """Whether they are called as if there were no mesh: then they need not be captured."""
        return not self.closed and not self.proxy


OPEN: Final = Beyond()


def beyond(mesh: Mesh, viewer: Viewer) -> Beyond:
    """Return what happens to destinations that a viewer does not see: its Sidecar's word, or else the mesh's."""
    spec = sidecar(mesh, viewer)
    own = spec.outbound_traffic_policy if spec is not None else None
    policy = own or mesh.config.outbound_traffic_policy
    proxy = own.egress_proxy if own is not None else None
    if proxy is None or proxy.port is None:
        return Beyond(closed=policy.mode == "REGISTRY_ONLY")
    assert viewer.sidecar is not None
    host = expand(proxy.host, viewer.sidecar.namespace, mesh.settings.domain)
    return Beyond(proxy=str(OutboundName(proxy.port.number, proxy.subset or "", host)))


def captures_all(mesh: Mesh, host: Host) -> bool:
    """Tell whether every outbound connection of a host comes by Envoy: declared, or needed to keep some inside."""
    if not beyond(mesh, mesh.viewer_of(host.name)).is_open:
        return True
    if host.capture_all is not None:
        return host.capture_all
    policy = spec_of(mesh, host)
    return policy is not None and policy.scope == "all"
