"""The two Envoys of a host at work: looks at them, lets `upgrade` decide, writes that down and does it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from hostmesh_agent import client_addresses, envoy_unit, life_file, process, udp_flows, upgrade, verdict, workdir
from hostmesh_agent.artifact import Installed
from hostmesh_agent.bootstrap import ADMIN_SOCKET
from hostmesh_agent.capture import HostFloor
from hostmesh_agent.cgroup import EnvoyGroup
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.envoy import EnvoyStatus, Supervisor
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.lifecycle import Phase, View
from hostmesh_agent.likeness import Likeness, fingerprint
from hostmesh_agent.looking import Look
from hostmesh_agent.next_envoy import NextEnvoy
from hostmesh_agent.places import PORTS, Doorway, Instance
from hostmesh_agent.upgrade import Life, Seen, Side, Stage
from hostmesh_agent.verdict import Counts

LOOK_S: Final = 0.2
"""While they change."""
WATCH_S: Final = 5.0
"""How often one that serves is asked whether it answers: a millisecond of CPU each time."""
SUSPECT_S: Final = 1.0
SETTLED_AFTER_S: Final = 2.0
"""What is wanted has not changed for so long: a new configuration comes in several pieces."""
LOST_AFTER: Final = 10
"""Looks in a row at which listeners were not there."""
ENDS_WITHIN_S: Final = 10.0
KILLED_AFTER_S: Final = 0.2
ANSWERED_AFTER_S: Final = 1.0
"""By then questions for names that were under way when the rules began to lead elsewhere have their answers."""
_AFTER_A_FLIP: Final = {Stage.PROBATION, Stage.DRAINING}
_NOTHING: Final = EnvoyStatus(View(Phase.DOWN, None, False, 0, False, "", 0.0), "", "")

log = structlog.get_logger(__name__)


class Source(Protocol):
    """Who serves both their configuration."""

    def judged_by(self, instance: Instance) -> None: ...

    def lacks(self, instance: Instance) -> tuple[str, ...]: ...

    def doorways(self) -> frozenset[Doorway]: ...


@dataclass(slots=True)
class _Kept:
    """One that is kept running."""

    supervisor: Supervisor
    task: asyncio.Task[None]
    look: Look
    gone: str = ""
    """Why it was not there when this agent came."""


class Envoys:
    """Keeps the Envoy that serves, and another one while they change.

    Args:
        config: of the host.
        following: what would be started now.
        source: serves both.
        changed: is called whenever `status` would answer differently.
        lead: makes the rules lead to the active one, and returns whether they do.
        group: in which they run.
        why_no_unit: why the agent starts them itself; "": systemd does.
    """

    def __init__(
        self,
        config: AgentConfig,
        following: NextEnvoy,
        source: Source,
        changed: Callable[[], None],
        lead: Callable[[], Awaitable[bool]],
        group: EnvoyGroup,
        why_no_unit: str,
    ) -> None:
        self._config = config
        self._next = following
        self._likeness = Likeness(config, following)
        self._source = source
        self._changed = changed
        self._lead = lead
        self._group = group
        self._launching = {each: envoy_unit.launching(each, config, why_no_unit) for each in Instance}
        wanted = config.envoy
        self._times = upgrade.Times(wanted.rehearsal_s, wanted.probation_s, wanted.hung_after_s)
        self._life = life_file.read(config.state_dir)
        self._since = 0.0
        self._kept: dict[Instance, _Kept] = {}
        self._wake = asyncio.Event()
        self._asked = self._back = self._differs = False
        self._restart_needed = ""
        self._fingerprint, self._settled_at = "", 0.0
        self._before: Counts = {}
        self._lost = 0
        self._hung = False
        self._flipped = False
        self._flows_left = True
        """Questions for names may still be led to the one that does not serve."""
        source.judged_by(self._life.active)

    # What others ask

    @property
    def life(self) -> Life:
        return self._life

    @property
    def active(self) -> Instance:
        """Where the rules lead."""
        return self._life.active

    @property
    def hung(self) -> bool:
        """Whether the one that serves has not answered for long: callers are better off elsewhere."""
        return self._hung

    @property
    def earlier(self) -> Instance:
        """Which of the two served before the change that is under way, if there is one."""
        return self._life.other if self._life.stage is Stage.PROBATION else self._life.active

    @property
    def _changes(self) -> bool:
        return self._life.stage is not Stage.STEADY or self._life.asked or self._asked

    def admin_socket(self) -> Path:
        """Return the admin socket of the one that serves."""
        return self._config.directory_of(self.active) / ADMIN_SOCKET

    def status(self) -> EnvoyStatus:
        kept = self._kept.get(self.active)
        return replace(_NOTHING if kept is None else kept.supervisor.status(), restart_needed=self._restart_needed)

    def problems(self) -> list[str]:
        """Say what is wrong with them, for people; what `status` says of the one that serves is not repeated."""
        found = [f"Envoy hangs: its admin interface has not answered for {self._times.hung_after_s:.0f} s"] * self._hung
        if self._put_back():
            found.append(f"Envoy was put back: the new one was not good: {self._put_back()}")
        return found

    def _put_back(self) -> str:
        """Return why what is wanted does not run: it was tried, and was not good. "" if it was not, or is again."""
        if self._asked:
            return ""
        return next((each.why for each in self._life.refused if each.fingerprint == self._fingerprint), "")

    def document(self) -> dict[str, Any]:
        """Return how a change of them stands, for people and scripts."""
        kept = self._kept.get(self._life.other)
        record = process.read_record(self._config.directory_of(self.active))
        return {
            "instance": self.active.value,
            "stage": self._life.stage.value,
            "other_pid": None if kept is None else kept.supervisor.status().view.pid,
            "hung": self._hung,
            "put_back": self._put_back(),
            "asked": self._asked or self._life.asked,
            "sha256": "" if record is None else record.sha256,
        }

    async def calls(self) -> tuple[int | None, int | None]:
        """Return how many calls are under way through both, and how many ever began; None: neither says."""
        found = await asyncio.gather(*(each.look.calls() for each in self._kept.values()))
        told = [each for each in found if each is not None]
        return (sum(each[0] for each in told), sum(each[1] for each in told)) if told else (None, None)

    def floor(self, floor: HostFloor) -> HostFloor:
        """Return the floor with the ports of the one that serves."""
        ports = PORTS[self.active]
        ways = frozenset() if ports.door is None else self._source.doorways()
        return replace(
            floor,
            outbound_port=ports.outbound,
            inbound_port=ports.inbound,
            dns_port=ports.dns,
            door_port=ports.door if ways else None,
            doorways=frozenset((each.address, each.port) for each in ways),
            uses_clients=any(self.uses_clients(each) for each in Instance),
        )

    def uses_clients(self, instance: Instance) -> bool:
        """Tell whether one runs that may use its clients' addresses."""
        return client_addresses.may_use(self._config.directory_of(instance))

    def recover(self) -> None:
        """Find those that an agent had started that was killed before it knew them. Call it first; blocks."""
        for each in self._launching.values():
            each.recover()

    def any_runs(self) -> bool:
        return any(process.recorded_runs(self._config.directory_of(each)) for each in Instance)

    def command_changed(self) -> None:
        """Look again whether the running Envoy is what would be started now."""
        self._compare()
        self._wake.set()

    def take_binary(self, installed: Installed) -> None:
        """Use this binary from now on."""
        if self._next.take_binary(installed):
            self.command_changed()

    def changing(self) -> str:
        """Return why no change of them can begin now; "" if one can."""
        stage = self._life.stage
        return "" if stage is Stage.STEADY else f"the Envoys are being changed already ({stage})"

    def upgrade(self) -> str:
        """Replace the running Envoy by what would be started now; return why not, "" if that begins."""
        if changing := self.changing():
            return changing
        self._compare()
        if not self._restart_needed and self.status().view.pid is not None:
            return "the running Envoy is what would be started now"
        self._asked = True
        self._wake.set()
        return ""

    def rollback(self) -> str:
        """Put the old Envoy back while it is still there; return why not, "" if that begins."""
        life, kept = self._life, self._kept.get(self.earlier)
        gone = kept is None or kept.supervisor.status().view.pid is None
        if life.stage is Stage.DRAINING or (life.stage is Stage.PROBATION and gone) or not self._changes:
            return "no earlier Envoy runs that could be put back"
        if life.hung:
            return "the earlier Envoy hangs: there is no way back to it"
        self._back = True
        self._wake.set()
        return ""

    # At work

    async def run(self) -> None:
        """Keep them until cancelled; they go on then."""
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._compare()
        try:
            async with asyncio.TaskGroup() as group:
                await self._carry_out(group, resumed=True)
                while True:
                    self._wake.clear()
                    seen = await self._see()
                    since_s = loop.time() - self._since
                    if self._flipped and since_s >= ANSWERED_AFTER_S and self._life.stage in _AFTER_A_FLIP:
                        await self._forget_flows()
                    await self._take(upgrade.step(self._life, seen, since_s), seen, group)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._pause_s()):
                            await self._wake.wait()
        finally:
            self._kept.clear()

    def _pause_s(self) -> float:
        if self._life.stage is not Stage.STEADY or self._life.asked:
            return LOOK_S
        kept = self._kept.get(self.active)
        if self._differs and self._config.envoy.upgrade == "auto":
            return SUSPECT_S
        return WATCH_S if kept is None or not kept.look.silent_s else SUSPECT_S

    async def _take(self, life: Life, seen: Seen, group: asyncio.TaskGroup) -> None:
        before = self._life
        if life != before:
            try:
                await asyncio.to_thread(life_file.write, self._config.state_dir, life)
            except OSError as error:
                log.error("envoys are not changed: it cannot be written down", reason=str(error))
                return
        # What was asked for since `seen` was made has not been taken yet.
        self._asked, self._back = self._asked and not seen.asked, self._back and not seen.back
        if life == before:
            return
        self._life = life
        if life.stage is not before.stage:
            self._since = asyncio.get_running_loop().time()
        why = life.refused[-1].why if life.refused and life.refused[-1] not in before.refused else ""
        say = log.error if why else log.info
        say("envoys change", stage=life.stage, active=life.active, hung=life.hung, put_back=why)
        if life.active is not before.active:
            await self._flip()
        await self._carry_out(group, resumed=False)
        self._compare()
        self._changed()

    async def _flip(self) -> None:
        if self._life.stage is Stage.PROBATION:
            old = None if self._life.hung else self._kept.get(self._life.other)
            self._before = (None if old is None else await old.look.counts()) or {}
        self._lost = 0
        self._flows_left = True
        self._flipped = await self._lead()
        self._source.judged_by(self.active)

    async def _forget_flows(self) -> None:
        """Lead all questions for names where the rules lead the first one of a program: not to the other Envoy."""
        if not self._flows_left:
            return
        self._flows_left = False
        try:
            await asyncio.to_thread(udp_flows.forget, PORTS[self._life.other].dns)
        except OSError as error:
            log.warning("some questions for names may be lost for half a minute", reason=str(error))

    async def _carry_out(self, group: asyncio.TaskGroup, *, resumed: bool) -> None:
        """Make true what the state asks for, as far as it is not."""
        wanted = upgrade.runs(self._life)
        for instance in Instance:
            if instance not in wanted:
                await self._end(instance)
            elif instance not in self._kept:
                await self._keep(instance, group, resumed=resumed)
        draining = upgrade.drains(self._life)
        if draining is not None and draining in self._kept:
            if self._life.hung:
                await self._kill(draining)
            else:
                await self._kept[draining].look.drain()

    async def _kill(self, instance: Instance) -> None:
        """End one that hears nothing: who waits for it is better off with a connection that ends."""
        self._kept[instance].supervisor.request_stop()
        await asyncio.to_thread(process.stop_recorded, self._config.directory_of(instance), KILLED_AFTER_S)

    async def _keep(self, instance: Instance, group: asyncio.TaskGroup, *, resumed: bool) -> None:
        directory = self._config.directory_of(instance)
        is_new = self._life.stage is Stage.WARMING and instance is self._life.other
        runs = process.recorded_runs(directory)
        if is_new and runs and self._is_another(instance, directory):
            await asyncio.to_thread(process.stop_recorded, directory, ENDS_WITHIN_S)
        if instance is self._life.other and not is_new and not runs:
            return  # an old one that is gone is not started again
        command = self._command_of(instance)
        workdir.prepare(command.directory, command.owner)
        if directory != self._config.envoy_dir:
            workdir.share(directory, self._config.envoy_dir)
        on_trial = self._life.stage in {Stage.WARMING, Stage.PROBATION}
        supervisor = Supervisor(
            lambda: self._command_of(instance),
            self._looks_different,
            self._launching[instance],
            lambda why: self._tried(instance, why),
            partial(self._group.prepare, instance.value),
        )
        gone = "it was gone when the agent came back" if resumed and on_trial and not is_new and not runs else ""
        task = group.create_task(supervisor.run(), name=f"envoy {instance}")
        self._kept[instance] = _Kept(supervisor, task, Look(instance, directory), gone)

    def _tried(self, instance: Instance, why: str) -> None:
        if self._life.stage is Stage.STEADY and instance is self.active:
            self._next.tried(why)

    def _is_another(self, instance: Instance, directory: Path) -> bool:
        record = process.read_record(directory)
        return record is None or bool(self._command_of(instance).differences(record))

    async def _end(self, instance: Instance) -> None:
        kept = self._kept.pop(instance, None)
        directory = self._config.directory_of(instance)
        if kept is not None or process.recorded_runs(directory):
            await self._forget_flows()
        if kept is not None:
            kept.supervisor.request_stop()
            await asyncio.wait([kept.task], timeout=ENDS_WITHIN_S + 1)
        if process.recorded_runs(directory):
            await asyncio.to_thread(process.stop_recorded, directory, ENDS_WITHIN_S)
        process.remove_record(directory)

    def _looks_different(self) -> None:
        self._compare()
        self._wake.set()
        self._changed()

    # What is started

    def _command_of(self, instance: Instance) -> EnvoyCommand:
        """Return what an instance is started with: what is wanted, unless that is on trial elsewhere or was refused."""
        life = self._life
        refused = life.refuses(fingerprint(self._next.command))
        if life.stage is Stage.WARMING and instance is life.other:
            # What was refused takes nobody's place: then another one like the one that serves does.
            return self._likeness.command(instance, life.active) if refused else self._next.command_for(instance)
        if refused or life.stage is Stage.WARMING or instance is life.other:
            return self._likeness.command(instance, instance)
        return self._next.command_for(instance)

    def _compare(self) -> None:
        now = fingerprint(self._next.command)
        if now != self._fingerprint:
            self._fingerprint, self._settled_at = now, asyncio.get_running_loop().time() + SETTLED_AFTER_S
        directory = self._config.directory_of(self.active)
        record = process.read_record(directory) if process.recorded_runs(directory) else None
        needed = "" if record is None else self._next.command_for(self.active).differences(record)
        self._differs = bool(needed)
        if needed != self._restart_needed:
            self._restart_needed = needed
            self._changed()

    # What is seen

    async def _see(self) -> Seen:
        if not self._flipped:
            self._flipped = await self._lead()
        await self._watch()
        automatic = self._config.envoy.upgrade == "auto" and asyncio.get_running_loop().time() >= self._settled_at
        active, other = self._side(self.active), self._side(self._life.other)
        if self._life.stage is Stage.WARMING:
            other = await self._of_new(other)
        elif self._life.stage is Stage.PROBATION:
            active = await self._of_serving(active)
        elif self._life.stage is Stage.DRAINING and other.runs:
            other = replace(other, connections=await self._kept[self._life.other].look.connections())
        return Seen(
            wanted=self._fingerprint,
            again=self._likeness.fingerprint(self.active) if self._life.hung or active.silent_s else "",
            differs=self._differs,
            active=active,
            other=other,
            asked=self._asked,
            automatic=automatic,
            back=self._back,
            flipped=self._flipped,
            drain_s=float(self._next.command.drain_s),
            times=self._times,
        )

    def _side(self, instance: Instance) -> Side:
        kept = self._kept.get(instance)
        if kept is None:
            return Side()
        view = kept.supervisor.status().view
        return Side(runs=view.pid is not None, ended=kept.gone or view.last_exit, silent_s=kept.look.silent_s)

    async def _watch(self) -> None:
        """Ask the one that serves whether it answers; one that has only been started is given its time."""
        kept = self._kept.get(self.active)
        if kept is None:
            return
        view = kept.supervisor.status().view
        if view.phase is Phase.LIVE or (view.phase is Phase.STARTING and view.adopted):
            await kept.look.ask()
        else:
            kept.look.forget_silence()
        hung = kept.look.silent_s >= self._times.hung_after_s
        if hung != self._hung:
            self._hung = hung
            log.error("envoy hangs") if hung else log.info("envoy answers again")
            self._changed()

    async def _of_new(self, side: Side) -> Side:
        """Add what the new one, which serves nobody, lacks to do so."""
        kept = self._kept.get(self._life.other)
        if kept is None or kept.supervisor.status().view.phase is not Phase.LIVE:
            return replace(side, lacks=("it has not said that it serves",))
        old = self._kept.get(self.active)
        listeners = (None if old is None or self._life.hung else await old.look.listeners()) or frozenset()
        lacks = self._source.lacks(self._life.other)
        failed = next((each for each in lacks if each.startswith("it refuses ")), "") or await kept.look.rehearse()
        lacks = (*lacks, *await kept.look.unready(listeners))
        # One that ended meanwhile answers nothing: how it ended says more.
        return (
            replace(self._side(self._life.other), lacks=lacks)
            if _gone(kept)
            else replace(side, lacks=lacks, failed=failed)
        )

    async def _of_serving(self, side: Side) -> Side:
        """Add what is wrong with the new one, which serves everybody."""
        kept, old = self._kept.get(self.active), self._kept.get(self._life.other)
        if kept is None or not side.runs or side.silent_s or self._life.hung:
            return side
        missing = await self._missing(kept, old)
        self._lost = self._lost + 1 if missing else 0
        lost = f"it has lost the listeners {', '.join(missing)}" if self._lost >= LOST_AFTER else ""
        worse = verdict.worse(self._before, await kept.look.counts() or {})
        failed = lost or worse or await kept.look.rehearse()
        return self._side(self.active) if _gone(kept) else replace(side, failed=failed)

    @staticmethod
    async def _missing(kept: _Kept, old: _Kept | None) -> Sequence[str]:
        """Return what the old one has and the new one has not; both get the same."""
        before = None if old is None else await old.look.listeners()
        now = await kept.look.listeners()
        return () if before is None or now is None else sorted(before - now)


def _gone(kept: _Kept) -> bool:
    return bool(kept.supervisor.status().view.last_exit)
