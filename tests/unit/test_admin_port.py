"""The admin port as it is: TLS 1.3, client certificates, and the `hostmesh` command that calls it."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import pki
from admin_certificates import AdminCa
from hostmesh_agent.keys import Svid
from hostmesh_controller.authority import Authority
from running_controller import Process, run_cli, running_process

RULES = """
[[admin.client]]
cn = "ann"
uri = "spiffe://example.org/people/*"
grants = ["admin"]
[[admin.client]]
ou = "ci"
name = "ci"
grants = ["editor:shop:Service", "viewer:shop"]
"""


CA = AdminCa()


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("controller")
    path = CA.write(directory / "admins.pem")
    with running_process(directory, f'[admin]\nclient_ca = "{path}"\n{RULES}') as process:
        yield process


@pytest.fixture(scope="module")
def authority(controller: Process) -> Authority:
    return Authority.load_or_create(controller.directory / "state", "cluster.local", pki.now())


def context(controller: Process, pem: bytes | None = None) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=controller.directory / "state/ca/root.pem")
    if pem is not None:
        file = controller.directory / "client.pem"
        file.write_bytes(pem)
        made.load_cert_chain(file)
    return made


def call(
    controller: Process, path: str, pem: bytes | None = None, method: str = "GET", body: object = None
) -> httpx.Response:
    url = f"https://127.0.0.1:{controller.ports[2]}{path}"
    with httpx.Client(verify=context(controller, pem), trust_env=False) as client:
        return client.request(method, url, json=body)


def person(cn: str, **more: Any) -> bytes:
    return CA.issue(cn, **more)[1]


ANN = person("ann", uri="spiffe://example.org/people/ann")


def test_a_client_certificate_is_whose_the_rules_say(controller: Process) -> None:
    assert (call(controller, "/v1/tokens", ANN)).status_code == 200
    ci = person("runner-7", unit="ci")
    assert (call(controller, "/v1/objects", ci)).status_code == 200
    assert (call(controller, "/v1/tokens", ci)).status_code == 403
    for pem in (
        person("ann"),
        person("ann", uri="spiffe://example.org/robots/ann"),
        person("bob", uri="spiffe://example.org/people/ann"),
        person("runner", unit="ci2"),
    ):
        refused = call(controller, "/v1/objects", pem)
        assert refused.status_code == 401
        assert "is nobody's here" in refused.json()["error"]["message"]


def test_without_a_certificate_a_token_is_asked_for(controller: Process) -> None:
    assert (call(controller, "/v1/objects")).status_code == 401
    assert (call(controller, "/healthz")).status_code == 200


def test_a_certificate_of_another_ca_of_the_mesh_or_of_yesterday_ends_the_handshake(
    controller: Process, authority: Authority
) -> None:
    stranger = AdminCa().issue("ann", uri="spiffe://example.org/people/ann")[1]
    host = pki.svid(authority, pki.HOST)
    old = person("ann", uri="spiffe://example.org/people/ann", life=-timedelta(days=1))
    for pem in (stranger, host.key_pem + host.chain_pem, old):
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            call(controller, "/healthz", pem)


def test_the_audit_tells_which_certificate_it_was(controller: Process) -> None:
    pem = person("runner-7", unit="ci")
    body: dict[str, Any] = {
        "documents": [{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "namespace": "shop"}}]
    }
    body["documents"][0]["spec"] = {"ports": [{"port": 80, "name": "http"}]}
    assert call(controller, "/v1/apply", pem, "POST", body).status_code == 200
    record = json.loads(controller.cli("audit", "--actor", "ci", "-o", "json").stdout)[0]
    assert (record["way"], record["address"], record["result"]) == ("certificate", "127.0.0.1", "ok")
    assert len(record["proof"]) > 30


def test_the_audit_tells_which_user_called_over_the_socket(controller: Process) -> None:
    controller.cli("token", "create", "--group", "no/such")
    assert controller.cli("api-token", "create", "bob").returncode == 0
    shown = controller.cli("audit", "--action", "apitoken.add", "--limit", "1").stdout.splitlines()
    assert shown[0].split() == ["AT", "(UTC)", "ACTOR", "BY", "ACTION", "OBJECT", "REVISION", "RESULT"]
    assert f" root   socket uid {os.getuid()}  apitoken.add " in shown[1]


def test_the_command_shows_a_certificate_or_a_token_from_a_file(controller: Process, tmp_path: Path) -> None:
    (tmp_path / "ann.pem").write_bytes(ANN)
    env = {
        "HOSTMESH_ADDRESS": f"https://127.0.0.1:{controller.ports[2]}",
        "HOSTMESH_CA": str(controller.directory / "state/ca/root.pem"),
    }

    def cli(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return run_cli(*arguments, **{**env, **more})

    arguments = (
        "api-token",
        "create",
        "ci",
        "--role",
        "editor",
        "--namespace",
        "shop",
        "--kind",
        "vs,destinationrules",
    )
    made = cli("--cert", str(tmp_path / "ann.pem"), *arguments, "-o", "json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["grants"] == ["editor:shop:DestinationRule,VirtualService"]
    (tmp_path / "token").write_text(json.loads(made.stdout)["token"] + "\n")
    listed = cli("--token-file", str(tmp_path / "token"), "get", "we", "-n", "shop")
    assert listed.returncode == 0, listed.stderr
    assert cli("get", "svc").returncode == 1
    shown = cli("api-token", "list", HOSTMESH_CERT=str(tmp_path / "ann.pem"))
    assert "editor:shop:DestinationRule,VirtualService" in shown.stdout
    assert "LAST USED" in shown.stdout


def test_a_token_on_the_command_line_is_refused_and_not_repeated() -> None:
    done = run_cli("--token", "hunter2", "get", "svc")
    assert done.returncode == 2
    assert "HOSTMESH_TOKEN or --token-file" in " ".join(done.stderr.replace("│", " ").split())
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("content", [b"with space", b"a\nb", b"\xff\xfe", b"caf\xc3\xa9"])
def test_a_token_file_that_holds_none_is_said_so_without_its_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    address = "https://127.0.0.1:1"
    done = run_cli("--token-file", str(tmp_path / "token"), "get", "svc", HOSTMESH_ADDRESS=address)
    assert done.returncode == 1
    assert done.stderr == (f"error: {tmp_path}/token holds no API token: make one with `hostmesh api-token create`\n")


def test_files_that_cannot_be_used_are_said_so(tmp_path: Path) -> None:
    env = {"HOSTMESH_ADDRESS": "https://127.0.0.1:1"}
    assert "cannot be read: No such file" in run_cli("--token-file", "/none", "get", "svc", **env).stderr
    (tmp_path / "x.pem").write_text("-----BEGIN nothing")
    assert "no certificate with its key" in run_cli("--cert", str(tmp_path / "x.pem"), "get", "svc", **env).stderr


@pytest.mark.parametrize("number", range(3), ids=["agents", "join", "admin"])
def test_no_port_speaks_tls_before_1_3_and_that_of_people_resumes_no_session(
    controller: Process, authority: Authority, number: int
) -> None:
    port = controller.ports[number]
    made = context(controller, _pem(pki.svid(authority, pki.HOST)) if number == 0 else None)
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(made, port)
    made.maximum_version = ssl.TLSVersion.TLSv1_3
    version, resumed, session = handshake(made, port)
    assert (version, resumed) == ("TLSv1.3", False)
    # gRPC cannot be told to: agents that resume one are refused (test_expel.py), and at the join port nobody is known.
    assert handshake(made, port, session)[:2] == ("TLSv1.3", number != 2)


def test_handshakes_of_many_at_once_do_not_end_the_controller(controller: Process) -> None:
    made = context(controller)
    made.set_alpn_protocols(["h2"])

    def shake() -> None:
        for _ in range(40):
            with (
                socket.create_connection(("127.0.0.1", controller.ports[1]), timeout=5) as raw,
                made.wrap_socket(raw, server_hostname="127.0.0.1"),
            ):
                pass

    with ThreadPoolExecutor(16) as threads:
        for done in [threads.submit(shake) for _ in range(16)]:
            done.result()
    assert call(controller, "/healthz").status_code == 200


def _pem(svid: Svid) -> bytes:
    return svid.key_pem + svid.chain_pem


def handshake(
    made: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None
) -> tuple[str | None, bool | None, ssl.SSLSession | None]:
    """Return the version that was agreed, whether the session was resumed, and the session."""
    made.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        made.wrap_socket(raw, server_hostname="127.0.0.1", session=session) as secured,
    ):
        secured.settimeout(0.5)
        # What a server has to say by itself: its settings, and before them its tickets.
        with contextlib.suppress(TimeoutError):
            secured.recv(1)
        return secured.version(), secured.session_reused, secured.session
