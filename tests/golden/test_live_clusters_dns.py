"""Endpoints that are looked up: a real Envoy asks the host's resolvers, of which the mesh's own is the first."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from golden.live import NEEDS_ROOT, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Answer, Programs, get
from hostmesh_api import wire
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.objects import ApiObject

WEB, OUTSIDER = "10.9.0.1", "10.9.0.9"

pytestmark = NEEDS_ROOT


@dataclass
class NameServer:
    """Says that names are at addresses; of other names that they do not exist. `asked` are the names it was asked."""

    names: dict[str, str]
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("0.0.0.0", 53))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                data, caller = self._socket.recvfrom(4096)
            except OSError:
                return
            if not data:
                return
            self._socket.sendto(self._answer(data), caller)

    def _answer(self, data: bytes) -> bytes:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        kind = struct.unpack(">H", data[at + 1 : at + 3])[0]
        name = ".".join(labels)
        self.asked.append(name)
        address = self.names.get(name) if kind == 1 else None
        code = 0 if name in self.names else 3
        head = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, int(address is not None), 0, 0)
        record = struct.pack(">HHHIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(address) if address else b""
        return head + data[12 : at + 5] + record

    def close(self) -> None:
        # It is not connected, and says so; the thread is woken all the same.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def entry(host: str, resolution: str = "DNS", **spec: object) -> ApiObject:
    ports = [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 9000}]
    return obj("ServiceEntry", host, {"hosts": [host], "resolution": resolution, "ports": ports, **spec})


OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    entry("api.outside.test"),
    entry("round.outside.test", "DNS_ROUND_ROBIN"),
    entry("alias.test", endpoints=[{"address": "real.outside.test"}]),
    entry("gone.outside.test"),
]


@dataclass
class World:
    net: Network
    mesh: Mesh
    names: NameServer

    def call(self, host: str) -> Answer:
        with self.net.hosts["web"]():
            return get(str(wire.VIP4[self.mesh.vips[host]]), 80, host)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    programs = Programs()
    mesh = mesh_of(OBJECTS)
    resolvers = f"nameserver {wire.DNS_ADDRESS}\nnameserver {OUTSIDER}\noptions timeout:1\n"
    with network(mesh, OUTSIDER, resolvers) as running:
        with running.outsider():
            known = ("api", "round", "real")
            names = NameServer({f"{name}.outside.test": OUTSIDER for name in known})
            programs.http(9000, "outside")
        yield World(running, mesh, names)
        names.close()
    programs.close()


@pytest.mark.parametrize("host", ["api.outside.test", "round.outside.test", "alias.test"])
def test_a_name_is_looked_up_outside_the_mesh_though_the_mesh_has_it_too(world: World, host: str) -> None:
    wait_until(f"{host} answers", lambda: world.call(host).status == 200)
    assert world.call(host).body.endswith("program: outside\n")


def test_a_name_that_nobody_has_is_answered_503(world: World) -> None:
    assert world.call("gone.outside.test").status == 503
    wait_until("it was looked up", lambda: "gone.outside.test" in world.names.asked)
