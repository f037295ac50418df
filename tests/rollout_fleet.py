"""Simulated agents at a real controller that rolls a version out to them."""

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
from hostmesh_controller.rollout.progress import Order, Stage, order_for
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
    took_on: str = ""
    """The version that it had when it was told to take another one."""
    refusal: str = ""
    """What it says against every push."""
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
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
            if self.refusal:
                ack.error_detail.message = self.refusal
            hub.receive(self.connection, ack, self.now())
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
            self.took_on = self.version
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
    component: str = "envoy"

    @property
    def meant(self) -> list[Agent]:
        """The agents that the rollouts are for."""
        return [agent for name, agent in self.agents.items() if name != "other"]

    async def heard(self) -> None:
        """Wait until every agent's HostConfig says what is kept of the rollouts, and nothing else."""
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
        wanted = dict.fromkeys(self.agents, None) | {host: order_for(view.progress, host) for _, host, view in told}
        async with asyncio.timeout(30):
            while True:
                updates = {host: runtime.mesh.runtime.get(host, HostRuntime()).updates for host in wanted}
                shown = {host: order_of(each[0]) for host, each in updates.items() if each}
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
        agents = {name: Agent(name, app, component, source, now=clock) for name in [*names, "other"]}
        for agent in agents.values():
            agent.connect()
            await agent.report()
        applied = await app.apply(rollout(component, source))
        assert applied.status_code == 200, applied.text
        yield Fleet(app, clock, agents, app.controller.rollouts, component)


def put(directory: Path, binary: Path, version: str) -> None:
    signing.put(
        [binary], directory / "key.pem", directory / "mirror", component="envoy", version=version, machine="x86_64"
    )


def put_more(directory: Path, *versions: str) -> None:
    """Sign more versions of both."""
    for version in versions:
        put(directory, directory / "envoy", version)
        put_agent(directory, version)


async def relabel(app: App, host: str, tier: str) -> None:
    labelled = f"{{apiVersion: hostmesh.io/v1, kind: Host, metadata: {{name: {host}, labels: {{tier: {tier}}}}}}}"
    applied = await app.apply(labelled)
    assert applied.status_code == 200, applied.text


def put_agent(directory: Path, version: str) -> None:
    for kind, name in (("deb", f"hostmesh-agent_{version}_amd64.deb"), ("rpm", f"hostmesh-agent-{version}-1.rpm")):
        (directory / name).write_bytes(f"a package of {kind}".encode())
    files = [directory / f"hostmesh-agent_{version}_amd64.deb", directory / f"hostmesh-agent-{version}-1.rpm"]
    names = {"component": "agent", "version": version, "machine": "x86_64"}
    signing.put(files, directory / "key.pem", directory / "mirror", **names)


def leave_the_line(agent: Agent) -> None:
    assert agent.connection is not None
    agent.app.controller.hub.disconnect(agent.connection)
    agent.connection, agent.silent = None, True


async def come_back(agent: Agent) -> None:
    agent.silent = False
    agent.connect()
    await agent.report()
