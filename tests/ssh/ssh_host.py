"""A host for registration over SSH: sshd, sudo, apt and dpkg as they are, over a disk of its own that goes with it.

Its files are this machine's below an overlay; its processes have a namespace of their own, so ending the first ends
all. What it has no room for is systemd (`systemctl` notes what it is told) and an agent that runs: the package is a
small one whose `hostmesh-agent join` is the real one, and whose other verbs say what a host's would.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hostmesh_controller.cli.ssh.host_keys import fingerprint_of

TREE: Final = Path(__file__).parents[2]
PASSWORD: Final = "correct-horse-battery-7f3a"
_MOUNTS: Final = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size={size} tmpfs {disk}
for each in etc usr var; do
    mkdir -p {disk}/$each/upper {disk}/$each/work
    mount -t overlay overlay -o lowerdir=/$each,upperdir={disk}/$each/upper,workdir={disk}/$each/work /$each
done
# A copy: what this machine's own apt does meanwhile is not for the host to see.
mkdir {disk}/dpkg
cp -a /var/lib/dpkg/. {disk}/dpkg
rm -f {disk}/dpkg/updates/*
mount --bind {disk}/dpkg /var/lib/dpkg
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/systemd/system /run/lock
mount -t tmpfs tmpfs /home
sed -i 's|^\\(root:.*\\):/root:|\\1:/home/root:|' /etc/passwd
cp {stubs}/systemctl /usr/local/bin/systemctl
for each in root admin guest; do
    home=/home/$each
    [ $each = root ] || useradd --home-dir $home --shell /bin/sh $each
    mkdir -p $home/.ssh
    cp {key}.pub $home/.ssh/authorized_keys
    chown -R $each $home
    chmod 700 $home $home/.ssh
done
printf 'admin:{password}\\nguest:{password}\\n' | chpasswd
printf 'admin ALL=(ALL) ALL\\nguest ALL=(ALL) NOPASSWD: ALL\\nDefaults lecture=never\\n' >/etc/sudoers.d/hosts
chmod 440 /etc/sudoers.d/hosts
exec /usr/sbin/sshd -D -e -f {config}
"""
_SYSTEMCTL: Final = """#!/bin/sh
for each in "$@"; do
    case $each in
        is-active) [ -e /run/unit-active ]; exit ;;
        start) : >/run/unit-active; exit ;;
        stop) rm -f /run/unit-active; exit ;;
    esac
done
"""
_AGENT: Final = """#!/bin/sh
case $1 in
    join)
        ps -eo args >/run/seen-at-join
        exec {python} -I /usr/bin/hostmesh-agent-real "$@" ;;
    wait) [ -e /run/unit-active ] && [ -e /var/lib/hostmesh/host.json ] ;;
    leave) rm -rf /var/lib/hostmesh /run/hostmesh ;;
    *) exit 2 ;;
esac
"""


def package(folder: Path, name: str = "hostmesh-agent", before: str = "", leaving: str = "", config: str = "") -> Path:
    """Build a package; `before` is a script that runs before it is unpacked, `leaving` one before it is removed.

    `config` is the text of its agent.toml, which is its owner's from then on.
    """
    root = folder / f"{name}.root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "usr/bin").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 0.1.0\nArchitecture: all\nMaintainer: tests <tests@invalid>\nDescription: a test\n"
    )
    for script, text in (("preinst", before), ("prerm", leaving)):
        if text:
            (root / "DEBIAN" / script).write_text(f"#!/bin/sh\n{text}\n")
            (root / "DEBIAN" / script).chmod(0o755)
    if config:
        (root / "etc/hostmesh").mkdir(parents=True)
        (root / "etc/hostmesh/agent.toml").write_text(config)
        (root / "DEBIAN/conffiles").write_text("/etc/hostmesh/agent.toml\n")
    if name == "hostmesh-agent":
        folders = [str(TREE / "agent"), str(TREE / "controller"), *filter(None, sys.path)]
        real = f"import sys\nsys.path[:0] = {folders!r}\nfrom hostmesh_agent.cli import main\nmain()\n"
        (root / "usr/bin/hostmesh-agent-real").write_text(real)
        text = _AGENT.format(python=sys.executable)
        (root / "usr/bin/hostmesh-agent").write_text(text)
        (root / "usr/bin/hostmesh-agent").chmod(0o755)
    made = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", root, made], check=True, capture_output=True)
    return made


def key_pair(path: Path, kind: str = "ed25519") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)
    return path


@dataclass
class SshHost:
    directory: Path
    key: Path
    size: str = "900m"
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.log = self.directory / "sshd.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def start(self) -> None:
        here = self.directory
        for kind in ("ed25519", "rsa"):
            if not (here / f"host_{kind}").exists():
                key_pair(here / f"host_{kind}", kind)
        (here / "disk").mkdir(exist_ok=True)
        (here / "systemctl").write_text(_SYSTEMCTL)
        (here / "systemctl").chmod(0o755)
        (here / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {here}/host_ed25519\nHostKey {here}/host_rsa\n"
            "PermitRootLogin yes\nUsePAM no\nPasswordAuthentication yes\nStrictModes no\nLogLevel VERBOSE\n"
            "PidFile none\nSubsystem sftp internal-sftp\nMaxStartups 100:30:200\n"
        )
        script = _MOUNTS.format(
            size=self.size,
            disk=here / "disk",
            stubs=here,
            key=self.key,
            password=PASSWORD,
            config=here / "sshd_config",
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + 20
        while "Server listening" not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    @property
    def fingerprint(self) -> str:
        return self.fingerprint_of("ed25519")

    def fingerprint_of(self, kind: str) -> str:
        import base64

        return fingerprint_of(base64.b64decode((self.directory / f"host_{kind}.pub").read_text().split()[1]))

    def _first(self) -> int:
        """sshd, which is process 1 in there."""
        assert self.process is not None
        return int(Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0])

    def run(self, command: str) -> str:
        enter = ["nsenter", "-t", str(self._first()), "--mount", "--pid", "sh", "-c", command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=30).stdout

    def cut(self) -> None:
        """End every connection, as if the network went away; the host itself goes on."""
        listener = self._first()
        for pid in map(int, Path(f"/proc/{listener}/task/{listener}/children").read_text().split()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def state(self) -> str:
        """What a registration may change of it."""
        look = (
            "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' 'hostmesh*' 2>/dev/null; "
            "find /var/lib/hostmesh /run/unit-active /usr/bin/hostmesh-agent /etc/apt/sources.list.d "
            "/etc/hostmesh-repository.asc /var/tmp -name '*' -printf '%p %s %T@\\n' 2>/dev/null | sort"
        )
        return self.run(look)

    def holds(self, secret: str) -> str:
        """Files of its own in which a text is found."""
        return self.run(f"grep -rl -- {shlex.quote(secret)} {self.directory}/disk/*/upper /run /home 2>/dev/null")
