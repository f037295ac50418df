"""The agent speaks TLS 1.3 alone: a join token goes to nobody who speaks less."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pki
from hostmesh_api.joinstring import JoinString
from hostmesh_controller.authority_server import ServerCertificate

TOKEN = "t" * 43


class Server:
    """Takes one connection and keeps what came over it, once TLS is there."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self.failures: list[str] = []
        self.received = b""

    def serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listening.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(accepted, server_side=True) as secured:
                    secured.settimeout(5)
                    self.received += secured.recv(65536)
            except OSError as error:
                self.failures.append(str(error))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@contextmanager
def serving(directory: Path, version: ssl.TLSVersion) -> Iterator[tuple[Server, JoinString]]:
    authority = pki.new_authority(directory)
    pair = ServerCertificate(authority, ["127.0.0.1"], pki.now).current()
    (directory / "server.pem").write_bytes(pair.key_pem + pair.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    server = Server(context)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server, JoinString((f"127.0.0.1:{server.port}",), authority.root_der, TOKEN)
    finally:
        server.close()
        thread.join(10)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nothing_is_sent_to_a_server_that_speaks_tls_1_2(tmp_path: Path, version: ssl.TLSVersion) -> None:
    config = tmp_path / "agent.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n[envoy]\nuser = "nobody"\n')
    with serving(tmp_path, version) as (server, join):
        command = [sys.executable, "-c", "from hostmesh_agent.cli import main; main()", "--config", str(config)]
        done = subprocess.run(
            [*command, "join", join.encode()], capture_output=True, text=True, timeout=50, env={**os.environ}
        )
        assert done.returncode == 1, done.stderr
        assert "no controller answered" in done.stderr
        if version is ssl.TLSVersion.TLSv1_3:
            assert server.received.startswith(b"PRI * HTTP/2")
        else:
            assert server.received == b""
            assert server.failures
