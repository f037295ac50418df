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
from hostmesh_controller.lab.inside.channel import pair

_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)
_ALL: Final = kernel.NEWNS | kernel.NEWUTS | kernel.NEWIPC | kernel.NEWNET | kernel.NEWPID


def main() -> None:
    wish = json.loads(sys.argv[1])
    try:
        kernel.setns(wish["into"], _ALL | (kernel.NEWUSER if wish["user_namespace"] else 0))
    except OSError as error:
        sys.exit(f"hostmesh lab: cannot enter it: {error}")
    os.close(wish["into"])
    if wish["detach"]:
        sys.exit(_leave_running(wish))
    # The command may run, and be sent a signal, before this process is ready to hand it on: the signal waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        kernel.die_with_parent(signal.SIGKILL)
        os._exit(_become(wish))
    sys.exit(_wait(child))


def _leave_running(wish: dict[str, Any]) -> int:
    """Return 0 when the command has started, printing its pid as the caller counts, else its failure's code."""
    near, far = pair()
    between = os.fork()
    if between == 0:
        # The command is a grandchild: its parent ends inside the namespace, so that the namespace's own process 1
        # inherits and reaps it. A child of this process, which is outside, would be left to the machine's.
        os.setsid()
        if os.fork() == 0:
            far.send(step="started")
            # Standard output is the caller's pipe, for the pid; the log is on standard error.
            os.dup2(2, 1)
            code = _become(wish)
            far.send(code=code)
            os._exit(code)
        os._exit(0)
    far.close()
    os.waitpid(between, 0)
    started, failed = near.receive(), near.receive()
    if started is None or failed is not None:
        return int(failed[0]["code"]) if failed else 126
    print(started[1], flush=True)
    return 0


def _wait(child: int) -> int:
    def forward(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    # A terminal's interrupt reaches the whole foreground group, the command too: it decides what that means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
            continue
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _become(wish: dict[str, Any]) -> int:
    """Turn into the command; returns only when that fails, with the code a shell would give."""
    command = sys.argv[2:]
    _as_after_login(detached=wish["detach"])
    try:
        environment = _as_user(wish["user"]) | wish["environment"]
        if not wish["detach"]:
            # Again: changing the user made the kernel forget it.
            kernel.die_with_parent(signal.SIGKILL)
        _change_directory(wish["cwd"], environment["HOME"])
        os.environ["PATH"] = environment["PATH"]
        os.execvpe(command[0], command, environment)  # noqa: S606 - no shell wanted
    except KeyError:
        problem, code = f"no user {wish['user']!r} on this host (its /etc/passwd)", 126
    except FileNotFoundError:
        problem, code = f"{command[0]}: command not found on this host", 127
    except OSError as error:
        problem, code = f"{command[0]}: {error.strerror}", 126
    print(f"hostmesh lab: {problem}", file=sys.stderr, flush=True)
    return code


def _as_after_login(*, detached: bool) -> None:
    """Put right what the command would inherit from Python and from whatever called us."""
    os.umask(0o022)
    lost = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP) if detached else ()
    for number in (signal.SIGPIPE, signal.SIGXFSZ, *lost):
        signal.signal(number, signal.SIG_DFL)


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
