"""A real controller in a folder of its own, and what it takes of the machine."""

import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import httpx
import psutil

_START_S: Final = 60.0
_STOP_S: Final = 20.0
_FILES: Final = 16_384
"""Open files that each side may need: one socket for each simulated proxy, and some."""

Document = Mapping[str, Any]


def allow_files() -> None:
    """Let this process, and those it starts, open enough files for all simulated proxies."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Controller:
    """`hostmesh-controller run`, and its admin API over the Unix socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.agents = ("127.0.0.1", free_port())
        self._process: subprocess.Popen[bytes] | None = None
        self._api = httpx.Client(
            base_url="http://controller",
            transport=httpx.HTTPTransport(uds=str(folder / "admin.sock")),
            timeout=120,
            trust_env=False,
        )
        (folder / "controller.toml").write_text(
            f"""state_dir = "{folder}/state"
addresses = ["127.0.0.1"]
[listen]
agents = "127.0.0.1:{self.agents[1]}"
join = "127.0.0.1:{free_port()}"
admin = "127.0.0.1:{free_port()}"
admin_socket = "{folder}/admin.sock"
[log]
level = "warning"
[limits]
# All hosts of a benchmark join from one address, faster than a fleet does.
joins_per_minute = 1000000
join_streams_per_connection = 64
"""
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        self.stop()

    @property
    def log(self) -> Path:
        """Where the controller's output goes."""
        return self._folder / "controller.log"

    def start(self) -> None:
        """Start, and return when it is ready.

        Raises:
            RuntimeError: it ended, or was not ready in time; holds the end of its log.
        """
        program = Path(sys.executable).parent / "hostmesh-controller"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "run", "--config", self._folder / "controller.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline_s = time.monotonic() + _START_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"the controller did not get ready:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)  # nothing tells when a socket appears

    def _ready(self) -> bool:
        # Asked first without httpx, which leaves a socket open when nobody listens.
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._folder / "admin.sock"))
            except OSError:
                return False
        return self._api.get("/readyz").is_success

    def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> None:
        """End the process and wait until it has ended."""
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_S)
        self._process = None

    def restart(self) -> None:
        """Kill -9 it and start it again: the same state, nothing in memory."""
        self.stop(signal.SIGKILL)
        self.start()

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Call the admin API.

        Raises:
            RuntimeError: it refused; holds its answer.
        """
        return self._answer(self._api.post(path, json=body))

    def get(self, path: str, **params: str | int | float) -> dict[str, Any]:
        """Ask the admin API; see `post`."""
        return self._answer(self._api.get(path, params=params))

    @staticmethod
    def _answer(response: httpx.Response) -> dict[str, Any]:
        if not response.is_success:
            raise RuntimeError(f"{response.request.url} answered {response.status_code}: {response.text[:2000]}")
        body: dict[str, Any] = response.json()
        return body

    def apply(self, documents: Iterable[Document]) -> int:
        """Create or change objects; return the revision."""
        return int(self.post("/v1/apply", {"documents": list(documents)})["revision"])

    def _usage(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def cpu_s(self) -> float:
        """Return the processor time it has used since it started, in seconds; the kernel counts in hundredths."""
        times = self._usage().cpu_times()
        return times.user + times.system

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return int(self._usage().memory_info().rss)

    def connected(self) -> int:
        """Return how many proxies it counts as connected, or -1 if some of them have not acknowledged all yet."""
        hosts = self.get("/v1/converged", revision=0)["hosts"]
        return len(hosts) if all(host["acked"] for host in hosts) else -1
