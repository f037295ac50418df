"""Services without an address: a host all of whose traffic comes by Envoy calls them by their names alone.

Names that callers choose (DYNAMIC_DNS) are tried here only: Envoy 1.40 crashes when it validates such a cluster from a
file (`--mode validate`), as golden files are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from golden.certificates import Authority
from golden.live import NEEDS_ROOT, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Answer, Programs, get, hello_tls, server_tls
from golden.test_live_clusters_dns import NameServer
from hostmesh_api import wire
from hostmesh_controller.model.objects import ApiObject

WEB, OUTSIDER = "10.9.0.1", "10.9.0.9"

pytestmark = NEEDS_ROOT


def entry(name: str, host: str, resolution: str, *ports: tuple[int, str]) -> ApiObject:
    written = [{"number": number, "name": f"p{number}", "protocol": protocol} for number, protocol in ports]
    return obj("ServiceEntry", name, {"hosts": [host], "resolution": resolution, "ports": written})


def secured(directory: Path) -> ApiObject:
    tls = {"mode": "SIMPLE", "caCertificates": str(directory / "ca.pem")}
    return obj("DestinationRule", "secure", {"host": "*.secure.test", "trafficPolicy": {"tls": tls}})


OBJECTS = [
    obj("Host", "web", {"addresses": [WEB], "capture": {"scope": "all"}}),
    entry("wild", "*.wild.test", "NONE", (8080, "HTTP"), (8443, "TLS")),
    entry("looked-up", "*.looked-up.test", "DYNAMIC_DNS", (8081, "HTTP")),
    entry("secure", "*.secure.test", "DYNAMIC_DNS", (8445, "HTTP")),
    obj(
        "VirtualService",
        "wild",
        {
            "hosts": ["*.wild.test"],
            "http": [
                {"match": [{"uri": {"prefix": "/no"}}], "directResponse": {"status": 418}},
                {"route": [{"destination": {"host": "*.wild.test"}}]},
            ],
        },
    ),
]


@dataclass
class World:
    net: Network

    def call(self, address: str, port: int, host: str, path: str = "/") -> Answer:
        with self.net.hosts["web"]():
            return get(address, port, host, path)

    def stat(self, cluster: str) -> int:
        return self.net.hosts["web"].stat(rf"cluster\.{cluster};?\.upstream_cx_total")


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """A place that Envoy's user can read."""
    with TemporaryDirectory(prefix="hostmesh-live-name-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def world(directory: Path) -> Iterator[World]:
    programs = Programs()
    resolvers = f"nameserver {wire.DNS_ADDRESS}\nnameserver {OUTSIDER}\noptions timeout:1\n"
    authority = Authority("site")
    pair = authority.pair("a.wild.test", "a.secure.test")
    (directory / "site.pem").write_text(pair.certificate + pair.key)
    (directory / "ca.pem").write_text(authority.certificate)
    with network(mesh_of([*OBJECTS, secured(directory)]), OUTSIDER, resolvers) as running:
        with running.outsider():
            names = NameServer(dict.fromkeys(("b.looked-up.test", "a.secure.test", "b.secure.test"), OUTSIDER))
            for port in (8080, 8081):
                programs.http(port, "outside")
            for port in (8443, 8445):
                programs.http(port, "outside", tls=server_tls(directory / "site.pem"))
        yield World(running)
        names.close()
    programs.close()


def test_a_name_that_a_wildcard_covers_is_the_service_wherever_it_is_dialled(world: World) -> None:
    assert world.call(OUTSIDER, 8080, "a.wild.test").status == 200
    assert world.stat(r"outbound\|8080\|\|\*\.wild\.test") == 1
    assert world.call(OUTSIDER, 8080, "a.wild.test", "/no").status == 418


def test_another_name_on_its_port_is_passed_on(world: World) -> None:
    assert world.call(OUTSIDER, 8080, "elsewhere.test").status == 200
    assert world.stat("PassthroughCluster") >= 1


def test_tls_for_a_name_that_a_wildcard_covers_goes_to_the_service(world: World) -> None:
    before = world.stat(r"outbound\|8443\|\|\*\.wild\.test")
    with world.net.hosts["web"]():
        assert hello_tls(OUTSIDER, 8443, [], "a.wild.test") == "HTTP/1.1 200 OK"
    assert world.stat(r"outbound\|8443\|\|\*\.wild\.test") == before + 1


def test_a_name_is_looked_up_whatever_was_dialled(world: World) -> None:
    wait_until("it is found", lambda: world.call("10.9.0.250", 8081, "b.looked-up.test:8081").status == 200)
    assert world.stat(r"outbound\|8081\|\|\*\.looked-up\.test") >= 1


def test_a_name_that_is_looked_up_is_asked_for_and_verified_over_tls(world: World) -> None:
    wait_until("it is found", lambda: world.call("10.9.0.250", 8445, "a.secure.test:8445").status == 200)
    assert world.call("10.9.0.250", 8445, "b.secure.test:8445").status == 503
