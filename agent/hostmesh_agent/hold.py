"""What keeps the agent from capturing more: the owner's word, or a change that undid itself.

    <state_dir>/capture.off         the owner said `capture clear`: nothing is captured
    <state_dir>/capture.hold.json   a change did harm and was undone: nothing is captured beyond what was before
    <run_dir>/capture-trial.json    a trial runs: while its dead-man timer lives, the two above do not count

Both marks end with `capture resume` or with a trial that is confirmed. They are only ever taken away after a
confirmation, so that whatever is killed meanwhile, the host ends without the change. Where the disk refuses the second
one it is kept in memory, and written when the disk takes it.
"""

import base64
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hostmesh_agent import launch
from hostmesh_agent.state import StateError, read_private, write_private

OFF: Final = "capture.off"
FILE: Final = "capture.hold.json"
TRIAL: Final = "capture-trial.json"
RESUME: Final = "hostmesh-agent capture resume"
DISABLED: Final = "capture.enabled is false in agent.toml"
ENABLE: Final = "take enabled = false out of agent.toml, then: systemctl restart hostmesh-agent"

_unwritten: Final[dict[Path, "Hold"]] = {}
"""What a disk refused, by its state directory; for as long as this process lives."""
_writing: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Hold:
    """Why nothing more is captured.

    Attributes:
        alarm: its name: TRIAL_EXPIRED, TRIAL_UNDONE, CONTROLLER_LOST, SSH_LOST, SSH_DIVERTED, DEADMAN_DIED.
        why: for people.
        at: seconds since the epoch.
        capture: the configuration before, a serialized `Capture`, beyond which nothing is captured; None: nothing is.
    """

    alarm: str
    why: str
    at: int
    capture: bytes | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that runs: its dead-man timer's process, and until when (seconds since the epoch).

    `over`: its timer is undoing it, and its rules count no more.
    """

    pid: int
    start_ticks: int
    boot_id: str
    until: int
    over: bool = False

    def runs(self) -> bool:
        """Whether exactly that process is alive."""
        try:
            return launch.boot_id() == self.boot_id and launch.start_ticks(self.pid) == self.start_ticks
        except ProcessLookupError:
            return False


def read(state_dir: Path) -> Hold | None:
    """Return the mark; one that cannot be read counts as one that holds everything."""
    if (kept := _unwritten.get(state_dir)) is not None:
        return kept
    try:
        found = json.loads(read_private(state_dir / FILE))
        capture = found["capture"]
        return Hold(
            str(found["alarm"]),
            str(found["why"]),
            int(found["at"]),
            None if capture is None else base64.b64decode(capture, validate=True),
        )
    except FileNotFoundError:
        return None
    except (StateError, ValueError, TypeError, KeyError) as error:
        return Hold("HOLD_UNREADABLE", f"{state_dir / FILE} cannot be read: {error}", 0)


def write(state_dir: Path, hold: Hold) -> None:
    """Set the mark. Raises OSError: the disk refuses."""
    document: dict[str, Any] = {
        "alarm": hold.alarm,
        "why": hold.why,
        "at": hold.at,
        "capture": None if hold.capture is None else base64.b64encode(hold.capture).decode(),
    }
    write_private(state_dir / FILE, json.dumps(document).encode() + b"\n")


def keep(state_dir: Path, hold: Hold) -> str:
    """Set the mark, for this process alone if the disk refuses; return why it does, "" if it does not."""
    with _writing:
        _unwritten[state_dir] = hold
        return _write_kept(state_dir)


def write_kept(state_dir: Path) -> str:
    """Write what the disk refused, if anything; return why it still does."""
    with _writing:
        return _write_kept(state_dir)


def _write_kept(state_dir: Path) -> str:
    kept = _unwritten.get(state_dir)
    if kept is not None:
        try:
            write(state_dir, kept)
        except OSError as error:
            return f"{state_dir / FILE}: {error}"
        del _unwritten[state_dir]
    return ""


def forget(state_dir: Path) -> None:
    """Drop what is kept in memory alone."""
    with _writing:
        _unwritten.pop(state_dir, None)


def release(state_dir: Path) -> None:
    """Take both marks away: capture is as it is wanted. An agent may keep one in memory (`control.RESUME`)."""
    forget(state_dir)
    (state_dir / OFF).unlink(missing_ok=True)
    (state_dir / FILE).unlink(missing_ok=True)


def is_off(state_dir: Path) -> bool:
    """Whether the owner of the host said that nothing is captured."""
    return (state_dir / OFF).exists()


def trial(run_dir: Path) -> Trial | None:
    """Return the trial that runs now; None if none does, also if its timer was killed."""
    try:
        found = json.loads(read_private(run_dir / TRIAL))
        numbers = int(found["pid"]), int(found["start_ticks"]), str(found["boot_id"]), int(found["until"])
        recorded = Trial(*numbers, over=bool(found.get("over")))
    except (FileNotFoundError, StateError, ValueError, TypeError, KeyError):
        return None
    return recorded if recorded.runs() else None


def tries(run_dir: Path) -> bool:
    """Whether a trial's rules are to be in force: one runs, and is not being undone."""
    found = trial(run_dir)
    return found is not None and not found.over


def note_trial(run_dir: Path, pid: int, until: int, *, over: bool = False) -> None:
    """Record the trial of a process. Raises OSError: the disk refuses."""
    started = {"pid": pid, "start_ticks": launch.start_ticks(pid), "boot_id": launch.boot_id()}
    document = {**started, "until": until, "over": over}
    write_private(run_dir / TRIAL, json.dumps(document).encode() + b"\n")


def end_trial(run_dir: Path) -> None:
    (run_dir / TRIAL).unlink(missing_ok=True)
