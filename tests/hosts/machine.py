"""A real host: systemd as process 1 of a container, on the bridge of a lab, with a disk that outlives its boots.

All of it hangs on one process, which holds namespaces of its own: when that ends, or the tests do, the kernel ends the
host with every program, mount and interface of it. What is left then are two empty cgroups and a directory.

    setpriv (ends with the tests) ▶ unshare (mounts, processes) ▶ sh (overlay; nspawn again after a reboot)
        ▶ systemd-nspawn ▶ the host's process 1
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from e2e.driver import Lab
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.process import ProcessRecord
from hosts import roots

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CGROUPS: Final = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd"), Path("/sys/fs/cgroup"))
"""Where version 2 and systemd's own hierarchy may be; the last only where it is version 2 itself."""
_REBOOT: Final = 133
"""With which systemd-nspawn ends when the host wants to be booted again."""
_SHUTDOWN: Final = signal.SIGRTMIN + 4
"""Has systemd as process 1 power off (systemd(1))."""
_ASLEEP: Final = (
    *("systemd-resolved.service", "systemd-networkd-wait-online.service", "ssh.service", "systemd-timesyncd.service"),
    *("firewalld.service", "unattended-upgrades.service", "apt-daily.timer", "apt-daily-upgrade.timer"),
)
"""What a root has and no test finds running: one that needs it removes the link."""
_UP_WITHIN_S: Final = 60.0
_DOWN_WITHIN_S: Final = 120.0
_RUN_WITHIN_S: Final = 120.0
_HOLDER: Final = """
set -e
{enter}
mount -t overlay overlay -o lowerdir={lower},upperdir={disk}/upper,workdir={disk}/work {disk}/root
while :; do
    code=0
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 {nspawn} || code=$?
    [ "$code" = {reboot} ] || exit "$code"
done
"""
T = TypeVar("T")


class MachineError(AssertionError):
    """The host did not do as it was told; with what it said."""


