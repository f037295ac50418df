"""A thousand simulated agents at a real controller: a bad version of Envoy reaches the canary, and nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from hostmesh_api.v1.hostmesh_pb2 import (
    CallFigures,
    EnvoyState,
    HostConfig,
    HostFacts,
    HostReport,
    WantedUpdate,
)
from hostmesh_api.wire import HOST_CONFIG_NAME, HOST_CONFIG_TYPE
from hostmesh_controller import controller as controllers
from hostmesh_controller.cli import signing
from hostmesh_controller.hub import Connection
from hostmesh_controller.mesh import HostRuntime, Update
from hostmesh_controller.reports import bounded
from hostmesh_controller.rollout.progress import Mark, Order, Stage, order_for
from hostmesh_controller.rollout_keeper import RolloutKeeper
from hostmesh_controller.store import AuditQuery
from running_controller import App, running_app

OLD, NEW = "1.40.0", "1.41.0"
MANY, CANARY = 1000, 5
ROLLOUT = f"""
apiVersion: hostmesh.io/v1
kind: Rollout
metadata: {{name: next}}
spec:
  version: {NEW}
  hosts: {{matchLabels: {{tier: web}}}}
  canary: {CANARY}
  waves: [10%, 50%]
  watch: 60s
  deadline: 300s
"""


class Clock:
    def __init__(self) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at


def order_of(each: Order | Update | WantedUpdate) -> tuple[str, int, bool, bool]:
    return each.version, each.attempt, each.back, each.settled


Behaviour = Callable[["Agent", WantedUpdate], None]


@dataclass
class Agent:
    """One simulated agent: it hears its configuration over its stream, and reports."""

    host: str
    app: App
    version: str = OLD
    wanted: WantedUpdate | None = None
    state: str = ""
    reason: str = ""
    after: CallFigures = field(default_factory=CallFigures)
    silent: bool = False
    ever: list[str] = field(default_factory=list)
    """New versions that it was told to take."""
    connection: Connection | None = None
    report_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def connect(self) -> None:
        now = datetime.now(UTC)
        hub = self.app.controller.hub
        self.connection = hub.connect(self.host, "test", now, lambda: None)
        request = DeltaDiscoveryRequest(type_url=HOST_CONFIG_TYPE, resource_names_subscribe=[HOST_CONFIG_NAME])
        request.node.id = self.host
        hub.receive(self.connection, request, now)

    def hear(self, behaviour: Behaviour) -> None:
        assert self.connection is not None
        hub = self.app.controller.hub
        for push in hub.pushes(self.connection):
            response = DeltaDiscoveryResponse.FromString(push.data)
            for resource in response.resources:
                self._take(HostConfig.FromString(resource.resource.value), behaviour)
            ack = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            hub.receive(self.connection, ack, datetime.now(UTC))

    def _take(self, config: HostConfig, behaviour: Behaviour) -> None:
        wanted = config.updates[0] if config.updates else None
        before, self.wanted = self.wanted, wanted
        if wanted is None or (before is not None and order_of(before)[:3] == order_of(wanted)[:3]):
            return
        if wanted.back:
            self.version, self.state, self.reason = OLD, "done", ""
        else:
            self.ever.append(wanted.version)
            behaviour(self, wanted)

    async def report(self) -> None:
        if self.silent:
            return
        made = HostReport(facts=HostFacts(machine="x86_64"), envoy=EnvoyState(state="live", version=self.version))
        if self.wanted is not None:
            wanted = self.wanted
            state = made.updates.add(
                component="envoy", version=wanted.version, rollout=wanted.rollout, attempt=wanted.attempt
            )
            state.back, state.state, state.reason = wanted.back, self.state, self.reason
            state.before.CopyFrom(CallFigures(calls=1000, failed=1, timed=1000, time_ms=2000))
            state.after.CopyFrom(self.after)
        await self.app.controller.registrar.states.reported(self.host, bounded(made), frozenset())


def good(agent: Agent, wanted: WantedUpdate) -> None:
    agent.version, agent.state = wanted.version, "done"
    agent.after = CallFigures(calls=500, failed=1, timed=500, time_ms=1000)


def crashes(agent: Agent, _: WantedUpdate) -> None:
    agent.state, agent.reason = "failed", "it ended before it served: killed by SIGSEGV"


def hangs(agent: Agent, _: WantedUpdate) -> None:
    """The whole host: it never reports again."""
    agent.state, agent.silent = "changing", True


def answers_503(agent: Agent, wanted: WantedUpdate) -> None:
    agent.version, agent.state = wanted.version, "done"
    agent.after = CallFigures(calls=500, failed=400, timed=500, time_ms=1000)


@dataclass
class Fleet:
    app: App
    clock: Clock
    agents: dict[str, Agent]
    keeper: RolloutKeeper

    async def heard(self) -> None:
        """Wait until every agent's HostConfig says what is kept of the rollout."""
        runtime = self.app.controller.hub
        wanted = {host: order_for(view.progress, host) for view in self.keeper.views() for host in view.progress.hosts}
        async with asyncio.timeout(30):
            while True:
                shown = {
                    host: order_of(each.updates[0])
                    for host in wanted
                    if (each := runtime.mesh.runtime.get(host, HostRuntime())).updates
                }
                if shown == {host: order_of(each) for host, each in wanted.items() if each}:
                    return
                await asyncio.sleep(0.002)

    async def live(self, behaviour: Behaviour, until: Callable[[], bool], most: int = 80) -> None:
        """Let ten seconds pass, again and again, until something is true."""
        for _ in range(most):
            await self.keeper.look()
            if until():
                return
            await self.heard()
            for agent in self.agents.values():
                agent.hear(behaviour)
                if agent.wanted is not None or self.clock.at >= agent.report_at:
                    await agent.report()
                    interval_s = self.app.controller.registrar.states.interval_s()
                    agent.report_at = self.clock.at + timedelta(seconds=interval_s)
            self.clock.at += timedelta(seconds=10)
        raise AssertionError(self.keeper.views())

    @property
    def stage(self) -> Stage:
        return self.keeper.view("next").progress.stage

    @property
    def ever_told(self) -> list[str]:
        return sorted(agent.host for agent in self.agents.values() if agent.ever)

    async def audited(self) -> list[str]:
        records = self.app.controller.store.audit(1000, query=AuditQuery(kind="Rollout"))
        return [each.action for each in reversed(records)]


@asynccontextmanager
async def a_fleet(directory: Path, monkeypatch: pytest.MonkeyPatch, many: int = MANY) -> AsyncIterator[Fleet]:
    clock = Clock()
    monkeypatch.setattr(controllers, "utc_now", clock)
    binary = directory / "envoy"
    binary.write_bytes(b"another envoy")
    signing.new_key(directory / "key.pem")
    put(directory, binary, NEW)
    async with running_app(directory, f'[artifacts]\ndir = "{directory}/mirror"') as app:
        names = [f"h{number}" for number in range(many)]
        tiers = {**dict.fromkeys(names, "web"), "other": "db"}
        hosts = "---\n".join(
            f"{{apiVersion: hostmesh.io/v1, kind: Host, metadata: {{name: {name}, labels: {{tier: {tier}}}}}}}\n"
            for name, tier in tiers.items()
        )
        applied = await app.apply(hosts)
        assert applied.status_code == 200, applied.text
        await app.published()
        agents = {name: Agent(name, app) for name in [*names, "other"]}
        for agent in agents.values():
            agent.connect()
            await agent.report()
        applied = await app.apply(ROLLOUT)
        assert applied.status_code == 200, applied.text
        yield Fleet(app, clock, agents, app.controller.rollouts)


def put(directory: Path, binary: Path, version: str) -> None:
    signing.put(
        [binary], directory / "key.pem", directory / "mirror", component="envoy", version=version, machine="x86_64"
    )


@pytest.mark.parametrize("bad", [crashes, hangs, answers_503], ids=lambda each: each.__name__)
async def test_a_bad_version_touches_the_canary_of_a_thousand_hosts(
    bad: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch) as fleet:
        await fleet.live(bad, lambda: fleet.stage is Stage.HALTED)
        await fleet.live(bad, lambda: bad is hangs or not fleet.keeper.view("next").progress.marked(Mark.RETURNING))
        for _ in range(20):
            fleet.clock.at += timedelta(minutes=1)
            await fleet.keeper.look()
        await fleet.heard()
        for agent in fleet.agents.values():
            agent.hear(bad)
        assert len(fleet.ever_told) == CANARY
        told_back = [agent for agent in fleet.agents.values() if agent.wanted is not None]
        assert len(told_back) == CANARY
        assert all(agent.wanted is not None and agent.wanted.back for agent in told_back)
        assert {agent.version for agent in fleet.agents.values()} == {OLD}
        assert "rollout.halted" in await fleet.audited()
        answer = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert (answer["stage"], answer["hosts_total"]) == ("halted", MANY)
        assert answer["reason"]


