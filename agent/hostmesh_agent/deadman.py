"""The dead-man timer: a process outside the agent that undoes a change of the rules unless it is known to do no harm.

It looks at what is in force and at what answers, says "armed", and lives on whatever becomes of the agent, of the
shell and of the session that started it: in a session and, where it can, a cgroup of its own. It can change the rules
while the agent hangs, because it holds the socket that owns them (`capture.owner`); without that it takes a table
whose owner is gone, asks a living agent, and ends one that does not answer: the rules outlive an agent.

Two ways to end. For a change by the agent itself it looks again as soon as the change is made (or the agent is gone)
and undoes what did harm. For a trial by hand it waits for a confirmation, and undoes without one.

Run as `main(SPEC)`: one process for one change, nothing of it stays.
"""

import base64
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from hostmesh_agent import cgroup, control, hold, holders, lock, soundness
from hostmesh_agent.arming import APPLIED, ARMED, CONFIRM, SOCKET, UNDO, Spec
from hostmesh_agent.capture import CaptureError, Table, kernel, routes
from hostmesh_agent.capture import floor as kernel_floor
from hostmesh_agent.capture.owner import Lent
from hostmesh_agent.dns import ResolverError
from hostmesh_agent.resolution import Resolution
from hostmesh_agent.sound import DEADMAN_DIED, TRIAL_EXPIRED, TRIAL_UNDONE, Fault, Sound, doubts, harm

APPLIED_WITHIN_S: Final = 15.0
"""After which a change by the agent is looked at, told or not."""
_LOOKS: Final = 3
_BETWEEN_LOOKS_S: Final = 0.5
_AGENT_WITHIN_S: Final = 3.0
_POLL_S: Final = 0.05
_REQUEST_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Before:
    """What was in force when the timer was armed."""

    table: Table | None
    additions: routes.Additions
    names: bool
    sound: Sound


