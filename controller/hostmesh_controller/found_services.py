"""Programs that were found listening on a host: what they seem to be, and what adopting one would make. Pure.

Nothing is adopted by itself, and no program is called to find out what it speaks: its port and its name tell, or an
operator does.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from hostmesh_api.v1.hostmesh_pb2 import HostReport, ListeningSocket
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Workload
from hostmesh_controller.mesh.selection import services_of
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.store import plain

_OF_PORT: Final = {
    53: "tcp",
    80: "http",
    443: "tls",
    1433: "tcp",
    3306: "tcp",
    5432: "tcp",
    5672: "tcp",
    6379: "tcp",
    8080: "http",
    8443: "https",
    9042: "tcp",
    9092: "tcp",
    9200: "http",
    11211: "tcp",
    27017: "tcp",
    50051: "grpc",
}
_OF_PROGRAM: Final = (
    ("mysqld", "tcp"),
    ("mariadbd", "tcp"),
    ("redis", "tcp"),
    ("valkey", "tcp"),
    ("mongod", "tcp"),
    ("postgres", "tcp"),
    ("nginx", "http"),
    ("apache2", "http"),
    ("httpd", "http"),
    ("caddy", "http"),
    ("gunicorn", "http"),
    ("uvicorn", "http"),
)
PROTOCOLS: Final = ("http", "http2", "https", "grpc", "grpc-web", "tcp", "tls")
_SYSTEM: Final = ("sshd", "systemd", "systemd-resolve", "rpcbind", "chronyd", "dnsmasq", "hostmesh-agent", "envoy")
_MESH_PORTS: Final = range(15000, 15100)


class NotAdoptedError(Exception):
    """What was named cannot be adopted; the message says what can be done."""


@dataclass(frozen=True, slots=True)
class Found:
    """A program that listens on a port, at all of its addresses.

    `system` says why nobody adopts it by a name, "" where somebody may; `adopted` are the workloads whose port it is,
    with the services of each, as "namespace/name".
    """

    port: int
    addresses: tuple[str, ...]
    program: str
    unit: str
    container: str
    uid: int
    protocol: str
    system: str
    adopted: tuple[str, ...]
    services: tuple[str, ...]

    @property
    def name(self) -> str:
        """A service's name after the unit or the program."""
        text = self.unit.rpartition(".")[0].partition("@")[0] or self.program
        return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:50].strip("-") or f"port-{self.port}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator asks for; "" and () for what follows from what was found."""

    host: str
    port: int = 0
    unit: str = ""
    service: str = ""
    namespace: str = ""
    protocol: str = ""
    service_account: str = ""
    service_port: int = 0


def found_on(mesh: Mesh, host: str, report: HostReport) -> list[Found]:
    """Return what listens on a host, by port."""
    by_port: dict[int, list[ListeningSocket]] = {}
    for each in report.listening:
        by_port.setdefault(each.port, []).append(each)
    placed: dict[int, list[Workload]] = {}
    for inbound in inbound_ports(mesh, host):
        placed.setdefault(inbound.number, []).append(inbound.workload)
    result = []
    for port, sockets in sorted(by_port.items()):
        first = sockets[0]
        program, unit = plain(first.program), plain(first.unit)
        addresses = tuple(sorted({each.address for each in sockets if _is_address(each.address)}))
        workloads = placed.get(port, ())
        result.append(
            Found(
                port,
                addresses,
                program,
                unit,
                plain(first.container),
                first.uid,
                protocol_of(port, program),
                _system(port, program, addresses),
                tuple(sorted({"/".join(each.key) for each in workloads})),
                tuple(sorted({service.id.hostname for each in workloads for service in services_of(mesh, each)})),
            )
        )
    return result


