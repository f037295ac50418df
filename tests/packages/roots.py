"""Small roots of Debian in which packages are installed: what a root has, made once a suite, below a disk of its own.

Nothing of them is ever handed on: they name the mirror. Each call runs in namespaces of its own, without a network:
what is installed must be complete, and no script of a package can reach this machine's rules.
"""

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hosts.roots import mirror

CACHE: Final = Path(__file__).parents[2] / ".cache" / "packages" / "roots"
SUITES: Final = ("bullseye", "bookworm", "trixie")
"""Debian 11, whose glibc is the oldest that is promised, 12 and 13."""
_PACKAGES: Final = ("systemd", "ca-certificates", "passwd", "python3-minimal", "man-db", "needrestart")
_OPTIONS: Final = ("--variant=apt", "--mode=root", "--quiet", "--aptopt=Acquire::Retries 3")
_WITHIN_S: Final = 900
_ENTER: Final = """
set -e
mount -t overlay overlay -o lowerdir={lower},upperdir={disk}/upper,workdir={disk}/work {disk}/root
mkdir -p {disk}/root/proc {disk}/root/packages
mount -t proc proc {disk}/root/proc
mount --bind {packages} {disk}/root/packages
{then}
"""
_LISTING: Final = """
import hashlib, json, os, stat, sys
top, found = sys.argv[1], {}
for where, directories, files in os.walk(top):
    directories[:] = [each for each in directories if os.path.join(where, each) not in
                      {f"{top}/{skipped}" for skipped in ("proc", "sys", "packages")}]
    for name in (*directories, *files):
        path = os.path.join(where, name)
        info = os.lstat(path)
        what = [oct(info.st_mode), info.st_uid, info.st_gid]
        if stat.S_ISREG(info.st_mode):
            what.append(hashlib.sha256(open(path, "rb").read()).hexdigest())
        elif stat.S_ISLNK(info.st_mode):
            what.append(os.readlink(path))
        found[path[len(top):]] = what
json.dump(found, sys.stdout)
"""


def root(suite: str) -> Path:
    """Return the root of a suite, made if it is not there yet (half a minute)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    of = hashlib.sha256(repr((suite, _PACKAGES, _OPTIONS)).encode()).hexdigest()[:12]
    made = CACHE / f"{suite}-{of}"
    with (CACHE / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.is_dir():
            draft = CACHE / f"{suite}.draft"
            for old in (draft, *CACHE.glob(f"{suite}-*")):
                shutil.rmtree(old, ignore_errors=True)
            command = ["mmdebstrap", *_OPTIONS, f"--include={','.join(_PACKAGES)}", suite, str(draft)]
            done = _run([*command, f"deb {mirror()} {suite} main"], _WITHIN_S)
            assert done.returncode == 0, done.stderr[-4000:]
            draft.rename(made)
    return made


@dataclass(frozen=True)
class Root:
    """A root with a disk of its own; `packages` is shown inside as /packages."""

    lower: Path
    disk: Path
    packages: Path

    @classmethod
    def make(cls, suite: str, disk: Path, packages: Path) -> "Root":
        for part in ("upper", "work", "root"):
            (disk / part).mkdir(parents=True)
        return cls(root(suite), disk, packages)

    def run(self, *command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run as root inside, to the end."""
        environment = ("env", "-i", f"PATH={_PATH}", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", "HOME=/root")
        done = self._within(shlex.join(["exec", "chroot", f"{self.disk}/root", *environment, *command]))
        assert not check or done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
        return done

    def outside(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a program of this machine beside the root, which lies at disk/root; it may fail."""
        return self._within(shlex.join(["exec", *command]))

    def install(self, *files: str) -> str:
        # Nobody needs these disks after a power cut.
        return self.run("dpkg", "--force-unsafe-io", "--install", *(f"/packages/{each}" for each in files)).stdout

    def listing(self) -> dict[str, list[object]]:
        """Return all that there is: mode, owner, and content of every path."""
        done = self._within(shlex.join([sys.executable, "-I", "-S", "-c", _LISTING, f"{self.disk}/root"]))
        assert done.returncode == 0, done.stderr
        found: dict[str, list[object]] = json.loads(done.stdout)
        return found

    def path(self, inside: str) -> Path:
        """Return where something lies that was written inside."""
        return self.disk / "upper" / inside.lstrip("/")

    def _within(self, then: str) -> "subprocess.CompletedProcess[str]":
        script = _ENTER.format(lower=self.lower, disk=self.disk, packages=self.packages, then=then)
        spaces = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--net", "--ipc", "--uts")
        return _run([*spaces, "sh", "-c", script], 300)


_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _run(command: list[str], within_s: float) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=within_s,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )


def changes(before: dict[str, list[object]], after: dict[str, list[object]]) -> dict[str, tuple[object, object]]:
    """Return what differs, by path."""
    return {
        path: (before.get(path), after.get(path))
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }
