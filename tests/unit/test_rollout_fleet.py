"""A thousand simulated agents at a real controller: a bad version reaches the canary, and nobody else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
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
  component: COMPONENT
  source: SOURCE
  version: {NEW}
  hosts: {{matchLabels: {{tier: web}}}}
  canary: {CANARY}
  waves: [10%, 50%]
  watch: 60s
  deadline: 300s
  absentAfter: 30m
"""


def rollout(component: str = "envoy", source: str = "mirror", name: str = "next", version: str = NEW) -> str:
    text = ROLLOUT.replace("COMPONENT", component).replace("SOURCE", source).replace("name: next", f"name: {name}")
    return text.replace(f"version: {NEW}", f"version: {version}")


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
    component: str = "envoy"
    source: str = "mirror"
    version: str = OLD
    wanted: WantedUpdate | None = None
    restarts: int = 0
    state: str = ""
    reason: str = ""
    after: CallFigures = field(default_factory=CallFigures)
    silent: bool = False
    leaves: bool = False
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
        if self.connection is None:
            return
        hub = self.app.controller.hub
        for push in hub.pushes(self.connection):
            response = DeltaDiscoveryResponse.FromString(push.data)
            for resource in response.resources:
                self._take(HostConfig.FromString(resource.resource.value), behaviour)
            ack = DeltaDiscoveryRequest(type_url=response.type_url, response_nonce=response.nonce)
            hub.receive(self.connection, ack, datetime.now(UTC))
        if self.leaves:
            leave_the_line(self)

    def _take(self, config: HostConfig, behaviour: Behaviour) -> None:
        wanted = next((each for each in config.updates if each.component == self.component), None)
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
        of_agent, of_package = self.component == "agent", self.source == "packages"
        made = HostReport(
            facts=HostFacts(
                machine="x86_64",
                agent_version=self.version if of_agent else "0.9.0",
                envoy_package=self.version if of_package and not of_agent else "0.9.0",
            ),
            envoy=EnvoyState(state="live", version="1.39.0" if of_agent or of_package else self.version),
        )
        if self.wanted is not None:
            wanted = self.wanted
            state = made.updates.add(
                component=self.component, version=wanted.version, rollout=wanted.rollout, attempt=wanted.attempt
            )
            state.back, state.state, state.reason = wanted.back, self.state, self.reason
            state.before.CopyFrom(CallFigures(calls=1000, failed=1, timed=1000, time_ms=2000))
            state.after.CopyFrom(self.after)
            state.restarts = self.restarts
        await self.app.controller.registrar.states.reported(self.host, bounded(made), frozenset())


def good(agent: Agent, wanted: WantedUpdate) -> None:
    agent.version, agent.state = wanted.version, "done"
    agent.after = CallFigures(calls=500, failed=1, timed=500, time_ms=1000)


def crashes(agent: Agent, _: WantedUpdate) -> None:
    agent.state, agent.reason = "failed", "it ended before it served: killed by SIGSEGV"


def hangs(agent: Agent, _: WantedUpdate) -> None:
    """The whole host: it never reports again."""
    agent.state, agent.silent = "changing", True


def ends_again_and_again(agent: Agent, wanted: WantedUpdate) -> None:
    """An agent that comes up, and ends each time somebody calls."""
    good(agent, wanted)
    agent.restarts = 1


def is_put_back(agent: Agent, _: WantedUpdate) -> None:
    agent.state, agent.reason = "failed", f"the agent did not come up: it ended 3 times; {OLD} was put back"


def never_comes_up(agent: Agent, _: WantedUpdate) -> None:
    """An agent that hangs, on a host whose program of root's hangs, too: its stream ends and it says no word more."""
    agent.leaves = True


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
        # Of two that are over the later one counts.
        told = sorted(
            (
                (view.progress.hosts[host].since, host, view)
                for view in self.keeper.views()
                for host in view.progress.hosts
            ),
            key=lambda each: each[0],
        )
        wanted = {host: order_for(view.progress, host) for _, host, view in told}
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
async def a_fleet(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    many: int = MANY,
    component: str = "envoy",
    source: str = "mirror",
) -> AsyncIterator[Fleet]:
    clock = Clock()
    monkeypatch.setattr(controllers, "utc_now", clock)
    binary = directory / "envoy"
    binary.write_bytes(b"another envoy")
    signing.new_key(directory / "key.pem")
    put(directory, binary, NEW)
    put_agent(directory, NEW)
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
        agents = {name: Agent(name, app, component, source) for name in [*names, "other"]}
        for agent in agents.values():
            agent.connect()
            await agent.report()
        applied = await app.apply(rollout(component, source))
        assert applied.status_code == 200, applied.text
        yield Fleet(app, clock, agents, app.controller.rollouts)


