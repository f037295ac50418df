"""What the benchmarks of the hosts share: a lab with a caller and a callee."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Final, Self

CALLER: Final = "caller"
CALLEE: Final = "callee"
NAMESPACE: Final = "bench"
CAPTURED_PORT: Final = 8080
"""Where the callee's workload listens."""
PLAIN_PORT: Final = 8081
"""Where the same program listens outside the mesh: no rule touches it."""
SERVICES: Final = 20
"""Services of the same workload, each new to the caller's proxy until it is called."""
_WITHIN_S: Final = 180.0
_HOSTMESH: Final = str(Path(sys.executable).parent / "hostmesh")
_PROGRAM: Final = Path(__file__).with_name("server.py")


def service_url(index: int) -> str:
    return f"http://echo-{index}.{NAMESPACE}.svc.cluster.local:{CAPTURED_PORT}/"


class Hosts:
    """Made when it is first used; ended with the context."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hostmesh-bench-lab-")
        self._up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._up:
            self._lab("down")
        self._folder.cleanup()

    @cached_property
    def ready(self) -> "Hosts":
        """The lab, with its programs running and the mesh configured: the first call went through."""
        self._up = True
        self._lab("up", CALLER, CALLEE)
        for port in (CAPTURED_PORT, PLAIN_PORT):
            self._lab("exec", CALLEE, "--detach", "--", "python3", "-c", _PROGRAM.read_text(), str(port))
        documents = list(self._documents())
        self._run(["apply", "-f", "-"], "\n---\n".join(map(json.dumps, documents)))
        self.called()
        return self

    def _documents(self) -> list[dict[str, Any]]:
        def entry(name: str) -> dict[str, Any]:
            spec = {"address": self.ip(name), "labels": {"app": name}, "ports": {"http": CAPTURED_PORT}}
            spec |= {"serviceAccount": name}
            return _object("networking.istio.io/v1", "WorkloadEntry", name, spec)

        def service(index: int) -> dict[str, Any]:
            ports = [{"name": "http", "port": CAPTURED_PORT}]
            return _object("v1", "Service", f"echo-{index}", {"ports": ports, "selector": {"app": CALLEE}})

        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        return [namespace, entry(CALLER), entry(CALLEE), *map(service, range(SERVICES))]

    def applied(self, document: Mapping[str, Any]) -> None:
        self._run(["apply", "-f", "-"], json.dumps(document))

    def called(self) -> None:
        """Wait until the callee sees who calls: the path is captured, and it is mutual TLS."""
        wanted = f"/ns/{NAMESPACE}/sa/{CALLER}"
        deadline_s = time.monotonic() + _WITHIN_S
        while wanted not in (said := self.inside(CALLER, "curl", "-sS", "-m", "5", service_url(0), check=False)):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no call by mutual TLS within {_WITHIN_S} s; the last one said: {said}")
            time.sleep(0.2)  # the caller's view is what is waited for, and it can only be asked

    def ip(self, host: str) -> str:
        return self._lab("ip", host).strip()

    def inside(self, host: str, *command: str, check: bool = True) -> str:
        """Run a program inside a host; return its output."""
        return self._lab("exec", host, "--", *command, check=check)

    def log(self, component: str) -> str:
        return self._lab("logs", component)

    def shown(self, host: str) -> str:
        """Return what the controller says of a host."""
        return self._run(["host", "show", host, "-o", "json"], "")

    def probed(self, host: str, probe: str) -> None:
        """Let a host's workload be probed."""
        entry = next(each for each in self._documents() if each["metadata"]["name"] == host)
        entry["metadata"]["annotations"] = {"hostmesh.io/probes": probe}
        self.applied(entry)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something is so that can only be asked for."""
        deadline_s = time.monotonic() + _WITHIN_S
        while not holds():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"not within {_WITHIN_S} s: {what}")
            time.sleep(0.2)

    @contextmanager
    def beside(self, host: str, *command: str) -> Iterator[IO[str]]:
        """Run a program inside a host and read its output meanwhile."""
        words = [_HOSTMESH, "lab", "exec", host, "--dir", self._folder.name, "--", *command]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            try:
                yield running.stdout
            finally:
                running.kill()

    def pid(self, host: str, component: str) -> int:
        """Return the process of a host's `agent` or `envoy`."""
        status = json.loads(self._lab("status", "-o", "json"))
        return int(status["hosts"][host][component]["pid"])

    def _lab(self, verb: str, *arguments: str, check: bool = True) -> str:
        return self._hostmesh(["lab", verb, "--dir", self._folder.name, *arguments], None, {}, check=check)

    def _run(self, arguments: list[str], text: str) -> str:
        return self._hostmesh(arguments, text, self._environment, check=True)

    @cached_property
    def _environment(self) -> Mapping[str, str]:
        words = shlex.split(self._lab("env"))
        return dict(word.split("=", 1) for word in words if "=" in word)

    @staticmethod
    def _hostmesh(arguments: list[str], text: str | None, environment: Mapping[str, str], *, check: bool) -> str:
        command = [_HOSTMESH, *arguments]
        done = subprocess.run(
            command,
            input=text or "",
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=_WITHIN_S,
            check=False,
        )
        if check and done.returncode:
            shown = shlex.join(command)[:500]
            raise RuntimeError(f"{shown} exited with {done.returncode}:\n{done.stdout[-1000:]}{done.stderr[-2000:]}")
        return done.stdout + ("" if check else done.stderr)


def _object(api_version: str, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}
