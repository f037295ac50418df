"""Run a command in the world or in a host, as the named user; exit with its code.

Its arguments are one JSON object (into (a pidfd), user_namespace, user, cwd, environment, detach), then the command.
Exit codes of its own are the shell's: 126 cannot be run, 127 not found, 128+n ended by signal n.
"""

import json
import os
import pwd
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Final

from hostmesh_controller.lab.inside import kernel

_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)
_ALL: Final = kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC | kernel.NEWNET | kernel.NEWPID


def main() -> None:
    wish = json.loads(sys.argv[1])
    try:
        kernel.setns(wish["into"], _ALL | (kernel.NEWUSER if wish["user_namespace"] else 0))
    except OSError as error:
        sys.exit(f"hostmesh lab: cannot enter it: {error}")
    os.close(wish["into"])
    failure, told = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(failure)
        _become(wish, told)
    os.close(told)
    if wish["detach"]:
        _leave_running(child, failure)
    sys.exit(_wait(child))


def _leave_running(child: int, failure: int) -> None:
    """Return when the command has started, printing its pid as the caller counts; its failure to start is ours."""
    with os.fdopen(failure, "rb") as pipe:
        if pipe.read():
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(child, flush=True)
    os._exit(0)


def _wait(child: int) -> int:
    def forward(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    # A terminal's interrupt reaches the whole foreground group, the command too: it decides what that means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
            continue
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _become(wish: dict[str, Any], told: int) -> None:
    command = sys.argv[2:]
    try:
        if wish["detach"]:
            # Standard output is the caller's pipe, for the pid; the log is on standard error.
            os.dup2(2, 1)
            os.setsid()
        environment = _as_user(wish["user"]) | wish["environment"]
        if not wish["detach"]:
            kernel.die_with_parent(signal.SIGKILL)
        _change_directory(wish["cwd"], environment["HOME"])
        os.environ["PATH"] = environment["PATH"]
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell wanted
    except KeyError:
        print(f"hostmesh lab: no user {wish['user']!r} on this host (its /etc/passwd)", file=sys.stderr, flush=True)
    except FileNotFoundError:
        print(f"hostmesh lab: {command[0]}: command not found on this host", file=sys.stderr, flush=True)
        os.write(told, b"f")
        os._exit(127)
    except OSError as error:
        print(f"hostmesh lab: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os.write(told, b"f")
    os._exit(126)


def _as_user(name: str) -> dict[str, str]:
    """Take on the user's ids and return the environment of a fresh login; KeyError where there is no such user."""
    entry = pwd.getpwnam(name)
    os.initgroups(name, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    return {"HOME": entry.pw_dir, "USER": name, "LOGNAME": name, "SHELL": entry.pw_shell or "/bin/sh"}


def _change_directory(wanted: str, home: str) -> None:
    """Stay where the caller is when that exists here for this user: files are shared with the machine."""
    for place in (wanted, home):
        if place and Path(place).is_dir() and os.access(place, os.X_OK):
            os.chdir(place)
            return
    os.chdir("/")
