"""The stage of the demo: five hosts, their programs, and the calls that the claims are made of."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from hostmesh_controller.lab import agent, controller, machine, world
from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.etc import APP_USER, home
from hostmesh_controller.lab.layout import LabFacts, Layout
from hostmesh_controller.lab.space import Space, tail

MESH: Final = ("shop", "catalog", "catalog2", "ratings")
OUTSIDE: Final = "outside"
PORT: Final = 8080
_PROGRAMS: Final = {
    "catalog": ("catalog", "--version", "v1"),
    "catalog2": ("catalog", "--version", "v2"),
    "ratings": ("ratings", "--fail-every", "2"),
}
_HOME: Final = home(APP_USER)
_POLL_S: Final = 0.1
_LISTENING_S: Final = 10.0
_READY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What curl brought back: status 0 and no body where there was no answer."""

    status: int
    body: str
    problem: str

    @property
    def json(self) -> dict[str, Any]:
        try:
            found = json.loads(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def __str__(self) -> str:
        return f"status {self.status}: {self.body.strip()[:300]}" if self.status else self.problem


@dataclass(frozen=True, slots=True)
class Stage:
    layout: Layout
    lab: LabFacts

    def space(self, host: str) -> Space:
        return hosts.space_of(self.layout, self.lab, host)

    def world(self) -> Space:
        return world.space_of(self.layout, self.lab)

    def ip(self, host: str) -> str:
        return self.lab.net.address(disk.read_hosts(self.layout)[host].index)

    def install(self, host: str) -> None:
        """Put the programs on the host's disk and start its service."""
        for name in ("service.py", "load.py"):
            text = (files(__package__) / "programs" / name).read_text()
            done = self.space(host).run(["tee", f"{_HOME}/{name}"], text_in=text, user=APP_USER)
            if done.returncode != 0:
                raise LabError(f"host {host}: cannot write {_HOME}/{name}: {done.stderr.strip()}")
        self.start_program(host)

    def start_program(self, host: str) -> None:
        """Start the host's service and wait until it listens; nothing to do on a host that only calls."""
        if host not in _PROGRAMS:
            return
        log = self.layout.host(host).logs / "service.log"
        command = ["python3", f"{_HOME}/service.py", *_PROGRAMS[host]]
        self.space(host).start(command, log, user=APP_USER, cwd=_HOME)
        # Its own line in the log, not a call: that would count as one.
        if not eventually(lambda: f"on port {PORT}" in tail(log, 1), _LISTENING_S):
            raise LabError(f"host {host}: its program does not listen: {tail(log, 5)}")

    def apply(self, name: str) -> None:
        """`hostmesh apply` one of the demo's files."""
        text = Template((files(__package__) / "config" / name).read_text())
        addresses = {host: self.ip(host) for host in disk.read_hosts(self.layout)}
        self.hostmesh("apply", "-f", "-", text_in=text.substitute(addresses))

    def hostmesh(self, *arguments: str, text_in: str = "") -> str:
        """Run the CLI against the lab's controller and return its output."""
        done = subprocess.run(
            [str(machine.own_program("hostmesh")), *arguments],
            input=text_in,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", "HOSTMESH_ADDRESS": controller.address(self.layout)},
        )
        if done.returncode != 0:
            raise LabError(f"hostmesh {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def join(self, host: str) -> None:
        """Take the host into the mesh, as an operator would."""
        index = disk.read_hosts(self.layout)[host].index
        agent.join(self.layout, self.lab, host, controller.register(self.layout, self.lab, host, index))
        agent.start(self.layout, self.lab, host)
        agent.wait_ready(self.layout, host)

    def wait_for_workloads(self) -> None:
        """Return when every workload of the mesh is ready to be called by mutual TLS."""

        def waiting() -> list[str]:
            found = json.loads(self.hostmesh("host", "list", "-o", "json"))
            return [each for host in found for each in host["workloads"] if each not in host["ready"]]

        if not eventually(lambda: not waiting(), _READY_S):
            raise LabError(f"workloads that do not get ready: {', '.join(waiting())}")

    def call(self, host: str, url: str, *headers: str, method: str = "GET") -> Answer:
        """Call the URL from the host, as its ordinary user, with curl."""
        command = ["curl", "-sS", "-m", "10", "-X", method, "-w", "\n%{http_code}", url]
        for header in headers:
            command += ["-H", header]
        done = self.space(host).run(command, user=APP_USER)
        body, _, status = done.stdout.rpartition("\n")
        return Answer(int(status or 0), body, done.stderr.strip())

    def load(self, host: str, url: str, count: int, workers: int = 1) -> dict[str, Any]:
        """Call the URL `count` times and return load.py's summary."""
        command = ["python3", f"{_HOME}/load.py", url, "--count", str(count), "--workers", str(workers)]
        return _summary(self.space(host).run(command, user=APP_USER, timeout_s=120))

    @contextmanager
    def steady_load(self, host: str, url: str) -> Iterator[dict[str, Any]]:
        """Call the URL all the while; what came of it is in the yielded dictionary when the context is left."""
        command = ["python3", f"{_HOME}/load.py", url, "--workers", "2", "--pause", "0.005"]
        calls = self.space(host).popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, user=APP_USER
        )
        summary: dict[str, Any] = {}
        try:
            yield summary
            output, errors = calls.communicate("", timeout=30)
            summary.update(_summary(subprocess.CompletedProcess(command, calls.returncode, output, errors)))
        finally:
            if calls.poll() is None:
                calls.kill()
                calls.communicate()


def _summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise LabError(f"load.py ended with code {done.returncode}: {done.stderr.strip()[-500:]}") from None
    return found


def eventually(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition comes true within the time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def default_dir(environment: dict[str, str]) -> Path:
    """A place of its own: a lab that the user has is not disturbed."""
    return disk.default_dir(environment).with_name("demo")
