"""A machine as far as names go: the calling thread's network, with an /etc, a /run, a bus and resolvers of its own.

Everything in it ends with its first process, and what it mounts nobody else sees.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).parents[2]
UNPACKED: Final = _ROOT / ".venv" / "systemd-resolved"
_SETTINGS: Final = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>
"""
_SET_UP: Final = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/upper /run/work /run/dbus /run/systemd/resolve /run/hostmesh
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/upper,workdir=/run/work /etc
grep -q ^systemd-resolve: /etc/passwd || echo 'systemd-resolve:x:990:990::/:/usr/sbin/nologin' >> /etc/passwd
grep -q ^systemd-resolve: /etc/group || echo 'systemd-resolve:x:990:' >> /etc/group
rm -f /etc/resolv.conf
echo 'hosts: files dns' > /etc/nsswitch.conf
chown systemd-resolve:systemd-resolve /run/systemd/resolve
echo ready
exec sleep infinity
"""
_ASK: Final = """
import json, socket, sys, time
def ask(name):
    began = time.monotonic()
    try:
        found = sorted({each[4][0] for each in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
    except socket.gaierror as error:
        found = {socket.EAI_NONAME: "no such name", socket.EAI_AGAIN: "try again"}.get(error.errno, str(error))
    return found if time.monotonic() - began < 2 else f"slowly: {found}"
print(json.dumps({name: ask(name) for name in sys.argv[1:]}))
"""
_AGENT: Final = """
import sys
from pathlib import Path
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_agent.resolution import Resolution
resolution = Resolution(Path("/etc/resolv.conf"), Path("/run/hostmesh"))
if sys.argv[1] == "put":
    state = resolution.put(MeshNames("cluster.local", "default", ("api.example.com",)))
    assert resolution.put(MeshNames("cluster.local", "default", ("api.example.com",))) == state
    print(state.in_place, state.detail)
else:
    resolution.restore()
"""


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, "not within 10 s"
        time.sleep(0.02)


@dataclass
class Machine:
    """`pid` is its first process; `resolved` the systemd-resolved that runs, if one does."""

    pid: int
    resolved: subprocess.Popen[bytes] | None = None

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--", *words]

    def run(self, *words: str) -> str:
        path = os.pathsep.join([str(UNPACKED / "usr" / "bin"), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C"}
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=30, check=False, env=environment
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def write(self, path: str, text: str) -> None:
        subprocess.run(self.command("tee", path), input=text.encode(), stdout=subprocess.DEVNULL, check=True)

    def find(self, *names: str) -> dict[str, object]:
        """Let glibc look names up; addresses, or how it says that there are none."""
        found = json.loads(self.run(sys.executable, "-c", _ASK, *names))
        assert isinstance(found, dict)
        return found

    def agent_puts(self) -> str:
        """Do what the agent does, twice: the second time nothing is to be done. Return what it says."""
        return self.run(sys.executable, "-c", _AGENT, "put").strip()

    def agent_restores(self) -> None:
        self.run(sys.executable, "-c", _AGENT, "restore")

    def snapshot(self) -> str:
        """Everything about names that may change: the file, systemd-resolved's settings, links and addresses."""
        shown = self.run(
            "sh", "-c", "stat -c '%N %a %u:%g' /etc/resolv.conf; cat /etc/resolv.conf; ip address; ip route"
        )
        kept = self.run(
            "sh", "-c", "test ! -d /run/systemd/resolve/netif || grep -r . /run/systemd/resolve/netif | sort"
        )
        # The kernel is still looking whether somebody else has the cable's own address.
        return (shown + kept).replace(" tentative", "")

    def start_resolved(self) -> None:
        if not self.run("sh", "-c", "ls /run/dbus").strip():
            self.write("/run/bus.conf", _SETTINGS)
            self.run("dbus-daemon", "--config-file=/run/bus.conf", "--fork")
        self.resolved = self.start(str(UNPACKED / "lib" / "systemd" / "systemd-resolved"))
        wait_until(lambda: "resolve1" in self.run("busctl", "--no-pager", "list", "--acquired"))

    def stop_resolved(self) -> None:
        assert self.resolved is not None
        self.run("sh", "-c", "kill $(pidof systemd-resolved)")
        self.resolved.wait(10)
        self.resolved = None


@contextmanager
def name_machine() -> Iterator[Machine]:
    """A machine in the thread's network namespace."""
    # It ends with us, however we end.
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "sh",
        "-c",
        _SET_UP,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
            machine = Machine(int(children[0]))
            yield machine
        finally:
            holder.kill()
            holder.wait(10)
    if machine.resolved is not None:
        machine.resolved.wait(10)


def why_no_resolved() -> str:
    """Unpack systemd-resolved; return why it cannot be had, "" if it can."""
    if missing := [each for each in ("dbus-daemon", "busctl") if not shutil.which(each)]:
        return f"needs {' and '.join(missing)}"
    if not shutil.which("apt-get"):
        return "needs Debian's package systemd-resolved"
    done = subprocess.run(
        [str(_ROOT / "packaging" / "unpack_resolved.sh"), str(UNPACKED)], capture_output=True, text=True, timeout=120
    )
    return "" if done.returncode == 0 else f"needs Debian's package systemd-resolved: {done.stderr.strip()}"