async def test_a_good_version_reaches_all_a_thousand_and_no_other_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    async with a_fleet(tmp_path, monkeypatch) as fleet:

        def done() -> bool:
            sizes.append(len(fleet.keeper.view("next").progress.hosts))
            return fleet.stage is Stage.DONE

        await fleet.live(good, done)
        assert [each for each in dict.fromkeys(sizes) if each] == [CANARY, MANY // 10, MANY // 2, MANY]
        assert fleet.agents["other"].ever == []
        await fleet.heard()
        for agent in fleet.agents.values():
            agent.hear(good)
        settled = [agent for agent in fleet.agents.values() if agent.wanted is not None and agent.wanted.settled]
        assert len(settled) == MANY


async def test_a_restart_of_the_controller_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        before = fleet.keeper.view("next").progress
        controller = fleet.app.controller
        again = RolloutKeeper(controller.store, controller.registrar, controller.hub, controller.mirror, fleet.clock)
        await again.open()
        assert again.view("next").progress == before
        fleet.keeper = again
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        assert all(agent.ever == [NEW] for agent in fleet.agents.values() if agent.host != "other")


async def test_operators_pause_resume_and_abort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        root = fleet.app.root
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        assert (await root.post("/v1/rollouts/next/pause")).json()["paused"]
        later = fleet.clock.at + timedelta(minutes=5)
        await fleet.live(good, lambda: fleet.clock.at >= later)
        assert len(fleet.keeper.view("next").progress.hosts) == 5
        assert not (await root.post("/v1/rollouts/next/resume")).json()["paused"]
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 20)
        assert (await root.post("/v1/rollouts/next/abort")).json()["stage"] == "aborted"
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.marked(Mark.RETURNED)) == 20)
        assert {agent.version for agent in fleet.agents.values()} == {OLD}
        again = await root.post("/v1/rollouts/next/resume")
        assert (again.status_code, "apply it again" in again.text) == (409, True)
        assert (await root.post("/v1/rollouts/none/pause")).status_code == 404
        actions = await fleet.audited()
        assert [each for each in actions if each in {"rollout.pause", "rollout.resume", "rollout.abort"}] == [
            "rollout.pause",
            "rollout.resume",
            "rollout.abort",
        ]


async def test_without_an_artifact_nobody_is_told_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        (tmp_path / "mirror" / "envoy" / NEW / "x86_64" / "manifest.sig").unlink()
        await fleet.live(good, lambda: True)
        answer = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert answer["hosts"] == []
        assert "hostmesh rollout sign" in answer["problems"][0]


async def test_a_rollout_that_is_deleted_tells_nobody_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        gone = await fleet.app.root.delete("/v1/objects/Rollout/-/next")
        assert gone.status_code == 200, gone.text
        await fleet.keeper.look()
        await fleet.heard()
        assert fleet.keeper.views() == []
        assert fleet.app.controller.store.rollouts() == []


async def test_rollouts_are_an_administrators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 1) as fleet:
        editor = await fleet.app.as_role("editor")
        for call in (
            fleet.app.outside.get("/v1/rollouts", headers=editor),
            fleet.app.outside.post("/v1/rollouts/next/abort", headers=editor),
            fleet.app.outside.post(
                "/v1/apply", json={"sources": [{"name": "a", "text": ROLLOUT.replace("next", "mine")}]}, headers=editor
            ),
        ):
            assert (await call).status_code == 403


@pytest.mark.parametrize("stream", ["stands", "ends"])
async def test_a_canary_that_was_well_and_falls_silent_halts_the_rollout(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.marked(Mark.WELL)) == CANARY)
        silent = fleet.agents[fleet.ever_told[0]]
        silent.silent = True
        if stream == "ends":
            assert silent.connection is not None
            fleet.app.controller.hub.disconnect(silent.connection)
        await fleet.live(good, lambda: fleet.stage is Stage.HALTED)
        assert (len(fleet.ever_told), silent.host in fleet.keeper.view("next").progress.reason) == (CANARY, True)


async def test_a_controller_that_was_away_for_long_holds_it_against_no_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == CANARY)
        controller = fleet.app.controller
        fleet.clock.at += timedelta(hours=5)
        again = RolloutKeeper(controller.store, controller.registrar, controller.hub, controller.mirror, fleet.clock)
        await again.open()
        fleet.keeper = again
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
