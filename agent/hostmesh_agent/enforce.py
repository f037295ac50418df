"""Capture and name resolution put into force together, in the order that loses nothing.

Widening: the rules, then the resolver, whose questions the rules carry. Narrowing: the other way round. Blocks on the
kernel and the disk for milliseconds: to be called from a thread.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent.capture import (
    Capture,
    CaptureError,
    CaptureRequest,
    CaptureState,
    HostFloor,
    Owner,
    PlanError,
    Ruleset,
    kernel,
    plan,
)
from hostmesh_agent.capture.difference import difference
from hostmesh_agent.capture.rules import Backend
from hostmesh_agent.converge import InForce, in_force
from hostmesh_agent.dns import ResolverError, ResolverState
from hostmesh_agent.generation import Author, generation
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_agent.repairs import Repairs
from hostmesh_agent.resolution import Resolution

FULL_CHECK_S: Final = 60.0
IPTABLES_CHECK_S: Final = 30.0
"""A look at iptables starts a dozen programs (20 ms of a core in all, and a check is two), and nobody tells of a
change: so often it costs 0.13 % of a core."""
_DRIFT_LINES: Final = 8
_UNKNOWN: Final = CaptureState("off")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Enforced:
    """What is in force. `dns_in_place`: mesh names reach Envoy; `dns_detail` says why not.

    `dns_left_alone`: they do not because the host's owner has it so.
    """

    capture: CaptureState = _UNKNOWN
    in_force: InForce = field(default_factory=InForce)
    dns_in_place: bool = False
    dns_detail: str = ""
    dns_left_alone: bool = False
    repair_waits: str = ""
    """Why rules that another program changed are not put back yet."""


@dataclass(frozen=True, slots=True)
class _Checked:
    """What was true when nftables was at `generation`; None: the rules are iptables', which has no such number."""

    enforced: Enforced
    generation: int | None
    at: float

    def still_true(self) -> bool:
        """Routes and addresses have no such number: they are looked at now and then."""
        if self.generation is None:
            return time.monotonic() - self.at < IPTABLES_CHECK_S
        return time.monotonic() - self.at < FULL_CHECK_S and generation() == self.generation


