"""A host, a controller and who registers the one with the other."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.ssh import steps
from hostmesh_controller.cli.ssh.host_keys import HostKeys
from hostmesh_controller.cli.ssh.joining import Joining, Wanted
from hostmesh_controller.cli.ssh.packages import Source
from hostmesh_controller.cli.ssh.place import Place
from hostmesh_controller.cli.ssh.secrets import Secrets
from hostmesh_controller.cli.ssh.session import Access
from hostmesh_controller.cli.ssh.steps import HostResult
from hostmesh_controller.cli.ssh.verifying import NOTHING_TO_CALL
from running_controller import Process
from ssh.ssh_host import SshHost

JOINED = HostResult("web-1", "joined", request=NOTHING_TO_CALL.said, lacks=NOTHING_TO_CALL.lacks)
CLI = "from hostmesh_controller.cli import main; main()"
ALL_STEPS = (steps.CHECK, steps.INSTALL, steps.REGISTER, steps.JOIN, steps.START, steps.WAIT, steps.VERIFY)


class Told:
    """The real controller, which is told besides that the agents of joined hosts are connected: none runs here."""

    def __init__(self, process: Process) -> None:
        self.real = Connection(process.address)
        self.strings: list[str] = []

    def get(self, path: str, params: Any = None) -> dict[str, Any]:
        if path.startswith("/v1/proxies/"):
            return {"settled": True}
        answer = self.real.get(path, params)
        return {**answer, "connected": True} if path.startswith("/v1/hosts/") else answer

    def post(self, path: str, body: Any) -> dict[str, Any]:
        answer = self.real.post(path, body)
        self.strings += [answer["join_string"]] if "join_string" in answer else []
        return answer

    def delete(self, path: str) -> dict[str, Any]:
        return self.real.delete(path)

    def request(self, *arguments: Any, **more: Any) -> dict[str, Any]:
        return self.real.request(*arguments, **more)


@dataclass
class Setting:
    host: SshHost
    told: Any
    key: Path
    deb: Path

    def wanted(self, name: str = "web-1", user: str = "root", **more: Any) -> Wanted:
        secrets = more.pop("secrets", Secrets({}, terminal=False))
        keys = more.pop("keys", HostKeys((self.host.fingerprint,)))
        access = Access(Place(user, "127.0.0.1", self.host.port), keys, secrets, self.key, user != "root")
        body = {"addresses": ["192.0.2.7"], "ports": [{"name": "http", "number": 8080}], "workload": name}
        wanted = Wanted(name, access, body, Source(files=(self.deb,)))
        return replace(wanted, **more)

    def join(self, tell: Callable[[str], None] = lambda _: None, dry_run: bool = False, **more: Any) -> HostResult:
        result = Joining(self.wanted(**more), self.told, tell, dry_run=dry_run).run()
        print(result)
        return result

    def mesh(self) -> list[str]:
        objects = self.told.real.get("/v1/objects")["items"]
        tokens = self.told.real.get("/v1/tokens")["items"]
        return [f"{each['kind']}/{each['name']}" for each in objects] + [
            each["id"] for each in tokens if each["state"] == "open"
        ]


def packages(state: str) -> list[str]:
    return [line for line in state.splitlines() if line.startswith("installed ")]


def without_workloads(told: Any) -> None:
    """Nobody vouches for ports here."""
    get = told.get

    def ready(path: str, params: Any = None) -> dict[str, Any]:
        answer = get(path, params)
        return {**answer, "ready": answer["workloads"]} if path.startswith("/v1/hosts/") else answer

    told.get = ready


WRITTEN = (
    {
        "apiVersion": "hostmesh.io/v1",
        "kind": "Host",
        "metadata": {"name": "web-1", "labels": {"rack": "12"}},
        "spec": {"addresses": ["192.0.2.9"], "workloadNamespaces": ["shop"]},
    },
    {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "web-1", "namespace": "default", "annotations": {"hostmesh.io/capacity": "cores"}},
        "spec": {"address": "192.0.2.9", "ports": {"http": 80}, "labels": {"app": "web"}, "serviceAccount": "web"},
    },
)
"""What an operator has written of the host before it is joined."""


def documents(setting: Setting) -> list[dict[str, Any]]:
    return [each["document"] for each in setting.told.real.get("/v1/objects")["items"]]


def write(setting: Setting) -> None:
    for each in WRITTEN:
        where = f"{each['kind']}/{each['metadata'].get('namespace', '-')}/web-1"  # type: ignore[attr-defined]
        setting.told.real.request("PUT", f"/v1/objects/{where}", body=each)


def seen_as(setting: Setting, **said: Any) -> None:
    """Until there is another token, the controller says this of the host that has joined."""
    get, tokens = setting.told.get, len(setting.told.strings)

    def told(path: str, params: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = get(path, params)
        is_seen = path.startswith("/v1/hosts/") and len(setting.told.strings) == tokens
        return {**answer, **said} if is_seen else answer

    setting.told.get = told


def eventually(condition: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)
