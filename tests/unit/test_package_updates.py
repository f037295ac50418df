"""Another version of a package, as the agent asks for it: it may end meanwhile, and the next one knows how it went."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hostmesh_agent import call_figures, chosen_binary, update_ledger
from hostmesh_agent.admin import Admin
from hostmesh_agent.config import AgentConfig, EnvoySettings, UpdateSettings
from hostmesh_agent.package_update import PackageUpdate, Place
from hostmesh_agent.updates import Updates
from hostmesh_agent.upgrader.record import DONE, FAILED, REFUSED, RUNNING, Memory, Result
from hostmesh_agent.upgrader.request import MANIFEST, PACKAGE, SIGNATURE, Request, Verb, parse
from hostmesh_agent.uplink import NotConnectedError
from hostmesh_api.manifest import AGENT
from hostmesh_api.v1.hostmesh_pb2 import FetchRequest, UpdateState, WantedUpdate
from hostmesh_controller.artifacts import Mirror
from hostmesh_controller.cli import signing
from unit.test_agent_updates import FakeEnvoys, sha256
from waiting import until

OLD, NEW = "0.1.0", "0.2.0"
DEB = b"a package of 0.2.0\n" * 1000
FAR = 4e9


@dataclass
class World:
    """A host that has its agent from a package, and the program of root's, which does as the test says."""

    top: Path
    key: str = ""
    agent: str = OLD
    asked: list[Request] = field(default_factory=list)
    answer: Callable[[Request], Result | None] = lambda _: Result(DONE)
    spooled: dict[str, bytes] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ("mirror", "packages")
    more: dict[str, Any] = field(default_factory=dict)
    away: bool = False
    changes: int = 0

    def __post_init__(self) -> None:
        for each in ("code", "envoy-package", "state", "state/envoy"):
            (self.top / each).mkdir()
        (self.top / "dpkg").touch()
        self.key = signing.new_key(self.top / "key.pem")
        self.bring_envoy(OLD)
        self.memory.prepare()

    @property
    def memory(self) -> Memory:
        return Memory(self.top / "hostmesh-upgrade")

    @property
    def config(self) -> AgentConfig:
        updates = UpdateSettings(("agent", "envoy"), (self.key,), self.sources, **self.more)
        envoy = EnvoySettings(rehearsal_s=1, probation_s=1)
        return AgentConfig(state_dir=self.top / "state", run_dir=self.top, envoy=envoy, updates=updates)

    def bring_envoy(self, version: str, envoy: str = "1.40.0") -> str:
        home, data = self.top / "envoy-package", f"#!envoy of {version}\n".encode()
        (home / "envoy").write_bytes(data)
        said = {"package": version, "version": envoy, "sha256": sha256(data)}
        (home / "manifest.json").write_text(json.dumps(said))
        return sha256(data)

    def sign(self, version: str = NEW, least: str = "", kind: str = "deb") -> WantedUpdate:
        file = self.top / f"hostmesh-agent_{version}_amd64.{kind}"
        file.write_bytes(DEB)
        names = {"component": AGENT, "version": version, "machine": "x86_64"}
        signing.put([file], self.top / "key.pem", self.top / "mirror", **names, least=least)
        signed = Mirror(self.top / "mirror").signed(**names)
        return WantedUpdate(
            component=AGENT,
            version=version,
            manifest=signed.manifest,
            signature=signed.signature,
            rollout="r1",
            attempt=1,
        )

    async def fetch(self, request: FetchRequest) -> bytes:
        if self.away:
            raise NotConnectedError("away")
        names = request.component, request.version, request.machine
        return Mirror(self.top / "mirror").piece(*names, request.offset, request.package)

    def ask(self, request: Request) -> None:
        instance = request.unit.removeprefix("hostmesh-upgrade@").removesuffix(".service")
        assert parse(instance) == request
        spool = self.top / "state" / "updates"
        self.spooled = {each.name: each.read_bytes() for each in spool.iterdir()} if spool.is_dir() else {}
        result = self.answer(request)
        if result is not None:
            self.memory.tell(request.token, result)
        # Last: who waits for it may tell another result from then on.
        self.asked.append(request)


@dataclass
class Agent:
    world: World
    updates: Updates
    envoys: FakeEnvoys

    async def told(self, wanted: WantedUpdate) -> UpdateState:
        self.updates.take([WantedUpdate.FromString(wanted.SerializeToString())])
        return await self.concluded()

    async def concluded(self) -> UpdateState:
        async with asyncio.timeout(20):
            while True:
                found = await self.updates.tell()
                if found and found[0].state in {"done", "failed", "refused"}:
                    return found[0]
                await asyncio.sleep(0.01)

    async def state(self) -> str:
        found = await self.updates.tell()
        return found[0].state if found else ""