def put(directory: Path, binary: Path, version: str) -> None:
    signing.put(
        [binary], directory / "key.pem", directory / "mirror", component="envoy", version=version, machine="x86_64"
    )


def put_agent(directory: Path, version: str) -> None:
    for kind, name in (("deb", f"hostmesh-agent_{version}_amd64.deb"), ("rpm", f"hostmesh-agent-{version}-1.rpm")):
        (directory / name).write_bytes(f"a package of {kind}".encode())
    files = [directory / f"hostmesh-agent_{version}_amd64.deb", directory / f"hostmesh-agent-{version}-1.rpm"]
    names = {"component": "agent", "version": version, "machine": "x86_64"}
    signing.put(files, directory / "key.pem", directory / "mirror", **names)


BAD = [
    *(("envoy", "mirror", each) for each in (crashes, hangs, answers_503)),
    *(("agent", "mirror", each) for each in (is_put_back, hangs, never_comes_up, answers_503, ends_again_and_again)),
    *(("envoy", "packages", each) for each in (crashes, answers_503)),
    ("agent", "packages", is_put_back),
]


@pytest.mark.parametrize(
    ("component", "source", "bad"), BAD, ids=lambda each: each if isinstance(each, str) else each.__name__
)
async def test_a_bad_version_touches_the_canary_of_a_thousand_hosts(
    component: str, source: str, bad: Behaviour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, MANY, component, source) as fleet:
        await fleet.live(bad, lambda: fleet.stage is Stage.HALTED)
        gone = bad in {hangs, never_comes_up}
        await fleet.live(bad, lambda: gone or not fleet.keeper.view("next").progress.marked(Mark.RETURNING))
        for _ in range(20):
            fleet.clock.at += timedelta(minutes=1)
            await fleet.keeper.look()
        await fleet.heard()
        for agent in fleet.agents.values():
            agent.hear(bad)
        assert len(fleet.ever_told) == CANARY
        told_back = [agent for agent in fleet.agents.values() if agent.wanted is not None]
        # One that is cut off does not hear it yet.
        assert len(told_back) == CANARY
        assert bad is never_comes_up or all(agent.wanted is not None and agent.wanted.back for agent in told_back)
        assert {agent.version for agent in fleet.agents.values()} == {OLD}
        assert "rollout.halted" in await fleet.audited()
        answer = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert (answer["stage"], answer["hosts_total"]) == ("halted", MANY)
        assert answer["reason"]


@pytest.mark.parametrize(("component", "source"), [("envoy", "mirror"), ("agent", "mirror"), ("agent", "packages")])
async def test_a_good_version_reaches_all_a_thousand_and_no_other_host(
    component: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    async with a_fleet(tmp_path, monkeypatch, MANY, component, source) as fleet:

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


async def test_a_rollout_for_labels_that_no_host_has_waits_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.app.apply(rollout(name="mistaken").replace("tier: web", "tier: wev"))
        await fleet.live(good, lambda: True)
        answer = (await fleet.app.root.get("/v1/rollouts/mistaken")).json()
        assert (answer["stage"], answer["hosts"]) == ("running", [])
        assert answer["problems"] == [
            "no Host has the labels {tier: wev} (metadata.labels of the Host, not of its workloads)"
        ]


async def test_a_rollout_at_work_is_not_deleted_unless_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        root = fleet.app.root
        refused = await root.delete("/v1/objects/Rollout/-/next")
        assert (refused.status_code, "hostmesh rollout abort next" in refused.text) == (409, True)
        await root.post("/v1/rollouts/next/abort")
        refused = await root.delete("/v1/objects/Rollout/-/next")
        assert (refused.status_code, "5 of its hosts have not gone back yet" in refused.text) == (409, True)
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.marked(Mark.RETURNED)) == 5)
        assert (await root.delete("/v1/objects/Rollout/-/next")).status_code == 200
        await fleet.keeper.look()
        assert fleet.keeper.views() == []
        assert fleet.app.controller.store.rollouts() == []


