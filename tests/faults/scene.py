"""The lab in which faults are played: a client, a server, its twin, and a host outside, STRICT everywhere.

`shop` is served by the server over HTTP, gRPC and TCP; `pair` by server and twin.
"""

import json
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from e2e.driver import PROGRAMS as SERVERS
from e2e.driver import PYTHON, Lab, eventually
from hostmesh_controller.lab import agent, world
from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.layout import LabFacts, Layout
from hostmesh_controller.lab.space import Space

CLIENT: Final = "client"
SERVER: Final = "server"
TWIN: Final = "twin"
OUTSIDE: Final = "outside"
MESH: Final = (CLIENT, SERVER, TWIN)
HTTP_PORT: Final = 8301
GRPC_PORT: Final = 8302
TCP_PORT: Final = 8303
PAIR_PORT: Final = 8304
PROGRAMS: Final = Path(__file__).parent / "programs"
STATE: Final = "/var/lib/hostmesh"
_SETTLED_S: Final = 60.0
_MENDED: Final = ("state.repaired:", "cache.spare-used:", "envoy.record-lost:")
"""Alarms of what has been: they stay up for the owner to look after, and nothing is amiss any more."""

CONFIG: Final = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: istio-system}}
spec: {{mtls: {{mode: STRICT}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: shop}}
spec:
  selector: {{app: shop}}
  ports: [{{name: http, port: 8301}}, {{name: grpc, port: 8302}}, {{name: tcp, port: 8303}}]
---
apiVersion: v1
kind: Service
metadata: {{name: pair}}
spec:
  selector: {{tier: pair}}
  ports: [{{name: http, port: 8304}}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: server}}
spec: {{address: {server}, serviceAccount: shop, labels: {{app: shop, tier: pair}}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: twin}}
spec: {{address: {twin}, serviceAccount: pair, labels: {{tier: pair}}}}
"""
_SSHD_CONFIG: Final = """\
HostKey {0}/host_key
AuthorizedKeysFile {0}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 200:30:400
"""


@dataclass(frozen=True)
class Scene:
    """`random` is seeded: where a fault chooses, the same seed chooses the same."""

    lab: Lab
    folder: Path
    random: Random
    around_s: float
    """How long the oracles look on before and after a fault."""
    secret: str = field(default_factory=lambda: f"hm-secret-{secrets.token_hex(12)}")
    control: str = field(default_factory=lambda: f"hm-control-{secrets.token_hex(12)}")

    @property
    def layout(self) -> Layout:
        return Layout(self.lab.root)

    @property
    def facts(self) -> LabFacts:
        found = disk.read_lab(self.layout)
        assert found is not None
        return found

    def space(self, host: str) -> Space:
        return hosts.space_of(self.layout, self.facts, host)

    def world(self) -> Space:
        return world.space_of(self.layout, self.facts)

    def ip(self, host: str) -> str:
        return self.facts.net.address(disk.read_hosts(self.layout)[host].index)

    def run(self, host: str, *command: str, text_in: str = "", timeout_s: float = 60) -> str:
        """Run in the host as root, to its end; return what it printed."""
        done = self.space(host).run(command, text_in=text_in, timeout_s=timeout_s)
        assert done.returncode == 0, f"{host}: {' '.join(command)}: {done.stderr.strip()}{done.stdout.strip()}"
        return done.stdout

    def in_world(self, *command: str, text_in: str = "") -> str:
        done = self.world().run(command, text_in=text_in)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
        return done.stdout

    def upper(self, host: str, path: str) -> Path:
        """The file below /var/lib of the host's own disk, whether it runs or not."""
        return self.layout.host(host).disk("var-lib") / "upper" / path.removeprefix("/var/lib/")

    def agent(self, host: str) -> dict[str, Any]:
        """What the agent says of itself; empty while it does not answer."""
        return agent.status(self.layout, host) or {}

    def agent_pid(self, host: str) -> int:
        return agent.processes(self.layout, host)[0].pid

    def log(self, host: str) -> str:
        return self.layout.host(host).agent_log.read_text(errors="replace")

    def kill(self, part: str) -> None:
        self.lab.verb("kill", part)

    def start(self, part: str) -> None:
        self.lab.verb("start", part)

    def stop(self, part: str) -> None:
        self.lab.verb("stop", part)

    def boot(self, host: str) -> None:
        """Start a host that is down, with all that its boot starts."""
        self.start(f"host/{host}")
        start_programs(self, host)

    def healthy(self, host: str, but: str = "") -> bool:
        """Whether an agent is connected and well; `but` is an alarm that may be up."""
        return not self.ills(host, but)

    def ills(self, host: str, but: str = "") -> list[str]:
        """What is wrong with the host now: what is told of a damage that was mended is not."""
        said = self.agent(host)
        problems: list[str] = said.get("problems", ["it does not answer"])
        left = [each for each in problems if not each.startswith(_MENDED) and (not but or not each.startswith(but))]
        return left if left or said.get("controller", {}).get("connected") else ["it is not connected"]

    def wait_until_well(self, timeout_s: float = _SETTLED_S, but: str = "") -> None:
        """Return when every agent is connected and well; see `healthy`."""

        def all_well() -> bool:
            return all(self.healthy(host, but) for host in MESH)

        def told() -> str:
            ill = {host: ills for host in MESH if (ills := self.ills(host, but))}
            return f"all are well: {ill}"

        try:
            eventually(all_well, "", timeout_s)
        except AssertionError:
            raise AssertionError(f"not within {timeout_s:g} s: {told()}") from None

    def settle(self, timeout_s: float = _SETTLED_S) -> None:
        """Return when every agent is connected and well, and the client's calls succeed."""
        self.wait_until_well(timeout_s)
        self.wait_for_calls(timeout_s)

    def wait_for_calls(self, timeout_s: float = _SETTLED_S) -> None:
        eventually(lambda: self.calls("shop", HTTP_PORT), "the client calls shop", timeout_s)
        eventually(lambda: self.calls("pair", PAIR_PORT), "the client calls pair", timeout_s)

    def calls(self, service: str, port: int, host: str = CLIENT) -> bool:
        """Whether a call of the service succeeds, at once."""
        command = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", f"http://{service}:{port}/"]
        return self.space(host).run(command, user="app").stdout == "200"


