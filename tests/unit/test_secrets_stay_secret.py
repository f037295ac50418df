"""Canaries go through all that a controller does, and are looked for wherever they must not be."""

import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest

import pki
from golden.certificates import Authority as SiteAuthority
from hostmesh_agent.keys import new_key
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import JoinRequest
from running_controller import Process, run_cli, running_process

PAIR = SiteAuthority("site").pair("shop.example.com")
CANARY = "canary-Zq8vK2nRt5yW"


class Arguments:
    """What stood in the arguments of this machine's processes while we looked: everybody on it can read that."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._seen: set[bytes] = set()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._end.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self._seen.add(path.read_bytes())
                except OSError:
                    continue
            self._end.wait(0.02)

    @contextmanager
    def watched(self) -> Iterator["Arguments"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._end.set()
            self._thread.join(10)

    def hold(self, secret: str) -> bool:
        return any(secret.encode() in each for each in self._seen)

    @property
    def commands(self) -> int:
        return sum(b"hostmesh_controller.cli" in each for each in self._seen)


def key_line(pem: str) -> str:
    return pem.strip().splitlines()[2]


@pytest.mark.timeout(120)
def test_no_secret_is_in_logs_arguments_answers_or_the_database(tmp_path: Path) -> None:
    told: list[str] = []
    with Arguments().watched() as arguments, running_process(tmp_path) as controller:
        api = json.loads(
            run(controller, told, "api-token", "create", "ci", "--role", "admin", "-o", "json", secret=True)
        )
        token = api["token"]
        registered = run(controller, told, "register", "h1", "--address", "127.0.0.1", "-o", "json", secret=True)
        join = JoinString.decode(json.loads(registered)["join_string"])

        (tmp_path / "secret.json").write_text(json.dumps(secret()))
        run(controller, told, "apply", "-f", str(tmp_path / "secret.json"), token=token)
        for verb in ("diff", "validate"):
            run(controller, told, verb, "-f", str(tmp_path / "secret.json"), token=token)
        for arguments_ in (
            ("get", "all", "-A", "-o", "yaml"),
            ("audit", "-o", "json"),
            ("token", "list", "-o", "json"),
        ):
            run(controller, told, *arguments_, token=token)
        run(controller, told, "api-token", "list", "-o", "yaml", token=token)
        # What goes wrong quotes what came in, but not this.
        broken = secret() | {"stringData": {"tls.key": f"{CANARY} {PAIR.key}", "tls.crt": CANARY}}
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        run(controller, told, "apply", "-f", str(tmp_path / "broken.json"), token=token, code=1)
        run(controller, told, "get", "svc", token=f"{token}x", code=1)
        told += requests_that_fail(controller, token)
        told += joins(controller, join)
        run(controller, told, "host", "remove", "h1", "-y")
        run(controller, told, "api-token", "revoke", api["id"])
        assert controller.stop() == 0
        logs = controller.log.read_text()
    assert arguments.commands > 3
    secrets = {
        "API token": token,
        "join token": join.token,
        "key of a Secret": key_line(PAIR.key),
        "canary": CANARY,
    }
    for name, value in secrets.items():
        assert value not in logs, f"{name} in the log"
        assert not arguments.hold(value), f"{name} in arguments"
        assert not any(value in each for each in told), f"{name} in what was answered"
    held = database(tmp_path / "state/store.sqlite")
    for name in ("API token", "join token", "canary"):
        assert secrets[name] not in held, f"{name} in the database"


def secret() -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "shop", "namespace": "edge"},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": PAIR.certificate, "tls.key": PAIR.key},
    }


def run(
    controller: Process, told: list[str], *arguments: str, token: str = "", secret: bool = False, code: int = 0
) -> str:
    """Run `hostmesh`, over https where it has a token, and keep what it says, unless a secret is what it is to say."""
    environment = {"HOSTMESH_ADDRESS": controller.address}
    if token:
        environment = {
            "HOSTMESH_ADDRESS": f"https://127.0.0.1:{controller.ports[2]}",
            "HOSTMESH_CA": f"{controller.directory}/state/ca/root.pem",
            "HOSTMESH_TOKEN": token,
        }
    done = run_cli(*arguments, **environment)
    assert done.returncode in ({0, 1} if arguments[0] == "diff" else {code}), done.stderr
    told.append(done.stderr)
    if not secret:
        told.append(done.stdout)
    return done.stdout


def requests_that_fail(controller: Process, token: str) -> list[str]:
    transport = httpx.HTTPTransport(uds=f"{controller.directory}/state/admin.sock")
    headers = {"Authorization": f"Bearer {CANARY}"}
    with httpx.Client(transport=transport, base_url="http://h", headers=headers) as client:
        answers = [
            client.post("/v1/api-tokens", json={"name": CANARY * 9, "role": CANARY}),
            client.post("/v1/apply", json={"documents": [{"kind": "Secret", "stringData": {"tls.key": CANARY}}]}),
            client.post("/v1/apply", json={"sources": 5, "password": CANARY}),
            client.post("/v1/tokens", json={"host": "none", "token": CANARY}),
            client.post("/v1/explain", json={"host": "h1", "target": 7, "headers": {"authorization": CANARY}}),
            client.delete(f"/v1/api-tokens/{token}x"),
        ]
    assert all(each.status_code >= 400 for each in answers)
    return [each.text.replace(f"{token}x", "") for each in answers]


def joins(controller: Process, join: JoinString) -> list[str]:
    """Join with the token, and again; return what the second answer said."""
    credentials = grpc.ssl_channel_credentials(Path(f"{controller.directory}/state/ca/root.pem").read_bytes())
    said = []
    with grpc.secure_channel(f"127.0.0.1:{controller.ports[1]}", credentials) as channel:
        call = channel.unary_unary("/hostmesh.v1.Enrolment/Join", JoinRequest.SerializeToString, bytes)
        for token in (join.token, join.token, CANARY):
            try:
                call(JoinRequest(token=token, csr_der=pki.greedy_csr(new_key())), timeout=10)
            except grpc.RpcError as error:
                said.append(str(error))
    assert len(said) == 2
    return said


def database(path: Path) -> str:
    """All that is in the database and its files."""
    with sqlite3.connect(path) as connection:
        dump = "\n".join(connection.iterdump())
    connection.close()
    files = [each.read_bytes().decode("latin-1") for each in path.parent.glob("store.sqlite*")]
    return dump + "".join(files)


def test_files_of_the_controller_are_its_users_alone(tmp_path: Path) -> None:
    with running_process(tmp_path):
        for path in (tmp_path / "state", *(tmp_path / "state").rglob("*")):
            mode = path.lstat().st_mode & 0o777
            assert mode & 0o077 == 0, (path, oct(mode))
            assert path.lstat().st_uid == os.getuid()