async def test_a_rollout_that_is_deleted_all_the_same_tells_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10) as fleet:
        await fleet.live(good, lambda: len(fleet.keeper.view("next").progress.hosts) == 5)
        key = {"kind": "Rollout", "namespace": "", "name": "next"}
        gone = await fleet.app.root.post("/v1/delete", json={"keys": [key], "confirmed": True})
        assert gone.status_code == 409, gone.text
        gone = await fleet.app.root.post("/v1/delete", json={"keys": [key], "abandon": True})
        assert gone.status_code == 200, gone.text
        await fleet.keeper.look()
        await fleet.heard()
        assert fleet.keeper.views() == []


def leave_the_line(agent: Agent) -> None:
    assert agent.connection is not None
    agent.app.controller.hub.disconnect(agent.connection)
    agent.connection, agent.silent = None, True


async def come_back(agent: Agent) -> None:
    agent.silent = False
    agent.connect()
    await agent.report()


ABSENT = [f"h{number}" for number in range(30, 40)]


async def test_absent_hosts_keep_no_rollout_open_and_get_it_when_they_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40, "agent") as fleet:
        for name in ABSENT:
            leave_the_line(fleet.agents[name])
        began = fleet.clock.at
        await fleet.live(good, lambda: fleet.stage is Stage.DONE, 400)
        # They were waited for, as long as the Rollout says.
        assert fleet.clock.at - began >= timedelta(minutes=30)
        answer = (await fleet.app.root.get("/v1/rollouts/next")).json()
        assert (answer["stage"], sorted(answer["absent"])) == ("done", sorted(ABSENT))
        assert len(fleet.ever_told) == 30
        for name in ABSENT:
            await come_back(fleet.agents[name])
        await fleet.live(good, lambda: not fleet.keeper.view("next").progress.in_hand and len(fleet.ever_told) == 40)
        assert {fleet.agents[name].version for name in ABSENT} == {NEW}
        assert (await fleet.app.root.get("/v1/rollouts/next")).json()["absent"] == []
        await fleet.heard()
        for agent in fleet.agents.values():
            agent.hear(good)
        assert all(each.wanted is not None and each.wanted.settled for each in fleet.agents.values() if each.ever)


async def test_an_absent_host_that_fails_goes_back_alone_and_no_other_absent_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 40, "agent") as fleet:
        for name in ABSENT:
            leave_the_line(fleet.agents[name])
        await fleet.live(good, lambda: fleet.stage is Stage.DONE, 400)
        first, *others = (fleet.agents[name] for name in ABSENT)
        await come_back(first)
        await fleet.live(is_put_back, lambda: fleet.keeper.view("next").progress.reason != "")
        for each in others:
            await come_back(each)
        await fleet.live(is_put_back, lambda: fleet.keeper.view("next").progress.marked(Mark.RETURNED) == [first.host])
        later = fleet.clock.at + timedelta(minutes=10)
        await fleet.live(good, lambda: fleet.clock.at >= later)
        assert len(fleet.ever_told) == 31
        view = fleet.keeper.view("next")
        assert (view.progress.stage, "which was absent" in view.progress.reason) == (Stage.DONE, True)
        assert sum(each.version == NEW for each in fleet.agents.values()) == 30
        resumed = await fleet.app.root.post("/v1/rollouts/next/resume")
        assert resumed.status_code == 200, resumed.text
        await fleet.live(good, lambda: not fleet.keeper.view("next").progress.in_hand and len(fleet.ever_told) == 40)
        assert sum(each.version == NEW for each in fleet.agents.values()) == 40