class Enforcement:
    """What this agent does to the kernel and to name resolution. `dns` False: the host does not want the latter."""

    def __init__(
        self,
        *,
        dns: bool,
        resolv_conf: Path,
        state_dir: Path,
        domains: tuple[str, ...] = (),
        names: Callable[[], MeshNames] = MeshNames,
        owner: Owner | None = None,
    ) -> None:
        """`names` returns what the mesh's names have in common."""
        self._dns = dns
        self._capture = Capture(owner)
        self._resolution = Resolution(resolv_conf, state_dir, domains)
        self._names = names
        self._wanted: tuple[CaptureRequest, HostFloor] | None = None
        self._ours = InForce()
        self._repairs = Repairs()
        self._author: Author | None = None
        self.drift: tuple[str, ...] = ()
        """How another program last changed the rules, one part a line, and last which program; empty before."""
        self._checked: _Checked | None = None

    def look(self) -> InForce:
        """Return what is captured: what the kernel holds, whoever applied it, and what another tool took from it.

        Rules that we put into force and somebody flushed are still in force in this sense: they come back without
        waiting for Envoy, or the host's traffic would go out in plain text until Envoy is there.

        Raises:
            CaptureError: the kernel does not tell.
        """
        if self._checked is not None and self._checked.still_true():
            return self._checked.enforced.in_force
        found = in_force(kernel.read())
        return InForce(found.inbound_ports | self._ours.inbound_ports, found.outbound or self._ours.outbound)

    @property
    def names_files(self) -> frozenset[Path]:
        """What other programs write of the host's resolver while names are in place: a reason to `put` again."""
        return self._resolution.files

    def changed_by(self, author: Author) -> None:
        """Note who has changed nftables: it may have been our table."""
        self._author = author

    def ruleset(self, request: CaptureRequest, floor: HostFloor) -> Ruleset:
        """Return what `put` would put into force. Raises PlanError: nothing."""
        return plan(self._request(request, floor), floor)

    def _request(self, request: CaptureRequest, floor: HostFloor) -> CaptureRequest:
        # Without nf_tables nobody would say "not mine" in Envoy's place: the resolver must not ask it.
        able = self._dns and floor.backend is Backend.NFTABLES
        return request if able else replace(request, dns=False)

    def put(self, request: CaptureRequest | None, floor: HostFloor) -> Enforced:
        """Put the request into force (None: nothing), if it is not already; errors are in what is returned."""
        request = None if request is None else self._request(request, floor)
        dns = request is not None and request.dns
        names = ResolverState(in_place=False, detail="" if dns else self._restore_dns())
        enforced = self._put_capture(request, floor)
        if dns and enforced.capture.state == "on":
            names = self._apply_dns(self._names())
        return replace(enforced, dns_in_place=names.in_place, dns_detail=names.detail, dns_left_alone=names.left_alone)

    def _put_capture(self, request: CaptureRequest | None, floor: HostFloor) -> Enforced:
        wanted = None if request is None else (request, floor)
        if self._checked is not None and self._wanted == wanted and self._checked.still_true():
            return self._checked.enforced
        # Asked before the rules are read: what is changed meanwhile shows in the number the next time.
        number = generation()
        capture = self._clear() if request is None else self._apply(request, floor)
        waits = capture.error if capture.state == "error" and self._repairs.wait_s(time.monotonic()) else ""
        enforced = Enforced(capture, self._in_force(), repair_waits=waits)
        self._ours = enforced.in_force if capture.state == "on" else self._ours if request else InForce()
        by_number = capture.backend is Backend.NFTABLES
        good = (number is not None or not by_number) and capture.state != "error"
        self._checked = _Checked(enforced, number if by_number else None, time.monotonic()) if good else None
        return enforced

    def _apply(self, request: CaptureRequest, floor: HostFloor) -> CaptureState:
        if self._wanted == (request, floor):
            state = self._capture.state()
            if state.state == "on":
                return state
            waits = self._drifted(request, floor)
            if waits:
                return replace(state, error=f"{state.error}; {waits}")
        state = self._capture.apply(request, floor)
        self._wanted = (request, floor) if state.state == "on" else None
        return state

    def _drifted(self, request: CaptureRequest, floor: HostFloor) -> str:
        """Note how the rules differ from what was written; return why they are not put back now, "" if they are."""
        now = time.monotonic()
        with suppress(CaptureError, PlanError):
            found = difference(plan(request, floor).table, kernel.read())
            if found:
                by = f"by {self._author}" if self._author else "by a program that the kernel does not name"
                self.drift = (*found[:_DRIFT_LINES], by)
        wait_s = self._repairs.wait_s(now)
        if wait_s:
            rival = f" ({self._author} changes them)" if self._author else ""
            return (
                f"the rules were put back {self._repairs.count(now)} times and changed again{rival}: "
                f"the next time in {wait_s:.0f} s; end one of the two"
            )
        self._repairs.made(now)
        log.warning("rules were changed by another program and are put back", drift=self.drift)
        return ""

    def _clear(self) -> CaptureState:
        self._wanted = None
        state = self._capture.state()
        return state if state.state == "off" else self._capture.clear()

    def _in_force(self) -> InForce:
        try:
            return in_force(kernel.read())
        except CaptureError:
            return InForce()

    def _apply_dns(self, names: MeshNames) -> ResolverState:
        try:
            return self._resolution.put(names)
        except (ResolverError, OSError) as error:
            return ResolverState(in_place=False, detail=str(error))

    def _restore_dns(self) -> str:
        try:
            self._resolution.restore()
        except (ResolverError, OSError) as error:
            return str(error)
        return ""
