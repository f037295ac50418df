"""Callers without an Envoy of their own, who choose what they show: certificates, server names, protocols, requests."""

import copy
import http.client
import socket
import ssl
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import pki
from hostmesh_api.identity import parse_identity
from hostmesh_controller.authority import Authority

WAIT_S: Final = 10.0
HTTP: Final = ("istio-http/1.1", "istio", "http/1.1")
TCP: Final = ("istio-peer-exchange", "istio")


@dataclass
class Stranger:
    """Calls from wherever the thread is; certificates are of one authority, and made once for each identity."""

    authority: Authority
    _contexts: dict[tuple[str, tuple[str, ...]], ssl.SSLContext] = field(default_factory=dict)

    def connect(
        self, address: str, port: int, identity: str | None, protocols: tuple[str, ...], name: str
    ) -> socket.socket:
        """Connect, with mutual TLS as `identity` (a SPIFFE ID), or in plaintext for None."""
        plain = socket.create_connection((address, port), WAIT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if identity is None:
            return plain
        return self._context(identity, protocols).wrap_socket(plain, server_hostname=name or None)

    def _context(self, identity: str, protocols: tuple[str, ...]) -> ssl.SSLContext:
        if (identity, protocols) not in self._contexts:
            known = parse_identity(identity)
            own = pki.svid(_of_domain(self.authority, known.trust_domain), known)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols(list(protocols))
            with tempfile.NamedTemporaryFile(suffix=".pem") as file:
                file.write(own.one_file)
                file.flush()
                context.load_cert_chain(file.name)
            self._contexts[identity, protocols] = context
        return self._contexts[identity, protocols]

    def ask(
        self,
        address: str,
        port: int,
        path: str = "/",
        *,
        identity: str | None = None,
        method: str = "GET",
        host: str = "server",
        headers: Mapping[str, str] | None = None,
        server_name: str = "",
    ) -> tuple[int, str]:
        """Send one request and return the status and the body; what it says is written as it is."""
        with self.connect(address, port, identity, HTTP, server_name) as connection:
            lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Length: 0"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            connection.sendall("\r\n".join([*lines, "", ""]).encode())
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            return response.status, response.read().decode()

    def is_echoed(self, address: str, port: int, *, identity: str | None = None, server_name: str = "") -> bool:
        """Say something to a program that says it again, and tell whether it did."""
        with (
            suppress(ConnectionError, ssl.SSLError),
            self.connect(address, port, identity, TCP, server_name) as connection,
        ):
            connection.sendall(b"hello")
            return connection.recv(5) == b"hello"
        return False


def _of_domain(authority: Authority, domain: str) -> Authority:
    """Return an authority with the same roots that certifies another trust domain: the mesh's former one."""
    result = copy.copy(authority)
    held = vars(result)["_held"]
    vars(result)["_held"] = replace(held, roots=replace(held.roots, trust_domain=domain))
    return result
