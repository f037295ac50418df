"""The oracles: programs in the lab's hosts that look on while a fault is played, and what they tell at the end."""

import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from e2e.driver import PYTHON, eventually
from faults.scene import CLIENT, GRPC_PORT, HTTP_PORT, MESH, OUTSIDE, PROGRAMS, SERVER, STATE, TCP_PORT, Scene
from faults.seen import Call, Gauge, Login, Look, Seen, Wire
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.space import Space

_END_S: Final = 30.0
_NICE: Final = "-10"
_GAUGE_S: Final = 1.0


class Watch:
    """What is looked at meanwhile; `seen` is there when the context of `watching` is left."""

    seen: Seen


@contextmanager
def watching(scene: Scene) -> Iterator[Watch]:
    """Let the oracles look on as long as the context lasts, `around_s` longer on both sides."""
    watch = Watch()
    with ExitStack() as stack:
        wire = stack.enter_context(_wire(scene))
        rules = [(host, stack.enter_context(_Rules(scene, host))) for host in MESH]
        key = str(scene.folder / "login_key")
        probed = [f"{host}={scene.ip(host)}" for host in MESH]
        ssh = stack.enter_context(_program(scene.space(OUTSIDE), "ssh_probe.py", key, *probed))
        shop = f"shop:{HTTP_PORT}", f"shop:{GRPC_PORT}", f"shop:{TCP_PORT}"
        load = stack.enter_context(
            _program(scene.space(CLIENT), "load.py", f"http://{shop[0]}/", *shop[1:], scene.secret)
        )
        assert load.stdout is not None
        line = load.stdout.readline()
        assert line == "begun\n", f"the load does not begin: {line!r}"
        gauge = stack.enter_context(_Gauges(scene))
        time.sleep(scene.around_s)  # not a wait for something: this long is looked on
        yield watch
        time.sleep(scene.around_s)
        _show_plaintext(scene)
        calls = [Call(*record) for record in json.loads(_ended(load))]
        logins = [Login(*record) for record in json.loads(_ended(ssh))]
        looks = [look for _, each in rules for look in each.ended()]
        watch.seen = Seen(calls, logins, looks, Wire(**json.loads(_ended(wire))), gauge.ended())


@contextmanager
def _program(space: Space, name: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    # Before all others: an oracle that waits for a processor tells of the machine, not of the mesh.
    command = ["nice", "-n", _NICE, PYTHON, str(PROGRAMS / name), *arguments]
    program = space.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield program
    finally:
        if program.poll() is None:
            program.kill()
        program.communicate()


def _ended(program: subprocess.Popen[str]) -> str:
    output, errors = program.communicate("", timeout=_END_S)
    assert program.returncode == 0, f"an oracle ended with {program.returncode}: {errors[-2000:]}"
    return output


@contextmanager
def _wire(scene: Scene) -> Iterator[subprocess.Popen[str]]:
    with _program(scene.world(), "wire.py", "br0", scene.secret, scene.control) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        assert line == "listening\n", f"the oracle of the bridge does not listen: {line!r}"
        yield program


def _show_plaintext(scene: Scene) -> None:
    """Send a plaintext of our own over the bridge, from host to host, in a datagram that nobody waits for."""
    datagram = (
        "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(sys.argv[1].encode(), (sys.argv[2], 8399))"
    )
    for _ in range(3):
        scene.run(OUTSIDE, "python3", "-c", datagram, scene.control, scene.ip(SERVER))


class _Rules:
    """Looks at a host's rules; begins anew when the host does, which has no rules while it is down."""

    def __init__(self, scene: Scene, host: str) -> None:
        self._scene, self._host = scene, host
        self._looks: list[Look] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"rules of {host}")

    def __enter__(self) -> "_Rules":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def ended(self) -> list[Look]:
        self.__exit__()
        return self._looks

    def _follow(self) -> None:
        while not self._done.is_set():
            place = self._scene.layout.host(self._host).init
            try:
                with _program(self._scene.space(self._host), "rules.py") as program:
                    self._read(program)
            except Exception:
                if disk.read_process(place) is None:
                    return
            if not self._done.wait(0.1) and not self._looks:
                continue

    def _read(self, program: subprocess.Popen[str]) -> None:
        assert program.stdout is not None
        while not self._done.is_set():
            line = program.stdout.readline()
            if not line:
                # The program ends with its host, and a host that is down has no rules, and nothing to guard.
                return
            self._looks.append(Look(self._host, *json.loads(line)))


class _Gauges:
    """Reads certificates and endpoints once a second, from files and from Envoy: no agent needs to answer."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._left: dict[str, float] = {}
        self._endpoints: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="gauges")

    def __enter__(self) -> "_Gauges":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def ended(self) -> Gauge:
        self.__exit__()
        return Gauge(dict(self._left), tuple(self._endpoints))

    def _follow(self) -> None:
        while not self._done.wait(_GAUGE_S):
            for host in MESH:
                for left_s in certificates_left_s(self._scene, host):
                    self._left[host] = min(left_s, self._left.get(host, left_s))
            count = endpoints(self._scene, "pair")
            if count is not None:
                self._endpoints.append(count)


def certificates_left_s(scene: Scene, host: str) -> list[float]:
    """Seconds that Envoy's certificates on the host's disk are good for, by this machine's clock."""
    found = []
    for file in scene.upper(host, f"{STATE}/envoy/certs").glob("*/svid.pem"):
        try:
            certificate = x509.load_pem_x509_certificates(
                file.read_bytes()[file.read_bytes().index(b"-----BEGIN CERT") :]
            )[0]
        except (OSError, ValueError):
            continue
        found.append((certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds())
    return found


def endpoints(scene: Scene, service: str) -> int | None:
    """How many endpoints of the service the client's Envoy holds; None while no Envoy answers."""
    document = envoy_clusters(scene, CLIENT)
    if document is None:
        return None
    counts = [
        len(cluster.get("host_statuses", []))
        for cluster in document.get("cluster_statuses", [])
        if f"||{service}." in cluster["name"]
    ]
    return max(counts, default=0)


def envoy_clusters(scene: Scene, host: str) -> dict[str, Any] | None:
    init = disk.read_process(scene.layout.host(host).init)
    if init is None:
        return None
    for path in sorted(Path(f"/proc/{init.pid}/root{STATE}/envoy").glob("**/admin*.sock")):
        connection = HTTPConnection("envoy", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(5)
        try:
            connection.sock.connect(str(path))
            connection.request("GET", "/clusters?format=json")
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, HTTPException, ValueError):
            continue
        else:
            return found
        finally:
            connection.close()
    return None


def wait_for_endpoints(scene: Scene, service: str, count: int, timeout_s: float) -> None:
    eventually(lambda: endpoints(scene, service) == count, f"the client holds {count} endpoints", timeout_s)