def protocol_of(port: int, program: str) -> str:
    """Guess what a port speaks: by the program's name, then by the number; "tcp" is right for everything."""
    for prefix, protocol in _OF_PROGRAM:
        if program.startswith(prefix):
            return "tls" if port == 443 else protocol
    return _OF_PORT.get(port, "tcp")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _system(port: int, program: str, addresses: Sequence[str]) -> str:
    if port == 22 or program == "sshd":
        return "SSH is never captured"
    if port in _MESH_PORTS:
        return "a port of the mesh itself"
    if program in _SYSTEM:
        return "a program of the system"
    if addresses and all(ip_address(each).is_loopback for each in addresses):
        return "listens on loopback alone: others cannot reach it"
    return ""


def chosen(found: Iterable[Found], wish: Wish) -> list[Found]:
    """Return the ports that are meant.

    Raises:
        NotAdoptedError: none is, or not one that can be.
    """
    all_found = list(found)
    if wish.port:
        named = [each for each in all_found if each.port == wish.port]
    elif wish.unit:
        wanted = {wish.unit, f"{wish.unit}.service"}
        named = [each for each in all_found if {each.unit, each.container, each.program} & wanted]
    else:
        named = [each for each in all_found if not each.system and not each.adopted]
        if len(named) > 1:
            choices = ", ".join(f"{each.port} ({each.unit or each.program})" for each in named)
            raise NotAdoptedError(
                f"several programs listen on host {wish.host}: {choices}; name one, as {wish.host}:PORT"
            )
    if not named:
        what = f"on port {wish.port}" if wish.port else f"of {wish.unit}" if wish.unit else "that could be adopted"
        raise NotAdoptedError(
            f"nothing {what} was found listening on host {wish.host}; see: hostmesh host services {wish.host}"
        )
    usable = [each for each in named if not each.system]
    if not usable:
        raise NotAdoptedError(f"port {named[0].port} of host {wish.host} cannot be adopted: {named[0].system}")
    free = [each for each in usable if not each.adopted]
    if not free:
        taken = "; ".join(
            f"port {each.port} of host {wish.host} is that of {', '.join(each.adopted)}" for each in usable
        )
        raise NotAdoptedError(f"{taken} already")
    return free


def documents(
    wish: Wish, ports: Sequence[Found], address: str, namespace: str, objects: Mapping[ObjectKey, ApiObject]
) -> list[dict[str, Any]]:
    """Return the objects that adopting makes: a WorkloadEntry, and a Service unless there is one of that name.

    Raises:
        NotAdoptedError: what is there already does not fit.
    """
    name = wish.service or ports[0].name
    key = ObjectKey("Service", namespace, name)
    service = objects.get(key)
    names = [_port_name(each, wish, ports) for each in ports]
    labels = {"app": name}
    if service is not None:
        spec = service.spec
        assert isinstance(spec, ServiceSpec)
        if not spec.selector:
            raise NotAdoptedError(f"{key} has no selector: it takes no workloads; choose another --service")
        labels = dict(spec.selector)
        if len(ports) == 1 and len(spec.ports) == 1:
            names = [spec.ports[0].name or names[0]]
    entry = ObjectKey("WorkloadEntry", namespace, f"{name}-{wish.host}")
    if entry in objects:
        raise NotAdoptedError(f"{entry} is there already; edit it (hostmesh apply), or choose another --service")
    made = [
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {"name": entry.name, "namespace": namespace, "labels": labels},
            "spec": {
                "address": address,
                "labels": labels,
                "serviceAccount": wish.service_account or name,
                "ports": {each: found.port for each, found in zip(names, ports, strict=True)},
            },
        }
    ]
    if service is None:
        made.insert(0, _service(name, namespace, labels, names, ports, wish))
    return made


def _service(
    name: str, namespace: str, labels: Mapping[str, str], names: Sequence[str], ports: Sequence[Found], wish: Wish
) -> dict[str, Any]:
    one = wish.service_port if len(ports) == 1 else 0
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": dict(labels),
            "ports": [
                {"name": each, "port": one or found.port, "targetPort": found.port}
                for each, found in zip(names, ports, strict=True)
            ],
        },
    }


def _port_name(found: Found, wish: Wish, ports: Sequence[Found]) -> str:
    protocol = wish.protocol or found.protocol
    return protocol if len(ports) == 1 else f"{protocol}-{found.port}"
