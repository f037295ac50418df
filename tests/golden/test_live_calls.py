"""What a real Envoy counts of the calls to a workload: who, how, how often; and that nobody can make it count more."""

import asyncio
import random
import socket
import ssl
import string
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from bench.h2 import Kind, frame
from golden.live import NEEDS_ROOT, LiveHost, Network, network, vip, wait_until
from golden.objects import mesh_of, obj
from golden.programs import Programs, get, talk
from hostmesh_agent import bootstrap
from hostmesh_agent.admin import Admin
from hostmesh_api.call_stats import MAX_ADDRESSES, NAMES, CallCounter, parse_counter
from netns.space import run

WEB, DB, OUTSIDER = "10.7.0.1", "10.7.0.2", "10.7.0.9"
MANY: Final = "10.66.0.0/16"
"""Addresses that are all the outsider's."""
WEB_ID = "spiffe://cluster.local/ns/default/sa/web"


def typed(name: str, **values: Any) -> dict[str, Any]:
    config = {"@type": f"type.googleapis.com/envoy.extensions.{name}", **values}
    return {"name": f"envoy.{name.rpartition('.v3.')[0]}", "typed_config": config}


def refusing(name: str, **values: Any) -> dict[str, Any]:
    nobody = {"permissions": [{"any": True}], "principals": [{"any": True}]}
    return typed(name, rules={"action": "DENY", "policies": {"all": nobody}}, **values)


def patch(to: str, port: int, operation: str, value: dict[str, Any]) -> dict[str, Any]:
    name = value["name"] if operation == "MERGE" else ""
    chain: dict[str, Any] = {"destinationPort": port}
    if name or to == "HTTP_FILTER":
        chain["filter"] = {"name": name or "envoy.filters.network.http_connection_manager"}
    match = {"context": "SIDECAR_INBOUND", "listener": {"filterChain": chain}}
    return {"applyTo": to, "match": match, "patch": {"operation": operation, "value": value}}


