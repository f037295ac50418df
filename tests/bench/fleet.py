"""Simulated proxies: each has its own certificate, its own connection with mutual TLS, and one delta ADS stream.

They do what an agent does with what it is sent: note name and version, acknowledge, and offer the versions again when
they reconnect. One thread and one epoll serve all of them.
"""

import math
import random
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from bench.h2 import GrpcStream
from bench.report import report
from hostmesh_api.v1.hostmesh_pb2 import ReportResponse
from hostmesh_api.wire import ADS_METHOD, ADS_SERVICE

REPORT_PATH: Final = "/hostmesh.v1.Reporting/Report"
PATH: Final = f"/{ADS_SERVICE}/{ADS_METHOD}"
_READ_BYTES: Final = 262_144
_TICK_S: Final = 0.05
"""How often it is looked whose report is due."""
_TCP_INFO_BYTES: Final = 136
_TCP_INFO_SENT_AT: Final = 120
"""Offset of tcpi_bytes_acked in struct tcp_info of linux/tcp.h; tcpi_bytes_received follows."""


class FleetError(Exception):
    """The simulated proxies did not get what they waited for in time."""


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes over TCP: with HTTP/2, gRPC and TLS around the messages."""

    sent: int = 0
    received: int = 0

    def __sub__(self, other: Self) -> "Wire":
        return Wire(self.sent - other.sent, self.received - other.received)

    def __add__(self, other: Self) -> "Wire":
        return Wire(self.sent + other.sent, self.received + other.received)


@dataclass(frozen=True, slots=True)
class Member:
    """A host of the fleet: its name, its certificate with key in one PEM file, and the names it asks for by type."""

    host: str
    identity: Path
    names: Mapping[str, tuple[str, ...]]


@dataclass(slots=True, eq=False)
class Proxy:
    """One simulated proxy. `failure` is "" while nothing went wrong."""

    member: Member
    stream: GrpcStream = field(default_factory=GrpcStream)
    connection: ssl.SSLSocket | None = None
    shaken: bool = False
    failure: str = ""
    unsent: bytes = b""
    answered: set[str] = field(default_factory=set)
    """Types that were answered since the stream opened."""
    held: dict[str, dict[str, str]] = field(default_factory=dict)
    report_at_s: float = math.inf
    """When the next report is due, by time.monotonic()."""
    acked_at_s: float = 0.0
    """When the last acknowledgement was written, by time.monotonic()."""

    @property
    def host(self) -> str:
        return self.member.host

    def open(self) -> bytes:
        """Return the first bytes of the stream: what it asks for, and what it still holds."""
        requests = [self._first(type_url) for type_url in self.member.names]
        return GrpcStream.open(PATH, "controller") + b"".join(requests)

    def _first(self, type_url: str) -> bytes:
        held = self.held.get(type_url, {})
        names = self.member.names[type_url]
        request = DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=names, initial_resource_versions=held
        )
        request.node.id = self.host
        return GrpcStream.message(request.SerializeToString())

    def take(self, message: bytes) -> bytes:
        """Take a response; return the bytes that acknowledge it."""
        response = DeltaDiscoveryResponse.FromString(message)
        held = self.held.setdefault(response.type_url, {})
        for resource in response.resources:
            held[resource.name] = resource.version
        for name in response.removed_resources:
            held.pop(name, None)
        self.answered.add(response.type_url)
        ack = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
        return GrpcStream.message(ack.SerializeToString())

    def settled(self) -> bool:
        """Tell whether every type it asks for holds all of its names, or was answered."""
        return all(
            type_url in self.answered or (self.held.get(type_url) and self.shaken) for type_url in self.member.names
        )

    def wire(self) -> Wire:
        """Return the bytes of the present connection."""
        if self.connection is None:
            return Wire()
        info = self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return Wire(*struct.unpack_from("=QQ", info, _TCP_INFO_SENT_AT))


class Fleet:
    """All simulated proxies of one benchmark."""

    def __init__(self, members: Iterable[Member], bundle: Path, address: tuple[str, int]) -> None:
        self.proxies = [Proxy(member) for member in members]
        self._bundle = bundle
        self._address = address
        self._epoll = select.epoll()
        self._by_fd: dict[int, Proxy] = {}
        self.responses = 0
        """Responses that all proxies have received and acknowledged so far."""
        self.reports = 0
        """Reports that the controller has answered."""
        self.report_interval_s = 0
        """How often it last asked for them."""
        self.response_bytes = 0
        """Their size, as messages."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        self._epoll.close()

    def connect(self) -> None:
        """Start to connect every proxy at once; `run` does the rest."""
        for proxy in self.proxies:
            proxy.stream = GrpcStream()
            proxy.shaken = False
            proxy.failure = ""
            proxy.unsent = b""
            proxy.answered = set()
            raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.connect_ex(self._address)
            proxy.connection = self._context(proxy).wrap_socket(raw, do_handshake_on_connect=False)
            self._by_fd[proxy.connection.fileno()] = proxy
            self._epoll.register(proxy.connection.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _context(self, proxy: Proxy) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # the controller is told by its root here, not by its name
        context.load_verify_locations(self._bundle)
        context.load_cert_chain(proxy.member.identity)
        context.set_alpn_protocols(["h2"])
        return context

    def disconnect(self) -> None:
        """Close every connection."""
        for proxy in self.proxies:
            self._close(proxy)

    def _close(self, proxy: Proxy) -> None:
        if proxy.connection is not None:
            self._by_fd.pop(proxy.connection.fileno(), None)
            proxy.connection.close()
            proxy.connection = None

    def run(self, until: Callable[[], bool], *, within_s: float) -> None:
        """Serve the proxies until a condition holds.

        Raises:
            FleetError: it did not hold in time, or a stream failed meanwhile.
        """
        deadline_s = time.monotonic() + within_s
        while not until():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise FleetError(f"nothing more came within {within_s} s; {self.summary()}")
            self.step(min(left_s, 0.5))

    def serve(self, for_s: float) -> None:
        """Serve the proxies for a time, whatever comes."""
        end_s = time.monotonic() + for_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._report()
            self.step(min(left_s, _TICK_S))

    def start_reports(self, within_s: float) -> None:
        """Let each proxy report once within a time, and from then on when the controller says."""
        now_s = time.monotonic()
        for proxy in self.proxies:
            proxy.report_at_s = now_s + random.uniform(0, within_s)

    def stop_reports(self) -> None:
        for proxy in self.proxies:
            proxy.report_at_s = math.inf

    def _report(self) -> None:
        now_s = time.monotonic()
        for proxy in self.proxies:
            if proxy.report_at_s <= now_s and proxy.shaken:
                proxy.report_at_s = math.inf
                self._write(proxy, proxy.stream.call(REPORT_PATH, "controller", report(proxy.host, now_s)))

    def _answered(self, proxy: Proxy, answer: bytes) -> None:
        interval_s = ReportResponse.FromString(answer).interval_s
        if not interval_s:
            self._fail(proxy, "a report was not taken")
            return
        self.reports += 1
        self.report_interval_s = interval_s
        # As the agents do: earlier by up to a fifth.
        proxy.report_at_s = time.monotonic() + interval_s * random.uniform(0.8, 1)

    def step(self, timeout_s: float) -> None:
        """Wait for the next events, once, and handle them."""
        for fd, _ in self._epoll.poll(timeout_s, maxevents=256):
            proxy = self._by_fd.get(fd)
            if proxy is not None:
                self._serve(proxy)

    def _serve(self, proxy: Proxy) -> None:
        try:
            if not proxy.shaken:
                self._shake(proxy)
            if proxy.shaken:
                self._read(proxy)
                self._write(proxy, b"")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            self._fail(proxy, str(error))

    def _shake(self, proxy: Proxy) -> None:
        assert proxy.connection is not None
        proxy.connection.do_handshake()
        proxy.shaken = True
        self._write(proxy, proxy.open())

    def _read(self, proxy: Proxy) -> None:
        while proxy.connection is not None:
            try:
                data = proxy.connection.recv(_READ_BYTES)
            except ssl.SSLWantReadError:
                return
            if not data:
                self._fail(proxy, "the server closed the connection")
                return
            received = proxy.stream.receive(data)
            reply = received.reply + b"".join(proxy.take(message) for message in received.messages)
            if reply:
                self._write(proxy, reply)
            if received.messages:
                proxy.acked_at_s = time.monotonic()
                self.responses += len(received.messages)
                self.response_bytes += sum(map(len, received.messages))
            for answer in received.answers:
                self._answered(proxy, answer)
            if received.ended:
                self._fail(proxy, received.ended)

    @staticmethod
    def _write(proxy: Proxy, data: bytes) -> None:
        proxy.unsent += data
        while proxy.unsent and proxy.connection is not None:
            try:
                sent = proxy.connection.send(proxy.unsent)
            except ssl.SSLWantWriteError:
                return
            proxy.unsent = proxy.unsent[sent:]

    def _fail(self, proxy: Proxy, reason: str) -> None:
        proxy.failure = reason
        self._close(proxy)

    def failures(self) -> list[str]:
        """Return what went wrong, one line for each proxy that failed."""
        return [f"{proxy.host}: {proxy.failure}" for proxy in self.proxies if proxy.failure]

    def wire(self) -> Wire:
        """Return the bytes of all present connections."""
        return sum((proxy.wire() for proxy in self.proxies), Wire())

    def settled(self) -> bool:
        """Tell whether every proxy has been answered all it asked for, or has failed."""
        return all(proxy.failure or proxy.settled() for proxy in self.proxies)

    def summary(self) -> str:
        """Return a line on how far the fleet is."""
        failures = self.failures()
        settled = sum(proxy.settled() for proxy in self.proxies)
        first = f", the first: {failures[0]}" if failures else ""
        return f"{settled} of {len(self.proxies)} settled, {len(failures)} failed{first}"
