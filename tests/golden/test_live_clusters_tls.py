"""TLS that DestinationRules ask for, from a real Envoy to real TLS servers outside the mesh."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from golden.certificates import Authority
from golden.live import NEEDS_ROOT, LiveHost, Network, network, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Answer, Handler, Server, get
from hostmesh_api import wire
from hostmesh_controller.mesh import Mesh
from hostmesh_controller.model.objects import ApiObject

WEB, OUTSIDER = "10.9.0.1", "10.9.0.9"

pytestmark = NEEDS_ROOT


@dataclass
class Site:
    """A TLS server that tells whom it was asked for, and who asked."""

    port: int
    context: ssl.SSLContext
    names: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context.sni_callback = lambda _socket, name, _context: self.names.append(name)

        class Asking(Handler):
            def do_GET(self) -> None:  # noqa: N802 - the library's name
                certificate: Any = self.connection.getpeercert()
                caller = dict(part[0] for part in certificate["subject"]) if certificate else None
                self.answer(f"caller: {caller}\n".encode())

        self._server = Server(self.port, Asking, tls=self.context)

    def close(self) -> None:
        self._server.close()


def entry(host: str, port: int, **spec: Any) -> ApiObject:
    ports = [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": port}]
    whole = {"hosts": [host], "resolution": "STATIC", "ports": ports, "endpoints": [{"address": OUTSIDER}], **spec}
    return obj("ServiceEntry", host, whole)


def rule(host: str, tls: dict[str, Any]) -> ApiObject:
    # Each request on a connection of its own, so that each shows what certificates are used now.
    pool = {"http": {"maxRequestsPerConnection": 1}}
    return obj("DestinationRule", host, {"host": host, "trafficPolicy": {"tls": tls, "connectionPool": pool}})


def objects(directory: Path) -> list[ApiObject]:
    roots = {"mode": "SIMPLE", "caCertificates": str(directory / "ca.pem")}
    client = {"clientCertificate": str(directory / "client.pem"), "privateKey": str(directory / "client.key")}
    return [
        obj("Host", "web", {"addresses": [WEB]}),
        entry("site.test", 9443),
        rule("site.test", roots),
        entry("liar.test", 9443),
        rule("liar.test", roots),
        entry("named.test", 9443),
        rule("named.test", {**roots, "sni": "site.test", "subjectAltNames": ["site.test"]}),
        entry("listed.test", 9443, subjectAltNames=["site.test"]),
        rule("listed.test", {**roots, "sni": "listed.test"}),
        entry("unlisted.test", 9443, subjectAltNames=["other.test"]),
        rule("unlisted.test", {**roots, "sni": "site.test"}),
        entry("trusting.test", 9443),
        rule("trusting.test", {"mode": "SIMPLE", "insecureSkipVerify": True}),
        entry("public.test", 9443, subjectAltNames=["site.test"]),
        rule("public.test", {"mode": "SIMPLE", "sni": "public.test"}),
        entry("strict.test", 9444),
        rule("strict.test", {**roots, **client, "mode": "MUTUAL", "sni": "site.test"}),
    ]


@dataclass
class World:
    net: Network
    mesh: Mesh
    directory: Path
    authority: Authority
    site: Site
    strict: Site

    @property
    def web(self) -> LiveHost:
        return self.net.hosts["web"]

    def call(self, host: str) -> Answer:
        with self.web():
            return get(str(wire.VIP4[self.mesh.vips[host]]), 80, host)


def _context(directory: Path, certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    context.load_verify_locations(directory / "ca.pem")
    return context


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with TemporaryDirectory(prefix="hostmesh-live-tls-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        authority = Authority("site")
        (directory / "ca.pem").write_text(authority.certificate)
        certificate = authority.pair("site.test").write(directory, "site")
        authority.pair("first").write(directory, "client")
        mesh = mesh_of(objects(directory))
        with network(mesh, OUTSIDER) as running:
            with running.outsider():
                site = Site(9443, _context(directory, certificate))
                demanding = _context(directory, certificate)
                demanding.verify_mode = ssl.CERT_REQUIRED
                strict = Site(9444, demanding)
            yield World(running, mesh, directory, authority, site, strict)
            site.close()
            strict.close()


def test_a_request_goes_out_over_tls_for_the_name_that_it_asks_for(world: World) -> None:
    assert world.call("site.test").status == 200
    assert world.site.names[-1] == "site.test"


def test_a_certificate_for_another_name_is_refused(world: World) -> None:
    answer = world.call("liar.test")
    assert answer.status == 503
    assert world.site.names[-1] == "liar.test"


def test_a_rule_says_for_whom_it_asks_and_whom_it_accepts(world: World) -> None:
    assert world.call("named.test").status == 200
    assert world.site.names[-1] == "site.test"


def test_what_a_rule_does_not_say_the_service_entry_says(world: World) -> None:
    assert world.call("listed.test").status == 200
    assert world.site.names[-1] == "listed.test"
    assert world.call("unlisted.test").status == 503


def test_nothing_is_verified_where_the_rule_says_so(world: World) -> None:
    assert world.call("trusting.test").status == 200


def test_without_roots_of_its_own_those_of_the_operating_system_are_trusted(world: World) -> None:
    assert world.call("public.test").status == 503
    link = world.web.directory / wire.SYSTEM_ROOTS
    draft = link.with_name("draft")
    draft.symlink_to(world.directory / "ca.pem")
    draft.replace(link)
    wait_until("other roots are trusted", lambda: world.call("public.test").status == 200)


def test_the_callers_certificate_follows_its_files(world: World) -> None:
    wait_until("the first is shown", lambda: "'first'" in world.call("strict.test").body)
    world.authority.pair("second").write(world.directory, "client")
    wait_until("the second is shown", lambda: "'second'" in world.call("strict.test").body)