@asynccontextmanager
async def an_agent(world: World, code: str = "code", *, crashes: bool = False, **more: Any) -> AsyncIterator[Agent]:
    """One life of the agent. One that `crashes` ends without having been told to."""
    config = world.config
    envoys = FakeEnvoys(config.envoy_dir, **more)
    home = world.top / "envoy-package"

    place = Place(
        code=world.top / code,
        home=world.top / "code",
        envoy=home,
        results=world.memory.directory,
        dpkg=world.top / "dpkg",
        agent_version=lambda: world.agent,
        ask=world.ask,
    )

    def changed() -> None:
        world.changes += 1

    packages = PackageUpdate(config, "x86_64", place)
    admin = Admin(world.top / "no-admin.sock")
    updates = Updates(config, "x86_64", envoys, admin, world.fetch, changed, packages)
    running = asyncio.ensure_future(updates.run())
    await asyncio.sleep(0)
    try:
        yield Agent(world, updates, envoys)
    finally:
        if not crashes:
            updates.told_to_end()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)

    async def look(_: Admin) -> dict[str, float]:
        return dict(made.figures)

    monkeypatch.setattr(call_figures, "look", look)
    monkeypatch.setattr("hostmesh_agent.package_update.LOOK_S", 0.01)
    monkeypatch.setattr("hostmesh_agent.envoy_update.LOOK_S", 0.01)
    monkeypatch.setattr("hostmesh_agent.update_fetch.FIRST_PAUSE_S", 0.01)
    return made


def upgrades(world: World, state: str = DONE, reason: str = "") -> Callable[[Request], Result]:
    """The program of root's as it is when it works: the next agent is what was asked for."""

    def answer(request: Request) -> Result:
        if state == DONE and request.package == "hostmesh-agent" and request.verb is not Verb.SETTLE:
            world.agent = request.version
        if state == DONE and request.package == "hostmesh-envoy":
            world.bring_envoy(request.version)
        return Result(state, reason)

    return answer


# The agent


async def test_what_was_signed_is_fetched_put_where_root_finds_it_and_asked_for_once(world: World) -> None:
    world.answer = lambda _: Result(RUNNING, until=FAR)
    wanted = world.sign()
    async with an_agent(world) as agent:
        agent.updates.take([wanted])
        await until(lambda: len(world.asked) == 1, "it is asked for")
        assert await agent.state() == "changing"
    assert world.spooled == {PACKAGE: DEB, MANIFEST: wanted.manifest, SIGNATURE: wanted.signature}
    (asked,) = world.asked
    assert (asked.package, asked.version, asked.verb) == ("hostmesh-agent", NEW, Verb.MIRROR)
    # The agent was restarted by it: the next one is the new one, and reads how it went.
    world.agent = NEW
    async with an_agent(world) as agent:
        agent.updates.take([wanted])
        await until(lambda: agent.updates._wake.is_set() is False, "it has begun")
        assert await agent.state() == "changing"
        world.memory.tell(asked.token, Result(DONE))
        state = await agent.concluded()
        assert (state.state, state.reason, state.restarts) == ("done", "", 0)
    async with an_agent(world) as agent:
        assert (await agent.told(wanted)).state == "done"
    assert world.asked == [asked]


async def test_a_former_agent_that_was_put_back_tells_why_and_does_not_try_again(world: World) -> None:
    world.answer = lambda _: Result(FAILED, "the agent did not come up: it ended 3 times; 0.1.0 was put back")
    wanted = world.sign()
    for _ in range(2):
        async with an_agent(world) as agent:
            state = await agent.told(wanted)
            assert (state.state, "did not come up" in state.reason) == ("failed", True)
    assert len(world.asked) == 1
    wanted.attempt = 2
    async with an_agent(world) as agent:
        assert (await agent.told(wanted)).state == "failed"
    assert len({each.token for each in world.asked}) == 2


async def test_what_root_refuses_is_refused(world: World) -> None:
    world.answer = lambda _: Result(REFUSED, "no copy to go back to")
    async with an_agent(world) as agent:
        state = await agent.told(world.sign())
        assert (state.state, state.reason) == ("refused", "no copy to go back to")


async def test_an_agent_that_is_not_what_was_asked_for_has_failed(world: World) -> None:
    async with an_agent(world) as agent:
        state = await agent.told(world.sign())
        assert (state.state, "this agent is 0.1.0" in state.reason) == ("failed", True)


async def test_a_host_that_has_no_package_says_so_and_asks_nobody(world: World) -> None:
    (world.top / "site-packages").mkdir()
    async with an_agent(world, code="site-packages") as agent:
        state = await agent.told(world.sign())
        assert (state.state, "was not installed from the package hostmesh-agent" in state.reason) == ("refused", True)
    assert world.asked == []