class Timer:
    """One change under watch."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        # Looked for again: what the agent knows may be older than a server.
        self._ssh_servers = frozenset(spec.ssh_servers) | kernel_floor.ssh_servers()
        self._where = soundness.Where(
            frozenset(spec.ssh_ports) | self._ssh_servers,
            spec.controllers,
            Path(spec.state_dir, "identity"),
            spec.envoy_uid,
        )
        self._lent = Lent(spec.owner) if spec.owner >= 0 else None
        self._resolution = Resolution(Path(spec.resolv_conf), Path(spec.state_dir))
        table = kernel.read()
        self._before = Before(table, routes.read(), self._resolution.in_place(), soundness.look(self._where, table))

    # A change by the agent itself

    def watch_agent(self) -> None:
        """Wait until the change is made, look, and undo it if it did harm. Whoever is told may be gone."""
        _say({"state": ARMED})
        select.select([sys.stdin], [], [], APPLIED_WITHIN_S)
        faults: tuple[Fault, ...] = ()
        for look in range(_LOOKS):
            if look:
                time.sleep(_BETWEEN_LOOKS_S)
            try:
                faults = harm(self._before.sound, soundness.look(self._where, kernel.read(), self._before.sound.ssh))
            except Exception as error:
                # Nobody knows what it did: the agent may be dead, and nobody else looks.
                faults = (Fault(DEADMAN_DIED, f"the dead-man timer cannot look: {error}"),)
            if not faults:
                break
        if faults:
            self._undo(faults[0])
        _say({"faults": [[each.alarm, each.why] for each in faults]})

    # A trial by hand

    def watch_person(self) -> None:
        """Undo when the time is over, unless the host was found to be fine when somebody asked for that."""
        run_dir = Path(self._spec.run_dir)
        until = time.monotonic() + self._spec.seconds
        listener = control.listen(run_dir / SOCKET)
        try:
            listener.listen(8)
            hold.note_trial(run_dir, os.getpid(), int(time.time()) + self._spec.seconds)
            _say({"state": ARMED})
            try:
                fault = self._answer(listener, until)
            except Exception as error:
                fault = Fault(DEADMAN_DIED, f"the dead-man timer failed before anybody confirmed the trial: {error!r}")
            if fault is not None:
                self._undo(fault)
        finally:
            hold.end_trial(run_dir)
            (run_dir / SOCKET).unlink(missing_ok=True)
            listener.close()
        self._nudge()

    def _answer(self, listener: socket.socket, until: float) -> Fault | None:
        """Answer until the trial is confirmed or not to go on; return why it is undone, None if it was confirmed."""
        applied = False
        watched: list[Any] = [listener, sys.stdin]
        while (left := until - time.monotonic()) > 0:
            if _told_to_end:
                return Fault(DEADMAN_DIED, "the dead-man timer was ended before anybody confirmed the trial")
            ready, _, _ = select.select(watched, [], [], min(left, 1.0))
            if sys.stdin in ready:
                # The agent is gone: the next one must be able to take the rules over.
                watched.remove(sys.stdin)
                if self._lent is not None:
                    self._lent.close()
                    self._lent = None
            if listener not in ready:
                continue
            with suppress(OSError), listener.accept()[0] as connection:
                request = _request(connection)
                applied = applied or request.get("verb") == APPLIED
                reply = self._replied(str(request.get("verb")), applied, max(0, round(until - time.monotonic())))
                # Who asked may be gone: what was decided holds all the same.
                with suppress(OSError):
                    connection.sendall(json.dumps(reply).encode() + b"\n")
                if reply.get("confirmed"):
                    return None
                if request.get("verb") == UNDO:
                    return Fault(TRIAL_UNDONE, str(request.get("why") or "somebody ended the trial"))
        return Fault(TRIAL_EXPIRED, f"nobody confirmed the trial within {self._spec.seconds} s")

    def _replied(self, verb: str, applied: bool, left_s: int) -> dict[str, Any]:
        """Answer one request; one that fails ends no trial."""
        try:
            return self._reply(verb, applied, left_s)
        except Exception as error:
            return {"error": f"{error or repr(error)}: ask again (the trial is undone in {left_s} s)"}

    def _reply(self, verb: str, applied: bool, left_s: int) -> dict[str, Any]:
        if verb != CONFIRM:
            return {"applied": applied, "seconds_left": left_s}
        if not applied:
            return {"error": "the trial's rules are not in force yet"}
        table = kernel.read()
        after = soundness.look(self._where, table)
        faults = doubts(self._before.sound, after, self._ssh_servers)
        if not faults:
            # In this order a kill at any moment leaves a trial that is undone, or one that is confirmed.
            with suppress(control.ControlError):
                control.call(Path(self._spec.control_socket), control.RESUME, 1.0)
            hold.release(Path(self._spec.state_dir))
            hold.end_trial(Path(self._spec.run_dir))
        return {
            "confirmed": not faults,
            "faults": [[each.alarm, each.why] for each in faults],
            "proven": [f"SSH answers at {address} port {port}" for address, port in sorted(after.ssh)]
            + (["a controller takes a new TLS connection"] if after.controller else []),
            "not_proven": _not_proven(after),
            "seconds_left": left_s,
        }

    # The undoing

    def _undo(self, fault: Fault) -> None:
        """Put back what was. The mark first: the agent must not apply the change again."""
        with suppress(OSError):
            self._mark(fault)
        # From here on the mark counts, or an agent that looks meanwhile would put the trial's rules back.
        if (tried := hold.trial(Path(self._spec.run_dir))) is not None:
            with suppress(OSError):
                hold.note_trial(Path(self._spec.run_dir), os.getpid(), tried.until, over=True)
        if not self._before.names:
            with suppress(ResolverError, OSError):
                self._resolution.restore()
        # Others may keep nftables busy: what could not be done is tried again.
        for act in (self._restore, self._by_the_agent, self._restore, self._without_the_agent, self._restore):
            with suppress(CaptureError, OSError):
                act()
            if self._is_undone():
                break
        self._nudge()

    def _is_undone(self) -> bool:
        try:
            return kernel.read() == self._before.table
        except CaptureError:
            return False

    def _mark(self, fault: Fault) -> None:
        state_dir = Path(self._spec.state_dir)
        if fault.alarm == TRIAL_UNDONE and (hold.is_off(state_dir) or hold.read(state_dir) is not None):
            return  # nothing went wrong, and what held capture before the trial holds it again
        hold.write(state_dir, hold.Hold(fault.alarm, fault.why, int(time.time()), self._held()))

    def _held(self) -> bytes | None:
        return None if self._spec.held is None else base64.b64decode(self._spec.held)

    def _restore(self) -> None:
        before = self._before
        added = before.additions.prefixes, before.additions.addresses, before.additions.marked_home
        if before.table is None:
            kernel.remove(self._lent)
            routes.write(*added)
        else:
            routes.add(*added)
            kernel.write(before.table, self._lent)
            routes.write(*added)

    def _by_the_agent(self) -> None:
        """The rules are those of an agent that runs: it sees the mark, and undoes by itself."""
        self._nudge()
        until = time.monotonic() + _AGENT_WITHIN_S
        while not self._is_undone() and time.monotonic() < until:
            time.sleep(_POLL_S)

    def _without_the_agent(self) -> None:
        """It does not answer: end it. Its end changes no rule, and who comes after it finds the mark."""
        holds = holders.holds_lock(Path(self._spec.state_dir) / lock.FILE)
        holders.end(lambda pid: holds(pid) and "leave" not in holders.words(pid))
        self._restore()

    def _nudge(self) -> None:
        with suppress(control.ControlError):
            control.call(Path(self._spec.control_socket), control.REFRESH, 1.0)


_told_to_end: list[int] = []


def main(text: str) -> NoReturn:
    """Be the timer, then end."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: _told_to_end.append(number))
    leave_cgroup()
    fields = json.loads(text)
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in fields.items()}
    timer = Timer(Spec(**values))
    if fields["seconds"]:
        timer.watch_person()
    else:
        timer.watch_agent()
    sys.exit(0)


def leave_cgroup() -> bool:
    """Go to the top of the cgroup tree, so that who ends the agent's cgroup does not end this; return whether it did.

    With systemd the timer is a scope of its own instead (`arming`), and this finds it outside the agent already.
    """
    if Path("/run/systemd/system").exists():
        return True
    # In a container there may be no more than a part of the tree: its top is outside the agent's own cgroup, too.
    top = cgroup.root(whole=False)
    if top is not None:
        with suppress(OSError):
            (top / cgroup.PROCESSES).write_text("0")
            return True
    return False


def _request(connection: socket.socket) -> dict[str, Any]:
    """Return what is asked; nothing if it is no request. Raises OSError: who asked is gone."""
    connection.settimeout(1.0)
    try:
        found = json.loads(connection.recv(_REQUEST_BYTES))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _not_proven(after: Sound) -> list[str]:
    found = ["other programs' firewalls and the network between you and this host"]
    if not after.ssh:
        found.append("SSH: no server answers on this host")
    return found


def _say(document: dict[str, Any]) -> None:
    with suppress(OSError):
        os.write(1, json.dumps(document).encode() + b"\n")
