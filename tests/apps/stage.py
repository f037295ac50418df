"""A reference application on a lab: its programs run, its YAML is applied, and callers on its hosts call."""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from string import Template
from subprocess import Popen
from types import TracebackType
from typing import Any, Final, Self

from e2e.driver import PYTHON, Lab, eventually

APPS: Final = Path(__file__).parent
_ANSWER_S: Final = 60.0


class Caller:
    """`apps.programs.caller` on a host: each method call is a line to it and a line back."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._process: Popen[str] = lab.popen(
            host, "env", f"PYTHONPATH={APPS.parent}", PYTHON, "-m", "apps.programs.caller"
        )

    def ask(self, verb: str, **told: Any) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"do": verb, **told}) + "\n")
        process.stdin.flush()
        assert select([process.stdout], [], [], _ANSWER_S)[0], f"no answer to {verb} {told}"
        found: dict[str, Any] = json.loads(process.stdout.readline() or '{"error": "the caller has ended"}')
        assert "error" not in found, found
        return found

    def get(self, url: str, **told: Any) -> "Reply":
        """One request on a new connection; `told` are the fields of `apps.programs.calling.Request`."""
        return Reply(**self.ask("get", url=url, **told))

    def many(self, url: str, count: int, workers: int = 1, **told: Any) -> dict[str, Any]:
        """`count` requests and their tally."""
        return self.ask("many", url=url, count=count, workers=workers, **told)

    @contextmanager
    def load(self, url: str, **told: Any) -> Iterator["Load"]:
        """Call the URL all the while; the tally of all requests is there when the context is left."""
        self.ask("start", name=url, url=url, **told)
        load = Load(self, url)
        try:
            yield load
        finally:
            load.tally.update(self.ask("stop", name=url))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Reply:
    """What `get` brought back; status 0 and a problem where there was no answer."""

    status: int
    body: str
    headers: dict[str, str]
    problem: str
    started: float
    took_s: float

    @property
    def json(self) -> dict[str, Any]:
        assert self.body.startswith("{"), self
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def who(self) -> str:
        """Service and version that answered."""
        return f"{self.json['service']} {self.json['version']}"


@dataclass
class Load:
    """A load that goes on; see `apps.programs.calling.tally` for what a tally has. `tally` is that of all."""

    caller: Caller
    name: str
    tally: dict[str, Any] = field(default_factory=dict)

    def fresh(self, count: int) -> dict[str, Any]:
        """Return the tally of the requests that begin from now on, when there are `count` of them."""
        return self.caller.ask("fresh", name=self.name, count=count)


@dataclass(frozen=True)
class App:
    """An application: `name` is the folder of its YAML below tests/apps."""

    lab: Lab
    name: str
    addresses: dict[str, str]

    def text(self, file: str, **values: str) -> str:
        """A YAML file of the application with the hosts' addresses and `values` filled in."""
        return Template((APPS / self.name / f"{file}.yaml").read_text()).substitute(self.addresses, **values)

    def apply(self, file: str, **values: str) -> None:
        self.lab.apply(self.text(file, **values))

    def delete(self, file: str, **values: str) -> None:
        self.lab.hostmesh("delete", "--ignore-missing", "-f", "-", text_in=self.text(file, **values))

    @contextmanager
    def configured(self, *files: str, **values: str) -> Iterator[None]:
        """The files' objects are there inside the context, and gone after it."""
        try:
            for file in files:
                self.apply(file, **values)
            yield
        finally:
            for file in reversed(files):
                self.delete(file, **values)

    def program(self, host: str, module: str, *words: str) -> None:
        """Start a program of tests/apps/programs on the host."""
        self.lab.detach(host, "env", f"PYTHONPATH={APPS.parent}", PYTHON, "-m", f"apps.programs.{module}", *words)

    def behave(self, host: str, port: int, **how: Any) -> None:
        """Make an instance of `service` ill (`status`, `delay_s`, `first`), or well again (nothing)."""
        text = json.dumps(how) if how else ""
        self._local(host, port, "/behave", f"--data-binary {shlex.quote(text)} -X POST")

    def served(self, host: str, port: int) -> dict[str, int]:
        """How often an instance of `service` was called, by path and by authority with path."""
        found: dict[str, int] = json.loads(self._local(host, port, "/served"))
        return found

    def _local(self, host: str, port: int, path: str, options: str = "") -> str:
        return self.lab.exec(host, "sh", "-c", f"curl -sSf -m 5 {options} http://127.0.0.1:{port}{path}").stdout


@contextmanager
def lab_of(*joined: str, outside: str) -> Iterator[Lab]:
    """A lab with these hosts in the mesh and one outside of it."""
    root = Path(tempfile.mkdtemp(prefix="hm-app-"))
    lab = Lab(root / "lab")
    try:
        lab.verb("up", *joined, "--no-join", outside)
        yield lab
    finally:
        lab.verb("down", check=False)
        shutil.rmtree(root)


def app_on(lab: Lab, name: str) -> App:
    """The application with the addresses of all the lab's hosts."""
    return App(lab, name, {host: facts["ip"] for host, facts in lab.status()["hosts"].items()})


def wait_for_port(lab: Lab, host: str, *ports: int) -> None:
    """Return when programs of the host listen on all the ports."""

    def listening() -> bool:
        found = lab.exec(host, "ss", "-Hltn").stdout
        return all(f":{port} " in found for port in ports)

    eventually(listening, f"{host} listens on {ports}")