REFUSES_TCP = refusing("filters.network.rbac.v3.RBAC", stat_prefix="refusals")
LASTS = typed("filters.network.tcp_proxy.v3.TcpProxy", access_log_options={"access_log_flush_interval": "0.05s"})
"""What lasts is told sooner than a test would wait."""
OBJECTS = [
    obj("Host", "web", {"addresses": [WEB]}),
    obj("Host", "db", {"addresses": [DB]}),
    obj("WorkloadEntry", "web", {"address": WEB, "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "db", {"address": DB, "labels": {"app": "db"}, "serviceAccount": "db"}),
    obj(
        "Service",
        "db",
        {
            "selector": {"app": "db"},
            "ports": [
                {"name": "http", "port": 8080},
                {"name": "tcp", "port": 3306},
                {"name": "any", "port": 7000},
                {"name": "tcp-tls", "port": 8443},
                {"name": "http-denied", "port": 8081},
                {"name": "tcp-denied", "port": 3307},
                {"name": "tcp-lasting", "port": 3308},
                {"name": "tcp-flooded", "port": 3309},
                {"name": "http-flooded", "port": 9000},
            ],
        },
    ),
    obj(
        "EnvoyFilter",
        "refusals",
        {
            "workloadSelector": {"labels": {"app": "db"}},
            "configPatches": [
                patch("HTTP_FILTER", 8081, "INSERT_FIRST", refusing("filters.http.rbac.v3.RBAC")),
                patch("NETWORK_FILTER", 3307, "INSERT_FIRST", REFUSES_TCP),
                patch("NETWORK_FILTER", 3308, "MERGE", LASTS),
            ],
        },
    ),
]

pytestmark = NEEDS_ROOT


def calls(host: LiveHost) -> dict[CallCounter, int]:
    """Return what Envoy has counted, read as the agent reads it."""
    found = asyncio.run(Admin(host.directory / bootstrap.ADMIN_SOCKET).stats(NAMES))
    parsed = {name: parse_counter(name) for name in found}
    assert None not in parsed.values(), f"not understood: {[name for name, each in parsed.items() if each is None]}"
    return {each: found[name] for name, each in parsed.items() if each is not None}


def ended(chain: str, caller: str, method: str = "GET", *, denied: bool = False) -> CallCounter:
    return CallCounter(chain, caller, method, denied=denied, ended=True)


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(mesh_of(OBJECTS), OUTSIDER) as running:
        yield running


@contextmanager
def programs(host: LiveHost) -> Iterator[None]:
    running = Programs()
    with host():
        running.http(8080, "db")
        running.http(7000, "db")
        for port in (3306, 3307, 3308, 3309):
            running.echo(port)
    try:
        yield
    finally:
        running.close()


@pytest.fixture
def db(net: Network) -> Iterator[LiveHost]:
    with programs(net.hosts["db"]):
        yield net.hosts["db"]


def test_callers_are_told_apart_by_identity_or_address_and_requests_by_method(net: Network, db: LiveHost) -> None:
    with net.hosts["web"]():
        get(address := vip(mesh_of(OBJECTS), "db"), 8080, "db")
        get(address, 7000, "db")
        talk(address, 3306, b"hello")
    with net.outsider():
        get(DB, 8080, "db")
        get(DB, 8080, "db")
        get(DB, 7000, "db")
        talk(DB, 3306, b"hello")
    expected = {
        ended("0.0.0.0_8080|mtls", WEB_ID): 1,
        ended("0.0.0.0_7000|mtls-http", WEB_ID): 1,
        ended("0.0.0.0_3306|mtls", WEB_ID, "-"): 1,
        ended("0.0.0.0_8080|plaintext", OUTSIDER): 2,
        ended("0.0.0.0_7000|plaintext-http", OUTSIDER): 1,
        ended("0.0.0.0_3306|plaintext", OUTSIDER, "-"): 1,
    }
    wait_until(f"{expected}", lambda: calls(db) == expected)


def test_a_programs_own_tls_is_told_apart_from_plaintext_and_from_the_meshs(net: Network, db: LiveHost) -> None:
    hello = ssl.create_default_context()
    with net.outsider(), socket.create_connection((DB, 8443)) as client, pytest.raises((ssl.SSLError, OSError)):
        hello.wrap_socket(client, server_hostname="db")  # nobody serves it
    own = ended("0.0.0.0_8443|own-tls", OUTSIDER, "-")
    wait_until("the call", lambda: calls(db).get(own) == 1)


def test_what_a_policy_refuses_is_told_apart(net: Network, db: LiveHost) -> None:
    with net.hosts["web"]():
        assert get(vip(mesh_of(OBJECTS), "db"), 8081, "db").status == 403
    with net.outsider():
        assert talk(DB, 3307, b"hello") == b""
    refused = {
        ended("0.0.0.0_8081|mtls", WEB_ID, denied=True): 1,
        ended("0.0.0.0_3307|plaintext", OUTSIDER, "-", denied=True): 1,
    }
    wait_until("the refusals", lambda: refused.items() <= calls(db).items())


def test_a_connection_that_lasts_is_seen_before_it_ends(net: Network, db: LiveHost) -> None:
    call = ended("0.0.0.0_3308|plaintext", OUTSIDER, "-")
    with net.outsider():
        client = socket.create_connection((DB, 3308))
    with client:
        client.sendall(b"hello")
        wait_until("the caller", lambda: calls(db).get(replace(call, ended=False), 0) > 1)
        assert call not in calls(db)
    wait_until("the call", lambda: calls(db).get(call) == 1)


def swift(port: int) -> socket.socket:
    """Answer every request with nothing, quickly."""
    listener = socket.create_server(("0.0.0.0", port))

    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" * data.count(b"\r\n\r\n"))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def request(stream: int, headers: dict[str, str]) -> bytes:
    """Return a request in HTTP/2, which lets a method be any word."""
    block = b"".join(b"\x00" + text(name) + text(value) for name, value in headers.items())
    return frame(Kind.HEADERS, 0x5, stream, block)


def answered(client: socket.socket, requests: list[bytes]) -> None:
    """Send requests and wait until each has its response."""
    client.sendall(b"".join(requests))
    found, open_streams = b"", len(requests)
    while open_streams:
        found += client.recv(65536)
        while len(found) >= 9 and len(found) >= (size := 9 + int.from_bytes(found[:3])):
            assert found[3] not in {Kind.RST_STREAM, Kind.GOAWAY}, found[:size]
            open_streams -= found[3] == Kind.HEADERS and bool(found[4] & 0x1)
            found = found[size:]


def test_ten_thousand_requests_that_are_all_different_make_no_new_counter(net: Network, db: LiveHost) -> None:
    chosen = random.Random(7)

    def word() -> str:
        return "".join(chosen.choices(string.ascii_uppercase, k=12))

    def any_request(stream: int) -> bytes:
        forged = f"URI=spiffe://cluster.local/ns/{word()}/sa/{word()}"
        more = {word().lower(): word(), "user-agent": word(), "x-forwarded-client-cert": forged}
        address = f"10.{stream % 250}.0.{stream % 199}"
        path, host = f"/{word()}?{word()}", f"{word().lower()}.example.com"
        named = {":method": word(), ":scheme": "http", ":authority": host, ":path": path}
        return request(stream, {**named, "x-forwarded-for": address, "x-envoy-external-address": address, **more})

    with db():
        listener = swift(9000)
    with listener, net.outsider(), socket.create_connection((DB, 9000)) as client:
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(Kind.SETTINGS, 0, 0, b""))
        for start in range(0, 10_000, 100):
            answered(client, [any_request(2 * (start + index) + 1) for index in range(100)])
    other = ended("0.0.0.0_9000|plaintext", OUTSIDER, "OTHER")
    wait_until("the calls", lambda: calls(db).get(other) == 10_000)
    assert [each for each in calls(db) if each.chain.startswith("0.0.0.0_9000")] == [other]


def test_callers_from_many_addresses_fill_only_the_room_for_addresses_and_make_room_in_time(
    net: Network, db: LiveHost
) -> None:
    with net.outsider():
        run("ip", "route", "add", "local", MANY, "dev", "lo")
    with db():
        run("ip", "route", "add", MANY, "via", OUTSIDER)
    with net.outsider():
        for index in range(MAX_ADDRESSES + 50):
            source = f"10.66.{index // 250}.{index % 250 + 1}"
            with socket.create_connection((DB, 3309), source_address=(source, 0)) as client:
                client.sendall(b"hello")
                assert client.recv(5)

    def full() -> int:
        return sum(each.chain == "0.0.0.0_3309|plaintext" for each in calls(db))

    wait_until("the room to be used", lambda: full() == MAX_ADDRESSES)
    with net.hosts["web"]():
        talk(vip(mesh_of(OBJECTS), "db"), 3309, b"hello")
    wait_until("an identity", lambda: ended("0.0.0.0_3309|mtls", WEB_ID, "-") in calls(db))
    assert full() == MAX_ADDRESSES
    wait_until("the addresses to be forgotten", lambda: full() == 0, 30)
    with net.outsider():
        talk(DB, 3309, b"hello")
    wait_until("the next caller", lambda: ended("0.0.0.0_3309|plaintext", OUTSIDER, "-") in calls(db))
