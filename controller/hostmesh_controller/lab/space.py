"""Running commands in a running world or host."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.process import ProcessRecord, opened
from hostmesh_controller.lab.spawn import PATH, inside_command


@dataclass(frozen=True, slots=True)
class Space:
    """The namespaces that process 1 `init` holds; `name` as it is shown to people."""

    name: str
    init: ProcessRecord | None
    user_namespace: bool

    def _pidfd(self, pidfd: int | None) -> int:
        if pidfd is None:
            raise LabError(f"{self.name} is not running; start it: hostmesh lab start {self.name}")
        return pidfd

    def _words(self, pidfd: int, command: Sequence[str], user: str, cwd: str, *, detach: bool = False) -> list[str]:
        wish = {
            "into": pidfd,
            "user_namespace": self.user_namespace,
            "user": user,
            "cwd": cwd,
            "environment": environment(os.environ),
            "detach": detach,
        }
        return inside_command("enter", json.dumps(wish), *command)

    def run(
        self, command: Sequence[str], *, text_in: str = "", user: str = "root", timeout_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end and return its output; the exit code is the caller's to judge.

        Raises:
            LabError: the space is not running, or the command takes longer than `timeout_s`.
        """
        with opened(self.init) as found:
            pidfd = self._pidfd(found)
            try:
                return subprocess.run(
                    self._words(pidfd, command, user, "/"),
                    input=text_in,
                    capture_output=True,
                    text=True,
                    check=False,
                    pass_fds=(pidfd,),
                    timeout=timeout_s,
                )
            except subprocess.TimeoutExpired:
                raise LabError(f"{self.name}: {' '.join(command)}: no end within {timeout_s:.0f} s") from None

    def popen(
        self, command: Sequence[str], *, stdin: int, stdout: int | IO[Any], stderr: int | IO[Any], user: str = "root"
    ) -> subprocess.Popen[str]:
        """Start with the caller as parent: it ends when the caller ends."""
        with opened(self.init) as found:
            pidfd = self._pidfd(found)
            return subprocess.Popen(
                self._words(pidfd, command, user, "/"),
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                pass_fds=(pidfd,),
            )

    def start(self, command: Sequence[str], log: Path, *, user: str = "root", cwd: str = "/") -> ProcessRecord:
        """Leave the command running with its output appended to `log`; it ends with the space.

        Raises:
            LabError: the space is not running, or the command cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with opened(self.init) as found, log.open("ab") as output:
            pidfd = self._pidfd(found)
            done = subprocess.run(
                self._words(pidfd, command, user, cwd, detach=True),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                check=False,
                pass_fds=(pidfd, output.fileno()),
            )
        return self._started(done, command, log)

    def _started(self, done: subprocess.CompletedProcess[bytes], command: Sequence[str], log: Path) -> ProcessRecord:
        if done.returncode != 0:
            raise CommandNotStartedError(done.returncode, tail(log, 1) or f"{self.name}: {command[0]}: did not start")
        pid = int(done.stdout)
        try:
            return ProcessRecord.of(pid)
        except ProcessLookupError:
            # It was that quick; a record that proves nothing keeps every later signal away from others.
            return ProcessRecord(pid, 0, "ended")

    def replace_us(self, command: Sequence[str], *, user: str) -> NoReturn:
        """Become the command's waiting parent: terminal, pipes, signals and exit code are its own."""
        with opened(self.init) as found:
            pidfd = self._pidfd(found)
            os.set_inheritable(pidfd, True)
            words = self._words(pidfd, command, user, str(Path.cwd()))
            os.execv(words[0], words)  # noqa: S606 - no shell wanted


class CommandNotStartedError(LabError):
    """The command was not there or not allowed; `code` is what a shell would return."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a login on another host would bring along: the terminal and the language, nothing of this machine."""
    kept = {name: value for name, value in ours.items() if name in ("TERM", "LANG", "TZ") or name.startswith("LC_")}
    return {"PATH": PATH, **kept}


def tail(log: Path, lines: int) -> str:
    """The last lines of a log file, "" when there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
