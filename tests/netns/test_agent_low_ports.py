"""Envoy binds a port below 1024 as its own user, and has no other power."""

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostmesh_agent import artifact, launch, process, workdir
from netns.space import Space

WAIT_S = 10.0


def bootstrap(port: int) -> dict[str, object]:
    echo = {
        "name": "echo",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo"},
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "low",
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                    "filter_chains": [{"filters": [echo]}],
                }
            ]
        }
    }


@contextmanager
def envoy(port: int) -> Iterator[int]:
    """Run Envoy as the agent runs it, from this thread's network namespace; yield its pid."""
    with tempfile.TemporaryDirectory(prefix="hostmesh-low-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        owner = workdir.account("nobody")
        installed = artifact.install(None, None, directory)
        (directory / "bootstrap.json").write_text(json.dumps(bootstrap(port)))
        spec = launch.Spec(
            argv=[str(installed.path), "-c", str(directory / "bootstrap.json"), "--disable-hot-restart"],
            cwd=name,
            binary=str(installed.path),
            uid=owner.uid,
            gid=owner.gid,
            max_files=1024,
            record=str(directory / process.RECORD),
            log="",
            umask=0o077,
            facts={},
            cgroup="",
            capabilities=[launch.NET_BIND_SERVICE],
        )
        with (directory / "log").open("wb") as log:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", launch.__file__, json.dumps(spec)],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, log.fileno(), 1), (os.POSIX_SPAWN_DUP2, log.fileno(), 2)],
            )
        try:
            yield pid
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), WAIT_S) as client:
            client.sendall(b"hello")
            return client.recv(5) == b"hello"
    except ConnectionRefusedError:
        return False


def test_a_low_port_is_bound_with_that_one_capability_and_no_other(host: Space) -> None:
    assert int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) == 1024
    with envoy(80) as pid:
        end = time.monotonic() + WAIT_S
        while not answers(80):
            assert time.monotonic() < end, "nobody listens on port 80"
            time.sleep(0.02)
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        assert set(status["Uid"]) == {str(workdir.account("nobody").uid)}
        assert status["CapEff"] == status["CapBnd"] == status["CapAmb"] == [f"{1 << 10:016x}"]
        assert status["NoNewPrivs"] == ["1"]
