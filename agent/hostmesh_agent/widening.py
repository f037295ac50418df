"""Capture widened with a dead-man timer beside it: what does harm undoes itself. Blocks: for a thread.

A change is watched if it may meet connections that passed before (`capture.difference.widens`). What narrows, and what
puts back rules that another program took, is not: it must not wait for anything. Neither is that a unit of those that
are named comes or goes: the same was asked for before and did no harm, the timer's own calls are none of that unit's,
and until the rules follow the unit's connections are not what they should be. Nor is it that the other of two
Envoys takes over: the same connections are met, and that one has rehearsed and is on probation. The timer costs 0.15 s
of a core for each such change, and nothing between them.
"""

import base64
import time
from dataclasses import replace
from typing import Final

import structlog

from hostmesh_agent import arming, hold
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.capture import CaptureError, CaptureRequest, CaptureState, HostFloor, Owner, PlanError, kernel
from hostmesh_agent.capture.difference import widens
from hostmesh_agent.capture.plan import SSH_PORT
from hostmesh_agent.capture.who import Present
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.converge import InForce, in_force
from hostmesh_agent.enforce import Enforced, Enforcement
from hostmesh_agent.sound import DEADMAN_DIED, Fault
from hostmesh_agent.state import State, StateError, read_private, write_private
from hostmesh_api import wire

LAST_GOOD: Final = "capture.good"
"""The serialized `Capture` of the last change that did no harm: what is kept when the next one does."""

log = structlog.get_logger(__name__)


class Widening:
    """Puts requests into force, those that widen under watch."""

    def __init__(
        self, config: AgentConfig, owner: Owner, enforcement: Enforcement, alarms: Alarms | None = None
    ) -> None:
        self._config = config
        self._owner = owner
        self._enforcement = enforcement
        self._alarms = Alarms() if alarms is None else alarms
        self._good: tuple[CaptureRequest, HostFloor] | None = None

    def put(self, request: CaptureRequest | None, floor: HostFloor, capture: bytes) -> Enforced:
        """Put the request, made of a serialized `Capture`, into force; undo it and hold capture if it does harm."""
        if request is None or self._good == (request, floor) or hold.trial(self._config.run_dir) is not None:
            return self._enforcement.put(request, floor)
        try:
            watched = not self._did_no_harm(request, floor) and widens(
                kernel.read(), self._enforcement.ruleset(request, floor).table
            )
            kept = self._kept(capture) if watched else None
            armed = arming.arm(self._spec(floor, kept)) if watched else None
        except PlanError:
            return self._enforcement.put(request, floor)  # says so
        except (arming.ArmingError, CaptureError, StateError, OSError) as error:
            return _error(str(error))
        enforced = self._enforcement.put(request, floor)
        if armed is not None:
            for fault in armed.applied()[:1]:
                return self._undone(fault, kept)
        if enforced.capture.state == "on":
            self._good = request, floor
            self._note_good(capture)
        return enforced

    def arm_trial(self, floor: HostFloor, seconds: int) -> arming.Armed:
        """Start the timer of a trial by hand.

        Raises:
            ArmingError, StateError: there is none.
        """
        held = hold.read(self._config.state_dir)
        return arming.arm(self._spec(floor, None if held is None else held.capture, seconds))

    def _did_no_harm(self, request: CaptureRequest, floor: HostFloor) -> bool:
        """Tell whether the same was put into force by this process, whichever units ran and Envoy served then."""
        return self._good is not None and asked(*self._good) == asked(request, floor)

    def _kept(self, capture: bytes) -> bytes | None:
        """Return beyond what nothing is captured if this does harm: the last good one, if that is not tried already."""
        last = self._last_good()
        return None if last == capture or hold.read(self._config.state_dir) is not None else last

    def _spec(self, floor: HostFloor, last: bytes | None, seconds: int = 0) -> arming.Spec:
        config = self._config
        return arming.Spec(
            state_dir=str(config.state_dir),
            run_dir=str(config.run_dir),
            resolv_conf=str(config.dns.resolv_conf),
            control_socket=str(config.control_socket),
            ssh_ports=tuple(sorted(floor.ssh_ports)),
            ssh_servers=tuple(sorted(floor.ssh_servers)),
            controllers=State(config.state_dir).host().agents_endpoints,
            envoy_uid=floor.envoy_uid,
            seconds=seconds,
            owner=self._owner.lend() if self._owner.supported else -1,
            held=None if last is None else base64.b64encode(last).decode(),
        )

    def write_kept(self) -> None:
        """Write what the disk refused to note of harm, if anything."""
        self._tell(hold.write_kept(self._config.state_dir))

    def _undone(self, fault: Fault, kept: bytes | None) -> Enforced:
        self._good = None
        log.error("a change of capture did harm and was undone", alarm=fault.alarm, why=fault.why)
        noted = hold.read(self._config.state_dir)
        by_the_timer = noted is not None and (noted.alarm, noted.why, noted.capture) == (fault.alarm, fault.why, kept)
        if fault.alarm == DEADMAN_DIED or not by_the_timer:
            # Nobody has looked, and nobody has undone it: the mark makes the next step do that. Or the disk refused the
            # timer's own mark: without one the next step would make the same change.
            self._tell(hold.keep(self._config.state_dir, hold.Hold(fault.alarm, fault.why, int(time.time()), kept)))
        return _error(f"{fault.alarm}: {fault.why}: the change was undone")

    def _tell(self, why_not: str) -> None:
        if why_not:
            self._alarms.up("hold.not-written", f"{why_not}: capture is held for as long as this agent runs")
        else:
            self._alarms.down("hold.not-written")

    def _last_good(self) -> bytes | None:
        try:
            return read_private(self._config.state_dir / LAST_GOOD)
        except (FileNotFoundError, StateError):
            return None

    def _note_good(self, capture: bytes) -> None:
        if capture == self._last_good():
            return
        try:
            write_private(self._config.state_dir / LAST_GOOD, capture)
        except OSError as error:
            log.error("the last good capture cannot be remembered", reason=str(error))


def asked(request: CaptureRequest, floor: HostFloor) -> tuple[CaptureRequest, HostFloor]:
    """Return both as if none of the units ran that are named, and the first of two Envoys served.

    A door at a port of SSH's stays: that is more than another Envoy at the ports of the first.
    """
    callers = tuple(replace(each, cgroups=frozenset()) for each in request.callers if each.uids)
    ssh = floor.ssh_ports | floor.ssh_servers | {SSH_PORT}
    floor = replace(
        floor,
        present=Present(users=floor.present.users),
        outbound_port=wire.OUTBOUND_PORT,
        inbound_port=wire.INBOUND_PORT,
        dns_port=wire.DNS_PORT,
        door_port=None,
        doorways=frozenset(each for each in floor.doorways if each[1] in ssh),
    )
    return replace(request, callers=callers), floor


def _error(why: str) -> Enforced:
    try:
        table = kernel.read()
    except CaptureError:
        return Enforced(CaptureState("error", error=why), InForce())
    return Enforced(CaptureState("error", table.digest if table else "", why), in_force(table))
