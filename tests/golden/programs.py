"""Programs that know nothing of a mesh, and their callers. Each is made in the calling thread's network namespace."""

import http.client
import http.server
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

WAIT_S: Final = 10.0


class Answer(NamedTuple):
    """An HTTP answer; `got` are the request's headers as the program saw them, by lower-case name."""

    status: int
    body: str
    headers: Mapping[str, str]

    @property
    def got(self) -> dict[str, str]:
        return dict(line.split(": ", 1) for line in self.body.splitlines())


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers in HTTP/1.1, and writes no log."""

    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves until it is closed, in threads of the caller's network namespace."""

    daemon_threads = True

    def __init__(
        self, port: int, handler: type[Handler], *, address: str = "0.0.0.0", tls: ssl.SSLContext | None = None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Told(Handler):
    program = ""

    def do_GET(self) -> None:
        body = "".join(f"{name.lower()}: {value}\n" for name, value in self.headers.items())
        self.answer(f"{body}path: {self.path}\nprogram: {self.program}\n".encode())

    do_OPTIONS = do_GET  # noqa: N815 - as http.server calls it

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))


@dataclass
class Programs:
    """What runs; all of it ends with `close`."""

    _closers: list[Callable[[], None]] = field(default_factory=list)

    def http(self, port: int, program: str, *, address: str = "0.0.0.0", tls: ssl.SSLContext | None = None) -> None:
        """Answer every GET with the request's headers, every POST with its body."""
        handler = type("Handler", (_Told,), {"program": program})
        self._closers.append(Server(port, handler, address=address, tls=tls).close)

    def echo(self, port: int, greeting: bytes = b"") -> None:
        """Say the greeting, then say again whatever is said."""
        self.echo_on(socket.create_server(("0.0.0.0", port)), greeting)

    def echo_on(self, listener: socket.socket, greeting: bytes = b"") -> None:
        """The same on a socket that listens already."""
        threading.Thread(target=_accept, args=(listener, greeting), daemon=True).start()
        self._closers += [lambda: listener.shutdown(socket.SHUT_RDWR), listener.close]

    def upgrades(self, port: int) -> None:
        """Switch protocols when asked to, then say again whatever is said."""
        listener = socket.create_server(("0.0.0.0", port))
        threading.Thread(target=_accept, args=(listener, b""), kwargs={"upgrade": True}, daemon=True).start()
        self._closers += [lambda: listener.shutdown(socket.SHUT_RDWR), listener.close]

    def close(self) -> None:
        for close in self._closers:
            with suppress(OSError):
                close()


def _accept(listener: socket.socket, greeting: bytes, *, upgrade: bool = False) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(connection, greeting, upgrade), daemon=True).start()


def _echo(connection: socket.socket, greeting: bytes, upgrade: bool) -> None:
    with connection, suppress(OSError):
        connection.sendall(greeting)
        if upgrade:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := connection.recv(65536):
            connection.sendall(data)


def get(
    address: str,
    port: int,
    host: str,
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    *,
    method: str = "",
) -> Answer:
    client = http.client.HTTPConnection(address, port, timeout=WAIT_S)
    try:
        client.request(method or ("GET" if body is None else "POST"), path, body, {"Host": host, **(headers or {})})
        answer = client.getresponse()
        return Answer(answer.status, answer.read().decode(), dict(answer.getheaders()))
    finally:
        client.close()


def talk(address: str, port: int, data: bytes, *, greeting: bytes = b"") -> bytes:
    """Wait for the greeting, say something, and return what comes back, up to as much; less if the connection ends."""
    with socket.create_connection((address, port), WAIT_S) as client:
        assert _read(client, len(greeting)) == greeting
        client.sendall(data)
        return _read(client, len(data))


def _read(client: socket.socket, size: int) -> bytes:
    found = b""
    with suppress(ConnectionResetError):
        while len(found) < size and (chunk := client.recv(65536)):
            found += chunk
    return found


def look_up(name: str, kind: int, address: str = "127.0.0.1", port: int = 15053) -> tuple[int, list[str]]:
    """Ask a DNS server; return the response code and the addresses. `kind` is 1 for A, 28 for AAAA."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT_S)
        client.sendto(
            struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1),
            (address, port),
        )
        data = client.recv(4096)
    answers = struct.unpack(">H", data[6:8])[0]
    size = 4 if kind == 1 else 16
    family = socket.AF_INET if kind == 1 else socket.AF_INET6
    found = data[12 + len(labels) + 5 :]
    addresses = []
    for _ in range(answers):
        end = found.index(struct.pack(">HH", kind, 1)) + 10
        addresses.append(socket.inet_ntop(family, found[end : end + size]))
        found = found[end + size :]
    return data[3] & 0xF, addresses


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def hello_tls(address: str, port: int, protocols: list[str], server_name: str = "db") -> str:
    """Speak TLS without a certificate, ask for something, and return the first line of the answer or the failure."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    try:
        with (
            socket.create_connection((address, port), WAIT_S) as plain,
            context.wrap_socket(plain, server_hostname=server_name) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: db\r\nConnection: close\r\n\r\n")
            return client.recv(1000).partition(b"\r\n")[0].decode()
    except (ssl.SSLError, ConnectionResetError) as error:
        return f"failed: {error}"