@dataclass
class Machine:
    """One host. `index` is the last part of its addresses in the lab's networks; `binds`: source to path inside."""

    lab: Lab
    name: str
    suite: str
    index: int
    directory: Path
    binds: dict[Path, Path] = field(default_factory=dict)
    _holder: "subprocess.Popen[bytes] | None" = None
    used: ClassVar[set[str]] = set()
    """Suites of the hosts in which something was run since somebody emptied it: what a test was a test of."""

    @property
    def written(self) -> Path:
        """All that the host ever wrote to its disk."""
        return self.directory / "upper"

    @property
    def ip(self) -> str:
        return self._facts.net.address(self.index)

    @property
    def _facts(self) -> disk.LabFacts:
        found = disk.read_lab(disk.Layout(self.lab.root))
        assert found is not None
        return found

    @property
    def _world(self) -> int:
        found = disk.read_process(disk.Layout(self.lab.root).world)
        assert found is not None
        return found.pid

    # Its life

    def make(self) -> None:
        """Make the disk: the root's own files lie below and stay as they are."""
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True)
            (self.directory / part).chmod(0o755)
        net, gateway = self._facts.net, 1
        lines = [
            "[Match]\nName=host0\n\n[Network]",
            f"Address={net.address(self.index)}/24\nGateway={net.address(gateway)}",
            *([f"Address={net.address6(self.index)}/64"] if self._facts.ipv6 else []),
            "IPv6AcceptRA=no\nLinkLocalAddressing=ipv6\n",
        ]
        self.put("/etc/systemd/network/10-host0.network", "\n".join(lines))
        self.put("/etc/hostname", f"{self.name}\n")
        self.put("/etc/machine-id", f"{uuid.uuid4().hex}\n")
        self.put("/etc/resolv.conf", f"nameserver {net.address(gateway)}\n")
        # Nobody waits for these here: the network of a test is what its fixture made.
        self._link("/etc/systemd/system/multi-user.target.wants/systemd-networkd.service")
        for unit in _ASLEEP:
            self._link(f"/etc/systemd/system/{unit}", "/dev/null")

    def _link(self, path: str, target: str = "/lib/systemd/system/systemd-networkd.service") -> None:
        place = self.written / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def start(self) -> None:
        """Boot; it is up when this returns."""
        self.launch()
        self.wait_up()

    def launch(self) -> None:
        """Boot, and do not wait."""
        self.stop_holder()
        log = (self.directory / "console.log").open("ab")
        self._holder = subprocess.Popen(
            [
                *("nsenter", f"--net=/proc/{self._world}/ns/net", "setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"),
                *("sh", "-c", self._script()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def _script(self) -> str:
        nspawn = [
            *("systemd-nspawn", "--quiet", "-D", str(self.directory / "root"), "-M", self.name),
            *(f"--hostname={self.name}", "--boot", "--register=no", "--keep-unit", "--network-bridge=br0"),
            *("--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"),
            *(f"--bind-ro={source}:{inside}" for source, inside in self.binds.items()),
        ]
        enter = "\n".join(f"mkdir -p {each}; echo 0 > {each}/cgroup.procs" for each in self._cgroups())
        return _HOLDER.format(
            enter=enter,
            lower=roots.root(self.suite),
            disk=self.directory,
            nspawn=shlex.join(nspawn),
            reboot=_REBOOT,
        )

    def _cgroups(self) -> Iterator[Path]:
        for top in _CGROUPS:
            if (top / "cgroup.procs").exists():
                yield top / f"hostmesh-host-{self._facts.id}-{self.name}"

    def wait_up(self) -> None:
        """Return when systemd has started all that belongs to the boot."""
        told = self.eventually(self._state, "it is up", _UP_WITHIN_S)
        if told != "running":
            raise MachineError(f"{self.name} is {told}: {self.run('systemctl', '--failed', '--no-legend').stdout}")

    def _state(self) -> str:
        if self.init is None:
            return ""
        told = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return told if told in {"running", "degraded", "maintenance"} else ""

    def reboot(self, *, wait: bool = True) -> None:
        """Boot anew in order; up again when this returns."""
        before = self.init
        self.run("systemctl", "--no-block", "reboot")
        self.eventually(lambda: self.init not in {None, before}, "it boots again", _DOWN_WITHIN_S)
        if wait:
            self.wait_up()

    def cut_power(self) -> None:
        """End everything at once. Nobody says goodbye: the cable is pulled before the programs end."""
        pid = self._init_pid()
        self.world("ip", "link", "delete", f"vb-{self.name}")
        os.kill(pid, signal.SIGKILL)
        self._wait_for_holder(10)

    def stop(self) -> None:
        """Shut down in order; nothing happens when it is down already."""
        if self._holder is None or self._holder.poll() is not None or self.init is None:
            self.stop_holder()
            return
        os.kill(self._init_pid(), _SHUTDOWN)
        self._wait_for_holder(_DOWN_WITHIN_S)

    def _wait_for_holder(self, within_s: float) -> None:
        assert self._holder is not None
        self._holder.wait(timeout=within_s)
        self._holder = None

    def stop_holder(self) -> None:
        """End everything by force."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait(timeout=10)
            self._holder = None

    def remove(self) -> None:
        """Leave nothing of it, whatever state it is in."""
        self.stop_holder()
        for top in self._cgroups():
            self.eventually(partial(_removed, top), f"nobody is in {top}", 10)
        if self.directory.exists():
            shutil.rmtree(self.directory)

    # What is done in it

    @property
    def init(self) -> ProcessRecord | None:
        """The host's process 1 as it runs now, None when there is none."""
        with suppress(ProcessLookupError, MachineError):
            return ProcessRecord.of(self._init_pid())
        return None

    def _init_pid(self) -> int:
        """Among the holder's descendants, the one that is process 1 of a PID namespace below the holder's."""
        if self._holder is None:
            raise MachineError(f"{self.name} is down: {self._console()}")
        if self._holder.poll() is not None:
            raise MachineError(f"{self.name} has ended with {self._holder.returncode}: {self._console()}")
        for child in _children(self._holder.pid):
            for spawn in _children(child):
                for pid in _children(spawn):
                    numbers = _namespaced(pid)
                    if numbers[-1:] == [1] and len(numbers) == len(_namespaced(child)) + 1:
                        return pid
        raise MachineError(f"{self.name} has no process 1 yet: {self._console()}")

    def _console(self) -> str:
        return (self.directory / "console.log").read_text(errors="replace")[-3000:]

    def _words(self, command: Sequence[str]) -> list[str]:
        self.used.add(self.suite)
        # Into systemd's own group: what is in none of the host's would be seen outside of its hierarchy.
        enter = 'echo $$ > /sys/fs/cgroup/init.scope/cgroup.procs; exec "$@"'
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
        environment = ("env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8")
        return ["nsenter", "-t", str(self._init_pid()), *spaces, *environment, "sh", "-c", enter, "sh", *command]

    def run(
        self, *command: str, text_in: str = "", check: bool = True, timeout_s: float = _RUN_WITHIN_S
    ) -> subprocess.CompletedProcess[str]:
        """Run as root, to the end."""
        done = subprocess.run(
            self._words(command), input=text_in, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode != 0:
            text = f"{self.name}: {shlex.join(command)}: code {done.returncode}\n{done.stdout}{done.stderr}"
            raise MachineError(text)
        return done

    def popen(self, *command: str) -> "subprocess.Popen[str]":
        """Start with pipes for its input and output; it ends when it is killed."""
        return subprocess.Popen(
            self._words(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def world(self, *command: str) -> None:
        """Run in the network in which the bridge is."""
        subprocess.run(
            ["nsenter", f"--net=/proc/{self._world}/ns/net", *command], capture_output=True, timeout=30, check=True
        )

    def rules(self, *of: str) -> str:
        """Return the kernel's rules (all, or `table inet hostmesh`), as this machine's nft tells them.

        Debian 11's own ends with SIGSEGV at expressions that are younger than it is, and this kernel has them.
        """
        self.used.add(self.suite)
        where = f"--net=/proc/{self._init_pid()}/ns/net"
        words = ["nsenter", where, "nft", "-s", "list", *(of or ("ruleset",))]
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout

    def put(self, path: str, text: str) -> None:
        """Write a file, also while the host is down."""
        if self._holder is None:
            place = self.written / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        else:
            self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat > "$1"', "sh", path, text_in=text)

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Return what systemd tells of a unit: the named properties."""
        told = self.run("systemctl", "show", name, *(f"-p{each}" for each in properties)).stdout
        return dict(line.partition("=")[::2] for line in told.splitlines())

    def journal(self, unit: str, *options: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, *options).stdout

    def agent(self) -> dict[str, Any]:
        """What the agent says of itself."""
        found: dict[str, Any] = json.loads(self.run("hostmesh-agent", "status", "-o", "json", check=False).stdout)
        return found

    def eventually(self, condition: Callable[[], T | None], what: str, within_s: float) -> T:
        until = time.monotonic() + within_s
        while not (found := condition()):
            if time.monotonic() > until:
                raise MachineError(f"{self.name}: not within {within_s:g} s: {what}\n{self._console()}")
            time.sleep(0.05)
        return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _namespaced(pid: int) -> list[int]:
    """The process's numbers, in our PID namespace and in each one below."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(each) for each in line.split()[1:]]
    return []


def _removed(top: Path) -> bool:
    with suppress(OSError):
        for path, _, _ in os.walk(top, topdown=False):
            Path(path).rmdir()
    return not top.exists()
