"""Capture at work: looks at the evidence, lets `converge` decide, and puts that into force."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from hostmesh_agent import arming, control, converge, gaps, guard, hold, holding, status, terms
from hostmesh_agent.alarms import Alarms
from hostmesh_agent.capture import CaptureError, CaptureRequest, HostFloor, Owner
from hostmesh_agent.capture import CaptureState as CaptureResult
from hostmesh_agent.capture.who import Direction
from hostmesh_agent.capture_plan import Plan, planned
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.enforce import Enforced, Enforcement
from hostmesh_agent.file_watch import FileWatch
from hostmesh_agent.foreign import Foreign
from hostmesh_agent.gaps import Gap, Gaps, Seen
from hostmesh_agent.generation import Author
from hostmesh_agent.identities import AGENT, Identities
from hostmesh_agent.mesh_names import MeshNames
from hostmesh_agent.recognition import Recognition
from hostmesh_agent.state import StateError
from hostmesh_agent.widening import Widening
from hostmesh_api.v1.hostmesh_pb2 import CaptureGap, CaptureState, HostConfig

_DOORS_ALONE: Final = CaptureRequest(dns=False)
"""Nothing is captured, but Envoy's own ports lead to the one of two that serves."""

log = structlog.get_logger(__name__)


class Capturing:
    """What is in force on this host, and what is still lacking. For one event loop; steps take turns."""

    def __init__(
        self,
        config: AgentConfig,
        owner: Owner,
        identities: Identities,
        active: Callable[[Mapping[str, str]], Awaitable[frozenset[str]]],
        changed: Callable[[], None],
        recognition: Recognition,
        names: Callable[[], MeshNames] = MeshNames,
        gone: Callable[[], bool] = lambda: False,
        wake: Callable[[], None] = lambda: None,
        alarms: Alarms | None = None,
    ) -> None:
        """Begin with nothing known.

        Args:
            config: of the host.
            owner: of the rules.
            identities: whose certificates are in place.
            active: returns which of the wanted listeners, by version, Envoy has.
            changed: is called when something else is in force, or lacking.
            recognition: tells who is who on this host.
            names: returns what the mesh's names have in common; called in a thread.
            gone: returns whether there is no Envoy that serves.
            wake: is called when another step is due: a unit came or went, or a program wrote resolv.conf.
            alarms: of the agent.
        """
        self._config = config
        self._identities = identities
        self._active = active
        self._changed = changed
        self._recognition = recognition
        self._guard = guard.Guard(config.state_dir, alarms)
        self._enforcement = Enforcement(
            dns=config.dns.enabled,
            resolv_conf=config.dns.resolv_conf,
            domains=config.dns.domains,
            names=names,
            state_dir=config.state_dir,
            owner=owner,
        )
        self._widening = Widening(config, owner, self._enforcement, alarms)
        self._trial: arming.Armed | None = None
        self._told_applied: hold.Trial | None = None
        """The trial whose timer knows that its rules are in force."""
        self._enforced = Enforced()
        self._lacking: tuple[str, ...] = ()
        self.leads_to: int | None = None
        """Envoy's port for outbound TCP that the rules use now, if there are any; None: not known."""
        self._gone = gone
        self._programs = recognition.programs(wake)
        self._names_files = FileWatch(wake)
        self._foreign = Foreign()
        self._passing: frozenset[Direction] = frozenset()
        self._gaps: Gaps = {}

    @property
    def enforced(self) -> Enforced:
        """What is in force."""
        return self._enforced

    @property
    def lacking(self) -> tuple[str, ...]:
        """What is wanted and has to wait, and why."""
        return self._lacking

    def gaps(self) -> list[CaptureGap]:
        """Return the last time of each direction without a proxy, if it had one."""
        now = time.monotonic()
        return [_told(each, now) for _, each in sorted(self._gaps.items())]

    @property
    def drift(self) -> tuple[str, ...]:
        """How another program last changed the rules, and which."""
        return self._enforcement.drift

    @property
    def foreign(self) -> tuple[str, ...]:
        """What chains of other programs take before our rules see it, one sentence each."""
        return tuple(map(str, self._foreign.found))

    def changed_by(self, author: Author) -> None:
        """Note who has changed nftables."""
        self._enforcement.changed_by(author)

    def alarms(self) -> list[str]:
        """Return what people must know of capture, one sentence each."""
        return [*status.capture_alarms(self._config), *(str(each) for each in self._foreign.found if each.certain)]

    def trial_until(self) -> datetime | None:
        """Return until when a trial waits for its confirmation; None: there is none."""
        trial = hold.trial(self._config.run_dir)
        return None if trial is None else datetime.fromtimestamp(trial.until, UTC)

    def state(self) -> CaptureState:
        """Return what the controller is told."""
        capture = self._enforced.capture
        dns_problem = "" if self._enforced.dns_in_place else self._enforced.dns_detail
        held = hold.read(self._config.state_dir)
        trial = hold.trial(self._config.run_dir)
        return CaptureState(
            alarm=held.alarm if held else "",
            alarm_reason=held.why if held else "",
            undone_at=held.at if held else 0,
            drift=self.drift,
            trial_until=trial.until if trial else 0,
            gaps=self.gaps(),
            missing=capture.missing,
            refused=[str(each) for each in capture.refused],
            state=capture.state,
            backend=capture.backend,
            rules_hash=capture.rules_hash,
            error="; ".join(filter(None, [capture.error, dns_problem, *self._lacking])),
        )

    async def step(self, config: HostConfig, floor: HostFloor) -> None:
        """Put into force what may be, now."""
        await asyncio.to_thread(self._widening.write_kept)
        gone, before = self._gone(), self._enforced.in_force
        drift, tried = self.drift, hold.tries(self._config.run_dir)
        floor = await self._with_present(config, floor)
        try:
            decision = await self._decide(config)
        except CaptureError as error:
            # What is in force is not known: it stays as it is, or STRICT ports would be open for a moment.
            decision, enforced = converge.Decision(None, (str(error),)), self._enforced
        else:
            request = decision.request or (_DOORS_ALONE if floor.doorways else None)
            enforced = await asyncio.to_thread(self._put, request, config, floor)
            self._names_files.look(self._enforcement.names_files)
            self._note_gaps(config, before, decision.passing, gone=gone)
        if tried and not hold.tries(self._config.run_dir):
            # The trial was undone meanwhile: who took its rules away was its timer, which has us look again.
            self._enforcement.drift = drift
        if tried and enforced.capture.state == "on":
            await self._tell_applied()
        if enforced.repair_waits:
            decision = replace(decision, lacking=(*decision.lacking, enforced.repair_waits))
        if self._trial is not None and self._trial.ended():
            self._trial.close()
            self._trial = None
        self.leads_to = None if enforced.capture.state == "error" else floor.outbound_port
        if enforced.capture.state == "on":
            strict = frozenset(config.strict_ports) & enforced.in_force.inbound_ports
            await asyncio.to_thread(self._guard.note, strict)
        if (enforced, decision.lacking) != (self._enforced, self._lacking):
            self._enforced, self._lacking = enforced, decision.lacking
            self._log()
            self._changed()
        # Last: nothing waits for it.
        before_ours = self._foreign.found
        if await asyncio.to_thread(self._foreign.look) != before_ours:
            log.warning("other programs' rules come before capture", found=self.foreign)
            self._changed()

    def close(self) -> None:
        """Listen for units and files no longer; what is in force stays."""
        self._programs.close()
        self._names_files.close()

    async def try_out(self, config: HostConfig, floor: HostFloor, seconds: int) -> None:
        """Put into force what is wanted, though capture is held, under a dead-man timer.

        Raises:
            CaptureError: it could not be done; what is in force is what was before.
        """
        if hold.trial(self._config.run_dir) is not None:
            raise CaptureError("a trial runs already: confirm it, or wait until it ends")
        if not self._config.capture.enabled:
            raise CaptureError(
                f"{hold.DISABLED}: first call hostmesh-agent capture clear, then {hold.ENABLE}; then try again"
            )
        if not self.held():
            raise CaptureError(
                "capture is not held: what is wanted is in force, and each change is tried by the agent itself; "
                "`capture clear` takes it away first"
            )
        try:
            self._trial = await asyncio.to_thread(self._widening.arm_trial, floor, seconds)
        except (arming.ArmingError, StateError) as error:
            raise CaptureError(str(error)) from error
        await self.step(config, floor)
        if self._enforced.capture.state != "on":
            why = self._enforced.capture.error or "; ".join(self._lacking) or "the controller wants nothing captured"
            why = f"there is nothing to try: {why}"
            await asyncio.to_thread(arming.tell, self._config.run_dir, arming.UNDO, why=why)
            raise CaptureError(why)
        if self._told_applied is None or self._told_applied != hold.trial(self._config.run_dir):
            raise CaptureError("the dead-man timer does not answer: the trial is undone when its time is over")

    async def _tell_applied(self) -> None:
        """Tell the timer of a trial, once, that its rules are in force: whoever began it may be gone."""
        trial = hold.trial(self._config.run_dir)
        if trial is None or trial.over or trial == self._told_applied:
            return
        try:
            await asyncio.to_thread(arming.tell, self._config.run_dir, arming.APPLIED)
        except control.ControlError as error:
            # The next step tells it again.
            log.warning("the trial's timer does not answer", reason=str(error))
        else:
            self._told_applied = trial

    def held(self) -> bool:
        """Whether something is kept from being captured, by the owner's word or because it did harm."""
        return hold.is_off(self._config.state_dir) or hold.read(self._config.state_dir) is not None

    async def resume(self) -> None:
        """Hold nothing any more that the disk did not take: the marks on it are taken away by who asks."""
        await asyncio.to_thread(hold.forget, self._config.state_dir)
        self._widening.write_kept()

    async def plan(self, config: HostConfig, floor: HostFloor) -> Plan:
        """Return what would be applied now if capture were not held, beside what is in force.

        Raises:
            CaptureError: it cannot be planned, or the kernel does not tell.
        """
        decision = await self._wanted(config)
        floor = await self._with_present(config, floor)

        def compare() -> Plan:
            request, now = self._with_programs(decision.request, config, floor)
            return planned(self._enforcement, replace(decision, request=request), now, self.held())

        return await asyncio.to_thread(compare)

    async def _with_present(self, config: HostConfig, floor: HostFloor) -> HostFloor:
        named = (*terms.named(config.capture), *floor.never_outbound, self._recognition.named)
        return replace(floor, present=await self._programs.look(named))

    def _with_programs(
        self, request: CaptureRequest | None, config: HostConfig, floor: HostFloor
    ) -> tuple[CaptureRequest | None, HostFloor]:
        """Have the rules name those who are there now. Raises CaptureError: Envoy cannot be told from others."""
        floor = self._recognition.floor(floor)
        if request is not None and request.takes_outbound:
            callers = self._recognition.callers(config, self._identities.validities(), floor.present)
            request = replace(request, callers=callers)
        return request, floor

    def _put(self, request: CaptureRequest | None, config: HostConfig, floor: HostFloor) -> Enforced:
        try:
            request, floor = self._with_programs(request, config, floor)
        except CaptureError as error:
            return replace(self._enforced, capture=CaptureResult("error", error=str(error)))
        capture = config.capture.SerializeToString(deterministic=True)
        enforced = self._widening.put(request, floor, capture)
        if enforced.capture.state != "error":
            self._recognition.group.in_force = floor.envoy_cgroup if enforced.capture.state == "on" else None
        return enforced

    async def _decide(self, config: HostConfig) -> converge.Decision:
        if status.capture_wanted(self._config):
            return converge.Decision(None, ())
        if not hold.tries(self._config.run_dir):
            config = self._within_hold(config)
        return await self._wanted(config)

    def _within_hold(self, config: HostConfig) -> HostConfig:
        held = hold.read(self._config.state_dir)
        if held is None or held.capture is None:
            return config
        try:
            return holding.within(config, held.capture)
        except ValueError as error:
            raise CaptureError(f"{hold.FILE}: {error}") from error

    async def _wanted(self, config: HostConfig) -> converge.Decision:
        in_force = await asyncio.to_thread(self._enforcement.look)
        evidence = converge.Evidence(
            certificates=frozenset(self._identities.validities()) - {AGENT},
            listeners=frozenset(),
            in_force=in_force,
            guarded=self._guard.ports & frozenset(config.strict_ports),
            always=frozenset(self._config.floor.mtls_ports),
            gone=self._gone(),
            passing=self._passing,
        )
        decision = converge.decide(config, evidence)
        if not decision.lacking:
            return decision
        listeners = await self._active(config.listeners)
        return converge.decide(config, replace(evidence, listeners=listeners))

    def _note_gaps(
        self, config: HostConfig, before: converge.InForce, passing: frozenset[Direction], *, gone: bool
    ) -> None:
        capture = config.capture
        captured = {Direction.INBOUND: bool(before.inbound_ports), Direction.OUTBOUND: before.outbound}
        may = {Direction.INBOUND: capture.inbound.open, Direction.OUTBOUND: capture.outbound.open}
        seen = {each: Seen(captured[each], may[each], each in passing) for each in Direction}
        self._passing = passing
        found = gaps.after(self._gaps, seen, gone=gone, now=time.monotonic())
        for direction, gap in found.items():
            if gap != self._gaps.get(direction):
                told = _told(gap, time.monotonic())
                log.info(
                    "capture gap",
                    direction=direction.value,
                    mode="open" if gap.open else "closed",
                    lasts=told.lasts,
                    refused_ms=told.refused_ms,
                    passed_ms=told.passed_ms,
                )
        self._gaps = found

    def _log(self) -> None:
        enforced = self._enforced
        log.info(
            "capture",
            state=enforced.capture.state,
            error=enforced.capture.error,
            inbound_ports=sorted(enforced.in_force.inbound_ports),
            outbound=enforced.in_force.outbound,
            dns=enforced.dns_in_place,
            dns_detail=enforced.dns_detail,
            lacking=self._lacking,
        )


def _told(gap: Gap, now: float) -> CaptureGap:
    return CaptureGap(
        direction=gap.direction.value,
        open=gap.open,
        lasts=gap.ended is None,
        refused_ms=round(gap.refused_s(now) * 1000),
        passed_ms=round(gap.passed_s(now) * 1000),
        count=gap.count,
        total_ms=round(gap.total_s(now) * 1000),
    )