async def test_a_unit_that_does_not_begin_or_ends_without_a_word_has_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostmesh_agent.package_update.BEGINS_WITHIN_S", 0.05)
    world.answer = lambda _: None
    wanted = world.sign()
    async with an_agent(world) as agent:
        assert "did not begin" in (await agent.told(wanted)).reason
        world.answer = lambda _: Result(RUNNING, until=1.0)
        wanted.attempt = 2
        assert "ended without a word" in (await agent.told(wanted)).reason

        def refuse(_: Request) -> Result:
            raise OSError("Access denied")

        world.answer, wanted.attempt = refuse, 3
        assert "Access denied" in (await agent.told(wanted)).reason


async def test_a_host_goes_back_to_the_agent_it_had(world: World) -> None:
    world.answer = upgrades(world)
    async with an_agent(world) as agent:
        assert (await agent.told(world.sign())).state == "done"
        back = WantedUpdate(component=AGENT, version=NEW, rollout="r1", attempt=2, back=True)
        assert (await agent.told(back)).state == "done"
        assert [(each.verb, each.version) for each in world.asked] == [(Verb.MIRROR, NEW), (Verb.BACK, OLD)]
        other = WantedUpdate(component=AGENT, version=NEW, rollout="r2", attempt=2, back=True)
        assert (await agent.told(other)).state == "done"
        assert len(world.asked) == 2


async def test_the_repository_needs_no_signature_and_the_owners_word(world: World) -> None:
    wanted = WantedUpdate(component=AGENT, version=NEW, rollout="r1", attempt=1, source="packages")
    world.answer = upgrades(world)
    async with an_agent(world) as agent:
        assert (await agent.told(wanted)).state == "done"
    assert [each.verb for each in world.asked] == [Verb.PACKAGES]
    world.agent, world.sources, wanted.attempt = OLD, ("mirror",), 2
    async with an_agent(world) as agent:
        state = await agent.told(wanted)
        assert (state.state, "sources" in state.reason) == ("refused", True)
    world.sources, world.more, wanted.attempt = ("packages",), {"min_package": "0.3.0"}, 3
    async with an_agent(world) as agent:
        assert "min_package" in (await agent.told(wanted)).reason
    assert len(world.asked) == 1


async def test_a_manifest_without_this_hosts_kind_of_package_is_refused(world: World) -> None:
    async with an_agent(world) as agent:
        assert "names no .deb" in (await agent.told(world.sign(kind="rpm"))).reason


async def test_once_it_is_everywhere_root_raises_the_floor(world: World) -> None:
    world.answer = upgrades(world)
    wanted = world.sign(least=NEW)
    async with an_agent(world) as agent:
        assert (await agent.told(wanted)).state == "done"
        wanted.settled = True
        agent.updates.take([wanted])
        await until(lambda: world.asked[-1].verb is Verb.SETTLE, "it is settled")
        assert world.spooled[MANIFEST] == wanted.manifest
        older = world.sign(OLD)
        older.rollout = "r2"
        state = await agent.told(older)
        assert (state.state, "floor of this host" in state.reason) == ("refused", True)


async def test_ends_that_nobody_asked_for_are_counted(world: World) -> None:
    world.answer = upgrades(world)
    wanted = world.sign()
    async with an_agent(world, crashes=True) as agent:
        assert (await agent.told(wanted)).restarts == 0
    async with an_agent(world) as agent:
        assert (await agent.told(wanted)).restarts == 1
    # This one was told to end.
    async with an_agent(world, crashes=True) as agent:
        assert (await agent.told(wanted)).restarts == 1
    async with an_agent(world) as agent:
        assert (await agent.told(wanted)).restarts == 2


async def test_calls_are_counted_since_the_change_for_envoy_goes_on(world: World) -> None:
    world.answer = upgrades(world)
    world.figures = {"calls": 1000.0, "failed": 5.0, "timed": 1000.0, "time_ms": 3000.0}
    wanted = world.sign()
    async with an_agent(world) as agent:
        await agent.told(wanted)
        world.figures = {"calls": 1100.0, "failed": 55.0, "timed": 1100.0, "time_ms": 4000.0}
        (state,) = await agent.updates.tell()
        assert (state.before.calls, state.before.failed) == (1000, 5)
        assert (state.after.calls, state.after.failed, state.after.time_ms) == (100, 50, 1000.0)
        world.figures = {"calls": 20.0, "failed": 1.0, "timed": 20.0, "time_ms": 40.0}
        (state,) = await agent.updates.tell()
        assert state.after.calls == 20  # another Envoy counts anew


async def test_two_components_do_not_wait_for_each_other_where_one_is_held_up(world: World) -> None:
    world.answer = upgrades(world)
    async with an_agent(world) as agent:
        world.away = True
        agent.updates.take([world.sign()])
        await until(lambda: world.changes > 0, "it fetches")
        envoy = WantedUpdate(component="envoy", version=NEW, rollout="e", attempt=1, source="packages")
        agent.updates.take([envoy])
        assert (await agent.concluded()).component == "envoy"