def start_programs(scene: Scene, host: str) -> None:
    """Start what a host's boot would start beside the agent: its sshd and its services."""
    _start_sshd(scene, host)
    for port, command in _services(host):
        if not _listens(scene, host, port):
            scene.lab.detach(host, *command)
            eventually(partial(_listens, scene, host, port), f"{host} serves {port}")


def _services(host: str) -> list[tuple[int, list[str]]]:
    pair = (PAIR_PORT, ["python3", str(SERVERS / "http_echo.py"), str(PAIR_PORT), host])
    if host == TWIN:
        return [pair]
    if host != SERVER:
        return []
    return [
        (HTTP_PORT, ["python3", str(SERVERS / "http_echo.py"), str(HTTP_PORT), host]),
        (GRPC_PORT, [PYTHON, str(SERVERS / "grpc_echo.py"), "serve", str(GRPC_PORT)]),
        (TCP_PORT, ["python3", str(SERVERS / "tcp.py"), "serve", str(TCP_PORT)]),
        pair,
    ]


def _listens(scene: Scene, host: str, port: int) -> bool:
    return bool(scene.run(host, "ss", "-Hltn", f"sport = :{port}").strip())


def _start_sshd(scene: Scene, host: str) -> None:
    place = "/var/lib/sshd"
    # /run of a lab host is its own and empty; sshd needs its directory of separation there.
    scene.run(host, "mkdir", "-p", place, "/run/sshd")
    for name in ("host_key", "authorized_keys"):
        scene.run(host, "sh", "-c", f"umask 077; cat > {place}/{name}", text_in=(scene.folder / name).read_text())
    scene.run(host, "sh", "-c", f"cat > {place}/config", text_in=_SSHD_CONFIG.format(place))
    scene.lab.detach(host, "/usr/sbin/sshd", "-D", "-e", "-f", f"{place}/config")
    eventually(lambda: _listens(scene, host, 22), f"{host} serves SSH")


def _keys(folder: Path) -> None:
    for name in ("host_key", "login_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, capture_output=True)
    (folder / "authorized_keys").write_text((folder / "login_key.pub").read_text())


@contextmanager
def new_scene(seed: int, around_s: float) -> Iterator[Scene]:
    """Raise the curtain; everything is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hm-faults-") as name:
        folder = Path(name)
        scene = Scene(Lab(folder / "lab"), folder, Random(seed), around_s)
        _keys(folder)
        try:
            scene.lab.verb("up", *MESH, "--no-join", OUTSIDE)
            set_up(scene)
            yield scene
        finally:
            scene.lab.verb("down", check=False)


def set_up(scene: Scene) -> None:
    for host in (*MESH, OUTSIDE):
        start_programs(scene, host)
    scene.lab.apply(CONFIG.format(server=scene.ip(SERVER), twin=scene.ip(TWIN)))
    scene.lab.wait_for_workloads()
    scene.settle()


def signalled(scene: Scene, host: str, number: signal.Signals) -> Callable[[], None]:
    """Send the agent a signal; return what sends it SIGCONT."""
    import os

    pid = scene.agent_pid(host)
    os.kill(pid, number)
    return lambda: os.kill(pid, signal.SIGCONT)


def parsed(text: str) -> Any:
    return json.loads(text)
