"""The lab as a script uses it: through `hostmesh lab` and `hostmesh`, nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

HOSTMESH: Final = str(Path(sys.executable).with_name("hostmesh"))
PYTHON: Final = sys.executable
"""In a host, for root: the Python with our dependencies; files are shared with the machine."""
PROGRAMS: Final = Path(__file__).parent / "programs"
_VERB_S: Final = 120
T = TypeVar("T")


@dataclass(frozen=True)
class Lab:
    """A lab in a directory of its own; every method is one command."""

    root: Path

    def verb(self, *words: str, text_in: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """`hostmesh lab WORDS`; everything behind a `--` belongs to the host."""
        at = words.index("--") if "--" in words else len(words)
        command = [HOSTMESH, "lab", *words[:at], "--dir", str(self.root), *words[at:]]
        return _run(command, text_in, check=check)

    def exec(
        self, host: str, *command: str, user: str = "root", text_in: str = "", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self.verb("exec", host, "--user", user, "--", *command, text_in=text_in, check=check)

    def detach(self, host: str, *command: str, user: str = "root") -> None:
        self.verb("exec", host, "--user", user, "--detach", "--", *command)

    def ip(self, host: str) -> str:
        return self.verb("ip", host).stdout.strip()

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.verb("status", "-o", "json").stdout)
        return found

    def agent(self, host: str) -> dict[str, Any]:
        """What the host's agent says of itself; its exit code tells whether all is well and is not judged here."""
        done = self.exec(host, "hostmesh-agent", "status", "-o", "json", check=False)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def put(self, host: str, path: str, text: str) -> None:
        """Write a file on the host's own disk (below /etc or /var/lib), with its directories, readable for all."""
        self.exec(host, "sh", "-c", 'mkdir -p "${1%/*}" && cat > "$1"', "sh", path, text_in=text)

    def popen(self, host: str, *command: str) -> subprocess.Popen[str]:
        """Start the command with pipes for its input and output; it ends when it is killed."""
        words = [HOSTMESH, "lab", "exec", host, "--dir", str(self.root), "--", *command]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def hostmesh(self, *words: str, text_in: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """`hostmesh WORDS` with what `hostmesh lab env` prints."""
        command = ["sh", "-c", f'{_exports(self)}\nexec "$@"', "sh", HOSTMESH, *words]
        return _run(command, text_in, check=check)

    def apply(self, text: str) -> None:
        self.hostmesh("apply", "-f", "-", text_in=text)

    def wait_for_workloads(self) -> None:
        """Return when every workload on every host is ready."""

        def ready() -> bool:
            found = json.loads(self.hostmesh("host", "list", "-o", "json").stdout)
            return all(set(host["workloads"]) == set(host["ready"]) for host in found)

        eventually(ready, "all workloads are ready", timeout_s=30)

    def curl(self, host: str, url: str, *options: str) -> "Answer":
        done = self.exec(
            host, "curl", "-sS", "-m", "10", "-w", "\n%{http_code}", *options, url, check=False, user="app"
        )
        body, _, status = done.stdout.rpartition("\n")
        return Answer(int(status or 0), body, done.stderr)


@contextmanager
def new_lab() -> Iterator[Lab]:
    """A lab that has not been started, in a directory of its own; both are gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="hm-e2e-"))
    lab = Lab(root / "lab")
    try:
        yield lab
    finally:
        lab.verb("down", check=False)
        shutil.rmtree(root)


@dataclass(frozen=True)
class Answer:
    """Status 0: there was none."""

    status: int
    body: str
    problem: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@cache
def _exports(lab: Lab) -> str:
    """What `hostmesh lab env` prints, asked once: it follows from the lab's directory."""
    return lab.verb("env").stdout


def _run(command: list[str], text_in: str, *, check: bool) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, input=text_in, capture_output=True, text=True, timeout=_VERB_S, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def eventually(condition: Callable[[], T], what: str, timeout_s: float = 15) -> T:
    """Return the condition's first true result; fail when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.1)


def interfaces() -> set[str]:
    return {entry.name for entry in Path("/sys/class/net").iterdir()}


def lab_processes(root: Path) -> list[str]:
    """Command lines of processes that name the lab's directory; this one's and its parents' are not among them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (os.getpid(), os.getppid()):
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(root) in words:
                found.append(words)
    return found