# The package of Envoy


def envoy_wanted(attempt: int = 1, *, back: bool = False, version: str = NEW) -> WantedUpdate:
    return WantedUpdate(component="envoy", version=version, rollout="e1", attempt=attempt, back=back, source="packages")


async def test_a_packages_envoy_is_brought_and_the_two_envoys_change(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = world.top / "envoy-package"
    monkeypatch.setattr("hostmesh_agent.chosen_binary.install.__defaults__", (home,))
    world.answer = upgrades(world)
    async with an_agent(world) as agent:
        agent.envoys.run(chosen_binary.install(world.config, home))
        assert (await agent.told(envoy_wanted())).state == "done"
        new = sha256(f"#!envoy of {NEW}\n".encode())
        assert agent.envoys.installed is not None
        assert agent.envoys.installed.sha256 == new
        assert (await agent.told(envoy_wanted(2, back=True))).state == "done"
        assert agent.envoys.installed.sha256 != new
    assert [(each.package, each.verb, each.version) for each in world.asked] == [
        ("hostmesh-envoy", Verb.PACKAGES, NEW),
        ("hostmesh-envoy", Verb.BACK, OLD),
    ]


async def test_a_packages_envoy_that_does_not_serve_goes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    home = world.top / "envoy-package"
    monkeypatch.setattr("hostmesh_agent.chosen_binary.install.__defaults__", (home,))

    def answer(request: Request) -> Result:
        world.bring_envoy(request.version, "1.41.0" if request.version == NEW else "1.40.0")
        return Result(DONE)

    world.answer = answer
    async with an_agent(world, bad="it ended before it served") as agent:
        agent.envoys.run(chosen_binary.install(world.config, home))
        state = await agent.told(envoy_wanted())
        assert (state.state, state.reason) == ("failed", "it ended before it served")
        assert chosen_binary.install(world.config, home).sha256 == sha256(f"#!envoy of {OLD}\n".encode())
    assert [each.verb for each in world.asked] == [Verb.PACKAGES, Verb.BACK]


async def test_an_envoy_below_the_owners_floor_is_not_run_whatever_package_it_is_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = world.top / "envoy-package"
    monkeypatch.setattr("hostmesh_agent.chosen_binary.install.__defaults__", (home,))
    world.more = {"min_envoy": "1.40.0"}

    def answer(request: Request) -> Result:
        world.bring_envoy(request.version, "1.39.0" if request.version == NEW else "1.40.0")
        return Result(DONE)

    world.answer = answer
    async with an_agent(world) as agent:
        agent.envoys.run(chosen_binary.install(world.config, home))
        state = await agent.told(envoy_wanted())
        assert (state.state, "min_envoy" in state.reason) == ("failed", True)
        assert agent.envoys.upgrades == []
    assert [each.verb for each in world.asked] == [Verb.PACKAGES, Verb.BACK]


async def test_a_host_whose_envoy_is_no_packages_says_so(world: World) -> None:
    (world.top / "envoy-package" / "manifest.json").write_text('{"version": "1.40.0"}')
    async with an_agent(world) as agent:
        assert "too old to say so" in (await agent.told(envoy_wanted())).reason
    (world.top / "own").write_bytes(b"own")
    config = world.config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "config", replace(config, envoy=replace(config.envoy, binary=world.top / "own")))
        async with an_agent(world) as agent:
            assert "agent.toml names envoy.binary" in (await agent.told(envoy_wanted(2))).reason
    assert world.asked == []


# What is written down


def floor_of(world: World) -> str:
    return update_ledger.Ledger(world.config.state_dir, lambda: None).of(AGENT).floor


async def test_a_damaged_ledger_is_read_from_its_copy(world: World) -> None:
    world.answer = upgrades(world)
    wanted = world.sign(least=NEW)
    async with an_agent(world) as agent:
        await agent.told(wanted)
        wanted.settled = True
        agent.updates.take([wanted])
        paths = [world.config.state_dir / name for name in update_ledger.FILES]
        await until(lambda: all(b'"floor": "0.2.0"' in each.read_bytes() for each in paths), "it is settled")
    for name in update_ledger.FILES:
        path = world.config.state_dir / name
        data = path.read_bytes()
        for damage in (b"", b"{}", data.replace(b"0.2.0", b"0.0.2"), data[:-20]):
            path.write_bytes(damage)
            assert floor_of(world) == NEW
        path.unlink()
        assert floor_of(world) == NEW
        path.write_bytes(data)
        path.chmod(0o600)
    for name in update_ledger.FILES:
        (world.config.state_dir / name).write_bytes(b"")
    assert floor_of(world) == ""
