"""How a dead-man timer is started and told: the agent's side of `deadman`. Blocks; to be called from a thread."""

import dataclasses
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hostmesh_agent import control
from hostmesh_agent.sound import DEADMAN_DIED, Fault

SOCKET: Final = "trial.sock"
ARMED: Final = "armed"
CONFIRM: Final = "confirm"
APPLIED: Final = "applied"
UNDO: Final = "undo"
STATE: Final = "state"

ARMED_WITHIN_S: Final = 10.0
"""It takes a third of a second, and two more where a controller does not answer."""
VERDICT_WITHIN_S: Final = 20.0
_PROGRAM: Final = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from hostmesh_agent import slim; slim.netlink_alone(); "
    "from hostmesh_agent.deadman import main; main(sys.argv[2])"
)
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Spec:
    """What the timer is for.

    Attributes:
        seconds: until a trial by hand is undone; 0: a change by the agent.
        owner: descriptor of the socket that owns the rules; -1: nobody's.
        held: the serialized `Capture` beyond which nothing is captured after an undo; None: nothing is captured then.
    """

    state_dir: str
    run_dir: str
    resolv_conf: str
    control_socket: str
    ssh_ports: tuple[int, ...]
    ssh_servers: tuple[int, ...]
    controllers: tuple[str, ...]
    envoy_uid: int
    seconds: int = 0
    owner: int = -1
    held: str | None = None


class ArmingError(Exception):
    """There is no dead-man timer, so nothing must be changed."""


def command(spec: dict[str, Any], *, scope: str) -> list[str]:
    """Return the command of a timer; with a `scope`, in a systemd scope of that name: outside the agent's unit.

    systemd-run becomes the command once the scope is there, with the descriptors that it was given.
    """
    python = [sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps([each for each in sys.path if each])]
    outside = ["systemd-run", "--scope", "--collect", "--quiet", f"--unit={scope}", "--"] if scope else []
    return [*outside, *python, json.dumps(spec)]


class Armed:
    """A timer that runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def applied(self) -> tuple[Fault, ...]:
        """Tell that the change is made; return what it broke (it is undone then), nothing if it did no harm."""
        with suppress(OSError):
            os.write(_fileno(self._process.stdin), b"applied\n")
        said = _line(self._process, VERDICT_WITHIN_S)
        self.close()
        if said is None:
            return (Fault(DEADMAN_DIED, "the dead-man timer was ended before it could tell"),)
        return tuple(Fault(alarm, why) for alarm, why in said["faults"])

    def close(self) -> None:
        """Let go of it: it goes on by itself, and is reaped when it ends."""
        for each in (self._process.stdin, self._process.stdout):
            if each is not None:
                each.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)

    def ended(self) -> bool:
        """Whether it has ended; reaps it."""
        return self._process.poll() is not None


def arm(spec: Spec, *, systemd: bool | None = None) -> Armed:
    """Start a timer; return once it knows what is in force.

    Raises:
        ArmingError: there is none.
    """
    fields = dataclasses.asdict(spec)
    # systemd makes no scope for whoever is not root; a unit's end leaves the timer (KillMode=process).
    with_scope = (os.geteuid() == 0 and Path("/run/systemd/system").exists()) if systemd is None else systemd
    scopes = [f"hostmesh-deadman-{os.getpid()}-{next(_numbers)}"] if with_scope and shutil.which("systemd-run") else []
    why = ""
    for scope in [*scopes, ""]:
        process = subprocess.Popen(
            command(fields, scope=scope),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath},
            pass_fds=[fields["owner"]] if fields["owner"] >= 0 else [],
            start_new_session=True,
        )
        if _line(process, ARMED_WITHIN_S) is not None:
            return Armed(process)
        process.kill()
        process.wait()
        Armed(process).close()
        why = f"it ended with code {process.returncode}"
    raise ArmingError(f"the dead-man timer could not be armed ({why}): nothing is changed")


def tell(run_dir: Path, verb: str, timeout_s: float = 10.0, why: str = "") -> dict[str, Any]:
    """Ask the timer of the trial that runs; `why` is for people, and goes with UNDO.

    Raises:
        ControlError: there is none, or it says no.
    """
    return control.call(run_dir / SOCKET, verb, timeout_s, why=why)


def _fileno(file: Any) -> int:
    return int(file.fileno())


def _line(process: subprocess.Popen[bytes], within_s: float) -> dict[str, Any] | None:
    """Return the next line that the timer says; None if it ends or says nothing in time."""
    until = time.monotonic() + within_s
    data = b""
    descriptor = _fileno(process.stdout)
    while not data.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, until - time.monotonic()))
        some = os.read(descriptor, 1 << 16) if ready else b""
        if not some:
            return None
        data += some
    found = json.loads(data)
    return found if isinstance(found, dict) else None