async def test_one_host_alone_never_stands_for_hosts_that_are_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that fails during the canary, for hours: when it is back, all get it little by little."""
    async with a_fleet(tmp_path, monkeypatch, 40, "agent") as fleet:
        await fleet.live(good, lambda: len(fleet.ever_told) == CANARY)
        rest = [each for each in fleet.agents.values() if not each.ever and each.host != "other"]
        for each in rest:
            leave_the_line(each)
        await fleet.live(good, lambda: fleet.stage is Stage.DONE, 400)
        assert len(fleet.ever_told) == CANARY
        for each in rest:
            await come_back(each)
        sizes: list[int] = []

        def all_have_it() -> bool:
            sizes.append(len(fleet.keeper.view("next").progress.hosts))
            return len(fleet.ever_told) == 40

        await fleet.live(good, all_have_it, 200)
        grown = list(dict.fromkeys(sizes))
        assert all(after <= 2 * before for before, after in pairwise(grown)), grown


async def test_a_newer_rollout_is_not_undone_by_one_that_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 10, "agent") as fleet:
        await fleet.live(good, lambda: fleet.stage is Stage.DONE)
        put_agent(tmp_path, "1.42.0")
        # By its name it comes before the other.
        applied = await fleet.app.apply(rollout("agent", name="aaa", version="1.42.0"))
        assert applied.status_code == 200, applied.text
        await fleet.live(good, lambda: fleet.keeper.view("aaa").progress.stage is Stage.DONE)
        later = fleet.clock.at + timedelta(hours=2)
        await fleet.keeper.look()
        fleet.clock.at = later
        await fleet.keeper.look()
        told = fleet.app.controller.hub.mesh.runtime
        async with asyncio.timeout(30):
            while {each.version for name in fleet.ever_told for each in told[name].updates} != {"1.42.0"}:
                await asyncio.sleep(0.002)
                told = fleet.app.controller.hub.mesh.runtime
        assert {fleet.agents[name].version for name in fleet.ever_told} == {"1.42.0"}
        assert all(agent.ever == [NEW, "1.42.0"] for agent in fleet.agents.values() if agent.ever)


async def test_a_rollout_of_envoy_and_one_of_the_agent_take_turns_on_a_host_and_both_reach_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_fleet(tmp_path, monkeypatch, 20, "agent") as fleet:
        applied = await fleet.app.apply(rollout("envoy", name="proxy"))
        assert applied.status_code == 200, applied.text
        proxies = {name: Agent(name, fleet.app) for name in fleet.agents}
        both: list[str] = []

        async def step(_: int) -> bool:
            await fleet.keeper.look()
            views = {each.name: each.progress for each in fleet.keeper.views()}
            both.extend(views["next"].in_hand & views["proxy"].in_hand)
            return all(each.stage is Stage.DONE and not each.absent and not each.in_hand for each in views.values())

        for number in range(300):
            if await step(number):
                break
            await settle(fleet, proxies)
            fleet.clock.at += timedelta(seconds=10)
        views = {each.name: each.progress for each in fleet.keeper.views()}
        assert {name: len(each.hosts) for name, each in views.items()} == {"next": 20, "proxy": 20}, views
        assert both == []


async def settle(fleet: Fleet, proxies: dict[str, Agent]) -> None:
    """Let hosts whose agent and whose Envoy may change do as they are told, and tell both in one report."""
    runtime = fleet.app.controller.hub.mesh.runtime
    wanted = {
        (host, each.component) for view in fleet.keeper.views() for host in view.progress.hosts for each in [view.spec]
    }
    async with asyncio.timeout(30):
        while not all(
            any(each.component == component for each in runtime.get(host, HostRuntime()).updates)
            for host, component in wanted
        ):
            await asyncio.sleep(0.002)
            runtime = fleet.app.controller.hub.mesh.runtime
    for name, agent in fleet.agents.items():
        made = HostReport(facts=HostFacts(machine="x86_64"))
        for update in runtime.get(name, HostRuntime()).updates:
            one = agent if update.component == "agent" else proxies[name]
            one.version = update.version
            made.updates.add(
                component=update.component,
                version=update.version,
                rollout=update.rollout,
                attempt=update.attempt,
                state="done",
            )
        made.facts.agent_version = agent.version
        made.envoy.CopyFrom(EnvoyState(state="live", version=proxies[name].version))
        await fleet.app.controller.registrar.states.reported(name, bounded(made), frozenset())


async def test_rollouts_are_an_administrators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_fleet(tmp_path, monkeypatch, 1) as fleet:
        editor = await fleet.app.as_role("editor")
        for call in (
            fleet.app.outside.get("/v1/rollouts", headers=editor),
            fleet.app.outside.post("/v1/rollouts/next/abort", headers=editor),
            fleet.app.outside.post(
                "/v1/apply", json={"sources": [{"name": "a", "text": rollout(name="mine")}]}, headers=editor
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
