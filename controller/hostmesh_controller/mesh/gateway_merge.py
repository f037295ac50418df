"""All Gateways that select a host, merged into what it listens to.

Merging is Istio's: older Gateways first; plaintext HTTP servers share a port, and so do TLS servers that are told
apart by their hosts; whoever fits neither is passed over.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from hostmesh_api.wire import ENVOYS_TCP_PORTS
from hostmesh_controller.mesh.gateways import (
    ANY_ADDRESS,
    CREDENTIAL,
    NO_GATEWAYS,
    ROOTS_SUFFIX,
    GatewayPort,
    HostGateways,
    Served,
    Speech,
    credential_name,
    gateway_spec,
    route_name,
    speech_of,
)
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Service, Workload
from hostmesh_controller.mesh.selection import endpoint_port, services_of
from hostmesh_controller.mesh.viewer import Face, faces_of, namespace_of
from hostmesh_controller.model.gateway import Server
from hostmesh_controller.model.objects import ApiObject, ObjectKey

_UNTRANSLATED: Final = "experimental.istio.io/disable-gateway-port-translation"
"""Istio's label of a Service whose target ports are not where gateways listen."""


def gateways_of(mesh: Mesh, host: Host) -> HostGateways:
    """Return what a host serves as gateway, from the Gateways that select one of its faces, oldest first."""
    merge = _Merge(namespace_of(mesh, host))
    for item in mesh.of_kind("Gateway"):
        selected = _selected(mesh, host, item)
        if selected is not None:
            face, workload = selected
            for server in gateway_spec(item).servers:
                merge.add(_served(mesh, item, server, workload, face.namespace, merge), server)
    return merge.result()


def _selected(mesh: Mesh, host: Host, item: ApiObject) -> tuple[Face, Workload | None] | None:
    selector = gateway_spec(item).selector
    if not selector:
        # In Istio it would be for all gateways; here any host can be one, and none becomes it by an omission.
        return None
    workloads: Iterable[Workload | None] = mesh.workloads_of(host.name) or (None,)
    for face, workload in zip(faces_of(mesh, host), workloads, strict=True):
        if face.selected_by(selector):
            return face, workload
    return None


def _served(
    mesh: Mesh, item: ApiObject, server: Server, workload: Workload | None, namespace: str, merge: "_Merge"
) -> Served:
    number = _bound_port(mesh, server.port.number, workload)
    tls = server.tls
    names = tuple(merge.credential(name, namespace, item.key) for name in (tls.credentials if tls else ()))
    roots = ""
    if tls is not None and names:
        own = tls.ca_cert_credential_name
        roots = merge.credential(own, namespace, item.key) if own else f"{names[0]}{ROOTS_SUFFIX}"
    return Served(
        gateway=item.key,
        server=server,
        hosts=tuple(_own_host(host.lower(), item.key.namespace) for host in server.hosts),
        port=number,
        route=route_name(server, number, item.key),
        workload=workload.key if workload else None,
        credentials=names,
        roots=roots,
    )


def _own_host(host: str, namespace: str) -> str:
    owner, slash, name = host.rpartition("/")
    if not slash or owner == "*":
        return name
    return f"{namespace}/{name}" if owner == "." else host


def _bound_port(mesh: Mesh, number: int, workload: Workload | None) -> int:
    """Return where a server listens: if a Service before the workload has its port, where that leads to."""
    for each, service in _services_before(mesh, workload) if workload else ():
        port = service.port(number)
        target = endpoint_port(port, each.ports) if port else None
        if target is not None:
            return target
    return number


def _services_before(mesh: Mesh, workload: Workload) -> Iterator[tuple[Workload, Service]]:
    """Yield the services before a gateway's workload, each with the workload that it is to it.

    Last come ServiceEntries that list the address of the workload: they have a workload of their own there.
    """
    here = mesh.workloads_of(workload.host) if workload.host is not None else ()
    listed = (each for each in here if each.owner is not None and each.address == workload.address)
    for each in (workload, *(one for one in listed if one.key != workload.key)):
        for service in services_of(mesh, each):
            item = mesh.objects.get(service.id.source)
            if item is None or _UNTRANSLATED not in item.metadata.labels:
                yield each, service


@dataclass(slots=True)
class _Port:
    speech: Speech
    servers: list[Served] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Merge:
    """Servers of several Gateways on their way into one host's listeners."""

    namespace: str
    ports: dict[tuple[str, int], _Port] = field(default_factory=dict)
    stored: dict[str, tuple[ObjectKey, ...]] = field(default_factory=dict)
    passed_over: list[str] = field(default_factory=list)

    def credential(self, name: str, namespace: str, gateway: ObjectKey) -> str:
        """Return the name under which Envoy asks for a credential, and keep which Secrets it may be.

        As in Istio the Secret lies in the namespace of the gateway's workload. Failing that it may lie beside the
        Gateway: then what another Gateway calls by the same name is another one, and its name tells the namespace.
        """
        owner, _, own = name.removeprefix(CREDENTIAL).rpartition("/")
        allowed = dict.fromkeys((namespace, gateway.namespace))
        found = tuple(ObjectKey("Secret", each, own) for each in allowed if owner in {"", each})
        full = credential_name(f"{owner or namespace}/{own}", self.namespace)
        if self.stored.setdefault(full, found) != found:
            full = credential_name(f"{gateway.namespace}/{own}", self.namespace)
            self.stored.setdefault(full, found)
        return full

    def add(self, served: Served, server: Server) -> None:
        problem = self._problem(served, server)
        if problem:
            self.passed_over.append(f"{served.gateway}: server {server.port.name!r}: {problem}")
            return
        port = self.ports.setdefault(_place(served), _Port(speech_of(server)))
        port.servers.append(served)
        if server.tls is not None:
            port.taken.update(served.hosts)

    def _problem(self, served: Served, server: Server) -> str:
        if served.port in ENVOYS_TCP_PORTS:
            return f"port {served.port} is Envoy's own"
        port = self.ports.get(_place(served))
        if port is None:
            return ""
        first = port.servers[0]
        if port.speech is not speech_of(server) or port.speech is Speech.TCP:
            return f"port {served.port} is already taken by server {first.server.port.name!r} of {first.gateway}"
        if port.speech is Speech.TLS:
            twice = sorted(port.taken.intersection(served.hosts))
            if twice:
                return f"port {served.port} already serves {', '.join(twice)}"
        return ""

    def result(self) -> HostGateways:
        if not self.ports and not self.passed_over:
            return NO_GATEWAYS
        ports = tuple(
            GatewayPort(bind, number, port.speech, tuple(_one_table(port)))
            for (bind, number), port in sorted(self.ports.items())
        )
        return HostGateways(ports, tuple(self.passed_over), dict(sorted(self.stored.items())))


def _place(served: Served) -> tuple[str, int]:
    bind = served.server.bind
    return "" if bind == ANY_ADDRESS else bind, served.port


def _one_table(port: _Port) -> Iterator[Served]:
    """Yield the servers of a port; those of plaintext HTTP share the first one's route table."""
    shared = port.servers[0].route if port.speech is Speech.HTTP else None
    for served in port.servers:
        yield served if shared in {None, served.route} else replace(served, route=shared or "")
