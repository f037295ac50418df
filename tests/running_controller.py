"""A real controller for tests: in this process over ASGI, or as the process that users run."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from hostmesh_controller.api.app import create_app
from hostmesh_controller.api.principals import LocalSocket
from hostmesh_controller.authority import Authority
from hostmesh_controller.config import parse_config
from hostmesh_controller.controller import Controller
from hostmesh_controller.store.sqlite import open_store

START_S = 20.0


@dataclass(frozen=True)
class App:
    """The API with a real store behind it, without ports."""

    controller: Controller
    root: httpx.AsyncClient
    """As over the unix socket."""
    outside: httpx.AsyncClient
    """As over HTTPS: it needs a token."""

    async def token(self, role: str, **more: Any) -> str:
        made = await self.root.post("/v1/api-tokens", json={"name": f"a-{role}", "role": role, **more})
        assert made.status_code == 200, made.text
        return str(made.json()["token"])

    async def as_role(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self.token(role)}"}

    async def apply(self, text: str, **more: Any) -> httpx.Response:
        return await self.root.post("/v1/apply", json={"sources": [{"name": "test.yaml", "text": text}], **more})

    async def published(self) -> None:
        """Wait until the hub shows the store's newest revision."""
        revision = self.controller.registrar.revision
        answer = await self.root.get("/v1/converged", params={"revision": revision, "timeout_s": 10})
        assert answer.json()["converged"], answer.text


@asynccontextmanager
async def running_app(state_dir: Path, extra: str = "") -> AsyncIterator[App]:
    """`extra` is for controller.toml."""
    config = parse_config(f'state_dir = "{state_dir}"\naddresses = ["127.0.0.1"]\n{extra}', "test", ())
    store = open_store(state_dir / "store.sqlite")
    try:
        authority = Authority.load_or_create(state_dir, "cluster.local", datetime.now(UTC))
        controller = Controller(config, store, authority)
        await controller.registrar.open()
        await controller.ancestry.open()
        app = create_app(controller.parts())
        local = httpx.ASGITransport(LocalSocket(app), raise_app_exceptions=False)
        remote = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            httpx.AsyncClient(transport=local, base_url="http://hostmesh") as root,
            httpx.AsyncClient(transport=remote, base_url="http://hostmesh") as outside,
            asyncio.TaskGroup() as group,
        ):
            running = [group.create_task(each.run()) for each in (controller.registrar, controller.keys)]
            yield App(controller, root, outside)
            for task in running:
                task.cancel()
    finally:
        store.close()


@dataclass(frozen=True)
class Process:
    """`hostmesh-controller run`, ready."""

    directory: Path
    ports: tuple[int, int, int]
    """Agents, join, admin."""
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def address(self) -> str:
        return f"unix://{self.directory}/state/admin.sock"

    def cli(self, *arguments: str, stdin: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
        return run_cli(*arguments, stdin=stdin, HOSTMESH_ADDRESS=self.address, **env)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_S)


def run_cli(*arguments: str, stdin: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HOSTMESH_")}
    command = [sys.executable, "-c", "from hostmesh_controller.cli import main; main()", *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, env={**clean, **env}, timeout=START_S * 2
    )


def write_config(
    directory: Path, ports: tuple[int, int, int], state: str = "state", extra: str = "", tables: str = ""
) -> Path:
    """Write a controller.toml; `extra` are settings of its top, `tables` come at its end."""
    agents, join, admin = ports
    path = directory / f"{state}.toml"
    path.write_text(
        f'state_dir = "{directory}/{state}"\naddresses = ["127.0.0.1"]\n{extra}\n[listen]\n'
        f'agents = "127.0.0.1:{agents}"\njoin = "127.0.0.1:{join}"\nadmin = "127.0.0.1:{admin}"\n{tables}\n'
    )
    return path


def start_controller(config: Path, log: Path) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-c",
        "from hostmesh_controller.serve import main; main()",
        "run",
        "--config",
        str(config),
    ]
    with log.open("wb") as output:
        return subprocess.Popen(command, stderr=output, stdout=output)


@contextmanager
def running_process(directory: Path, tables: str = "") -> Iterator[Process]:
    """`tables` are for controller.toml."""
    ports = free_ports()
    log = directory / "controller.log"
    process = start_controller(write_config(directory, ports, tables=tables), log)
    try:
        wait_ready(process, log)
        yield Process(directory, ports, process, log)
    finally:
        process.kill()
        process.wait(START_S)


def free_ports() -> tuple[int, int, int]:
    sockets = [socket.socket() for _ in range(3)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        first, second, third = (int(each.getsockname()[1]) for each in sockets)
        return first, second, third
    finally:
        for each in sockets:
            each.close()


def wait_ready(process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for the log's word: everything listens then."""
    deadline = time.monotonic() + START_S
    while '"event": "ready"' not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
