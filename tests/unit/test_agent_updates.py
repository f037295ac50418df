"""What an agent takes of a controller that brings another Envoy: what its owner's key has signed, whole, once."""

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from hostmesh_agent import (
    artifact,
    artifact_fetch,
    call_figures,
    chosen_binary,
    keys,
    launch,
    process,
    update_ledger,
    update_order,
)
from hostmesh_agent.admin import Admin
from hostmesh_agent.artifact import Installed
from hostmesh_agent.artifact_fetch import SPARE_BYTES, FetchError
from hostmesh_agent.config import AgentConfig, EnvoySettings, UpdateSettings, parse
from hostmesh_agent.config_table import ConfigError
from hostmesh_agent.places import BLUE, Instance
from hostmesh_agent.update_order import RefusedUpdateError
from hostmesh_agent.updates import Updates
from hostmesh_agent.uplink import NotConnectedError
from hostmesh_api.manifest import File, Manifest, order_of
from hostmesh_api.manifest import parse as parse_manifest
from hostmesh_api.v1.hostmesh_pb2 import FetchRequest, UpdateState, WantedUpdate
from hostmesh_controller.artifacts import CHUNK_BYTES, Mirror
from hostmesh_controller.cli import signing
from waiting import until

OLD, NEW = b"#!old envoy\n", b"#!new envoy\n" + bytes(range(256)) * 6000
VERSION = "1.41.0"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Owner:
    """Who signs, and the mirror that a controller serves."""

    directory: Path
    public: str = ""

    def __post_init__(self) -> None:
        self.public = self.public or signing.new_key(self.directory / "key.pem")

    @property
    def mirror(self) -> Mirror:
        return Mirror(self.directory / "mirror")

    def sign(self, data: bytes = NEW, version: str = VERSION, machine: str = "x86_64", least: str = "") -> WantedUpdate:
        binary = self.directory / "binary"
        binary.write_bytes(data)
        place = self.directory / "mirror"
        signing.put(
            [binary],
            self.directory / "key.pem",
            place,
            component="envoy",
            version=version,
            machine=machine,
            least=least,
        )
        signed = self.mirror.signed("envoy", version, machine)
        return WantedUpdate(
            component="envoy",
            version=version,
            manifest=signed.manifest,
            signature=signed.signature,
            rollout="r1",
            attempt=1,
        )

    def settings(self, **more: Any) -> UpdateSettings:
        return replace(UpdateSettings(("envoy",), (self.public,)), **more)


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    (tmp_path / "owner").mkdir()
    return Owner(tmp_path / "owner")


def judged(wanted: WantedUpdate, settings: UpdateSettings, floor: str = "", machine: str = "x86_64") -> Manifest:
    return update_order.judged(wanted, settings, floor, machine, keys.signed_by)


def test_what_the_owners_key_has_signed_is_taken(owner: Owner) -> None:
    assert judged(owner.sign(), owner.settings()).sha256 == sha256(NEW)


def test_nothing_is_taken_unless_the_owner_says_so(owner: Owner) -> None:
    with pytest.raises(RefusedUpdateError, match=r"\[updates\] controller"):
        judged(owner.sign(), UpdateSettings())


def test_another_key_a_changed_manifest_and_no_signature_are_refused(owner: Owner, tmp_path: Path) -> None:
    (tmp_path / "thief").mkdir()
    thief = Owner(tmp_path / "thief")
    good = owner.sign()
    changed = WantedUpdate.FromString(good.SerializeToString())
    changed.manifest = good.manifest.replace(sha256(NEW).encode(), sha256(OLD).encode())
    unsigned = WantedUpdate.FromString(good.SerializeToString())
    unsigned.signature = b""
    for bad in (thief.sign(), changed, unsigned):
        with pytest.raises(RefusedUpdateError, match="signed by no key"):
            judged(bad, owner.settings())


def test_a_signed_manifest_of_another_version_or_machine_is_refused(owner: Owner) -> None:
    wanted = owner.sign()
    wanted.version = "9.9.9"
    with pytest.raises(RefusedUpdateError, match=r"is of envoy 1.41.0, and not of envoy 9.9.9"):
        judged(wanted, owner.settings())
    with pytest.raises(RefusedUpdateError, match="is for x86_64, this host is aarch64"):
        judged(owner.sign(), owner.settings(), machine="aarch64")


@pytest.mark.parametrize(
    ("version", "min_envoy", "floor", "taken"),
    [
        ("1.39.9", "1.40.0", "", False),
        ("1.40.0", "1.40.0", "", True),
        ("1.40.0", "", "1.40.1", False),
        ("1.100.0", "1.40.0", "1.99.0", True),
        ("1.40.0-rc1", "1.40.0", "", False),
        ("1.40", "1.40.0", "", True),
    ],
)
def test_below_the_floor_nothing_is_taken(owner: Owner, version: str, min_envoy: str, floor: str, taken: bool) -> None:
    wanted, settings = owner.sign(version=version), owner.settings(min_envoy=min_envoy)
    if taken:
        assert judged(wanted, settings, floor).version == version
    else:
        with pytest.raises(RefusedUpdateError, match="floor of this host"):
            judged(wanted, settings, floor)


def test_a_manifest_that_is_none_is_said_to_be_so() -> None:
    good = Manifest("envoy", "1.0", "x86_64", "a" * 64, 5).encode()
    assert parse_manifest(good).size_bytes == 5
    for bad, why in (
        (b"{", "not JSON"),
        (b"[]", "it must have"),
        (good.replace(b'"1.0"', b'"../.."'), "version"),
        (good.replace(b": 5", b": true"), "size_bytes"),
        (good.replace(b": 5", b": 99999999999"), "size_bytes"),
        (good.replace(b"aaaa", b"AAAA"), "sha256"),
        (good.replace(b'"envoy"', b"7"), "strings"),
        (Manifest("envoy", "1.0", "x86_64", "a" * 64, 5, "2.0").encode(), "above"),
        (b" " * 5000, "more than"),
    ):
        with pytest.raises(ValueError, match=why):
            parse_manifest(bad)
    assert order_of("1.2.10") > order_of("1.2.9") > order_of("1.2.9-rc1")


def test_agent_toml_says_what_is_wrong(owner: Owner) -> None:
    assert parse(f'[updates]\ncontroller = ["envoy"]\nkeys = ["{owner.public}"]', "a").updates == owner.settings()
    # What the host's own package manager trusts needs no key of ours.
    assert parse('[updates]\ncontroller = ["agent"]\nsources = ["packages"]', "a").updates.keys == ()
    for text, why in (
        ('controller = ["envoy"]', "updates.keys: is empty"),
        ('controller = ["agent"]', "updates.keys: is empty"),
        ('sources = ["disk"]', "knows mirror, packages"),
        ('min_package = "new"', "must be a version"),
        ('controller = ["kernel"]', "knows envoy, agent"),
        ('keys = ["abc"]', "no public key"),
        ('min_envoy = "new"', "must be a version"),
    ):
        with pytest.raises(ConfigError, match=why):
            parse(f"[updates]\n{text}", "agent.toml")


# Fetching


FILE = File(sha256(NEW), len(NEW))


def pieces(data: bytes, asked: list[int], fail_at: int | None = None) -> Callable[[int], Any]:
    async def piece(offset: int) -> bytes:
        asked.append(offset)
        if fail_at is not None and offset >= fail_at:
            raise NotConnectedError("gone")
        return data[offset : offset + CHUNK_BYTES]

    return piece


async def test_a_whole_artifact_is_what_was_signed(tmp_path: Path) -> None:
    path = await artifact_fetch.fetch(FILE, tmp_path, pieces(NEW, []))
    assert path.read_bytes() == NEW
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (NEW[:-1] + b"x", "its sha256 is"),
        (NEW[: CHUNK_BYTES + 5], "it ends after"),
        (b"", "it ends after 0"),
        (NEW + b"more", "more comes than"),
    ],
    ids=["another", "truncated", "empty", "longer"],
)
async def test_what_is_not_what_was_signed_is_thrown_away(data: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=why):
        await artifact_fetch.fetch(FILE, tmp_path, pieces(data, []))
    assert list((tmp_path / artifact_fetch.DIRECTORY).iterdir()) == []


async def test_a_fetch_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    asked: list[int] = []
    with pytest.raises(NotConnectedError):
        await artifact_fetch.fetch(FILE, tmp_path, pieces(NEW, asked, fail_at=CHUNK_BYTES))
    path = await artifact_fetch.fetch(FILE, tmp_path, pieces(NEW, asked))
    assert asked.count(0) == 1
    assert path.read_bytes() == NEW


async def test_a_rest_that_was_damaged_is_fetched_anew(tmp_path: Path) -> None:
    part = artifact_fetch.part_of(tmp_path, FILE)
    part.parent.mkdir()
    part.write_bytes(b"damage" + NEW[6:CHUNK_BYTES])
    with pytest.raises(FetchError, match="sha256"):
        await artifact_fetch.fetch(FILE, tmp_path, pieces(NEW, []))
    assert (await artifact_fetch.fetch(FILE, tmp_path, pieces(NEW, []))).read_bytes() == NEW


async def test_a_full_disk_is_not_made_fuller(tmp_path: Path) -> None:
    asked: list[int] = []
    with pytest.raises(FetchError, match="no room"):
        await artifact_fetch.fetch(FILE, tmp_path, pieces(NEW, asked), lambda _: SPARE_BYTES)
    assert asked == []


async def test_rests_of_other_artifacts_go(tmp_path: Path) -> None:
    part = artifact_fetch.part_of(tmp_path, replace(FILE, sha256="b" * 64))
    part.parent.mkdir()
    part.write_bytes(b"rest")
    await artifact_fetch.fetch(FILE, tmp_path, pieces(NEW, []))
    assert not part.exists()


# All of it, with Envoys that change as the real ones do


@dataclass
class FakeEnvoys:
    """Takes a binary, and changes to it unless it is `bad`; what it runs is on disk, as it is with the real ones."""

    directory: Path
    bad: str = ""
    installed: Installed | None = None
    put_back: str = ""
    upgrades: list[str] = field(default_factory=list)

    @property
    def active(self) -> Instance:
        return BLUE

    def document(self) -> dict[str, Any]:
        return {"stage": "steady", "put_back": self.put_back}

    def take_binary(self, installed: Installed) -> None:
        if installed != self.installed:
            self.installed, self.put_back = installed, ""

    def upgrade(self) -> str:
        assert self.installed is not None
        self.upgrades.append(self.installed.version)
        if self.bad and self.installed.version == VERSION:
            self.put_back = self.bad
        else:
            self.run(self.installed)
        return ""

    def run(self, installed: Installed) -> None:
        record = process.Record(
            os.getpid(),
            launch.start_ticks(os.getpid()),
            launch.boot_id(),
            str(installed.path),
            installed.version,
            installed.sha256,
            "",
            "",
        )
        (self.directory / process.RECORD).write_text(json.dumps(asdict(record)))


@dataclass
class Host:
    config: AgentConfig
    envoys: FakeEnvoys
    owner: Owner
    updates: Updates
    away: bool = False
    fetched: list[int] = field(default_factory=list)
    changes: int = 0

    async def fetch(self, request: FetchRequest) -> bytes:
        if self.away:
            raise NotConnectedError("away")
        self.fetched.append(request.offset)
        try:
            return self.owner.mirror.piece(request.component, request.version, request.machine, request.offset)
        except OSError:
            metadata = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.NOT_FOUND, metadata, metadata, "no such artifact", None
            ) from None

    async def told(self, wanted: WantedUpdate) -> UpdateState:
        # A configuration is a message of its own each time.
        self.updates.take([WantedUpdate.FromString(wanted.SerializeToString())])
        (state,) = await self.concluded()
        return state

    async def concluded(self) -> list[UpdateState]:
        states: list[UpdateState] = []
        async with asyncio.timeout(20):
            while not states or states[0].state not in {"done", "failed", "refused"}:
                await asyncio.sleep(0.01)
                states = await self.updates.tell()
        return states

    @property
    def runs(self) -> str:
        record = process.read_record(self.config.envoy_dir)
        return "" if record is None else record.sha256

    def installed(self) -> Installed:
        return chosen_binary.install(self.config)


@asynccontextmanager
async def a_host(directory: Path, owner: Owner, **more: Any) -> AsyncIterator[Host]:
    """A host whose Envoy is OLD, by agent.toml."""
    state_dir = directory / "state"
    state_dir.mkdir(exist_ok=True)
    (state_dir / "envoy").mkdir(exist_ok=True)
    (directory / "old").write_bytes(OLD)
    settings = more.pop("settings", None) or owner.settings()
    envoy = EnvoySettings(binary=directory / "old", sha256=sha256(OLD), rehearsal_s=1, probation_s=1)
    config = AgentConfig(state_dir=state_dir, run_dir=directory, envoy=envoy, updates=settings)
    envoys = FakeEnvoys(config.envoy_dir, **more)
    if process.read_record(config.envoy_dir) is None:
        envoys.run(chosen_binary.install(config))
    host = Host(config, envoys, owner, None)  # type: ignore[arg-type]  # it and what it fetches with name each other

    def changed() -> None:
        host.changes += 1

    host.updates = Updates(config, "x86_64", envoys, Admin(directory / "no-admin.sock"), host.fetch, changed)
    running = asyncio.ensure_future(host.updates.run())
    try:
        yield host
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_an_update_is_fetched_installed_and_run_and_outlives_the_agent(tmp_path: Path, owner: Owner) -> None:
    wanted = owner.sign()
    async with a_host(tmp_path, owner) as host:
        state = await host.told(wanted)
        assert (state.state, state.reason, host.runs) == ("done", "", sha256(NEW))
        assert (host.installed().version, host.installed().sha256) == (VERSION, sha256(NEW))
        assert list((host.config.state_dir / artifact_fetch.DIRECTORY).iterdir()) == []
        assert host.changes > 1
    async with a_host(tmp_path, owner) as host:
        assert (await host.told(wanted)).state == "done"
        assert (host.envoys.upgrades, host.fetched) == ([], [])


async def test_one_that_is_put_back_is_not_chosen_any_more_and_not_tried_again(tmp_path: Path, owner: Owner) -> None:
    wanted = owner.sign()
    async with a_host(tmp_path, owner, bad="it ended before it served") as host:
        state = await host.told(wanted)
        assert (state.state, state.reason) == ("failed", "it ended before it served")
        assert (host.runs, host.installed().sha256) == (sha256(OLD), sha256(OLD))
    async with a_host(tmp_path, owner, bad="it ended before it served") as host:
        assert (await host.told(wanted)).state == "failed"
        assert host.envoys.upgrades == []
        wanted.attempt = 2
        assert (await host.told(wanted)).state == "failed"
        assert host.envoys.upgrades == [VERSION]


async def test_a_host_goes_back_to_what_it_had(tmp_path: Path, owner: Owner) -> None:
    wanted = owner.sign()
    async with a_host(tmp_path, owner) as host:
        assert (await host.told(wanted)).state == "done"
        back = WantedUpdate(component="envoy", version=VERSION, rollout="r1", attempt=2, back=True)
        assert (await host.told(back)).state == "done"
        assert (host.runs, host.installed().sha256) == (sha256(OLD), sha256(OLD))
        wanted.attempt = 3
        assert (await host.told(wanted)).state == "done"
        assert host.runs == sha256(NEW)


async def test_who_was_never_changed_has_nothing_to_go_back_to(tmp_path: Path, owner: Owner) -> None:
    async with a_host(tmp_path, owner) as host:
        back = WantedUpdate(component="envoy", version=VERSION, rollout="r1", attempt=1, back=True)
        assert (await host.told(back)).state == "done"
        assert host.envoys.upgrades == []


async def test_what_is_settled_and_was_not_this_hosts_last_order_changes_nothing(tmp_path: Path, owner: Owner) -> None:
    """The order of an older rollout that is over, and one that a host hears whose ledger is lost."""
    older, newer = owner.sign(), owner.sign(NEW + b"2", "1.42.0")
    newer.rollout = "r2"
    async with a_host(tmp_path, owner) as host:
        assert (await host.told(older)).state == "done"
        assert (await host.told(newer)).state == "done"
        older.settled = True
        assert await looked_at(host, older) == ""
        assert host.envoys.upgrades == [VERSION, "1.42.0"]
    for name in update_ledger.FILES:
        (host.config.state_dir / name).unlink()
    async with a_host(tmp_path, owner) as host:
        assert await looked_at(host, older) == ""
        assert (host.envoys.upgrades, host.runs) == ([], sha256(NEW + b"2"))


async def looked_at(host: Host, wanted: WantedUpdate) -> str:
    """Return what a host says of an order of Envoy's once it has looked at it, and at one of the agent's after it."""
    agent = WantedUpdate(component="agent", version=VERSION, rollout="r3", attempt=len(host.envoys.upgrades) + 1)
    host.updates.take([wanted, agent])
    states: dict[str, str] = {}
    async with asyncio.timeout(20):
        while states.get("agent") != "refused":
            await asyncio.sleep(0.01)
            states = {each.component: each.state for each in await host.updates.tell()}
    return states["envoy"]


async def test_a_host_that_allows_nothing_says_so_and_fetches_nothing(tmp_path: Path, owner: Owner) -> None:
    async with a_host(tmp_path, owner, settings=UpdateSettings()) as host:
        state = await host.told(owner.sign())
        assert (state.state, "agent.toml" in state.reason) == ("refused", True)
        assert (host.fetched, host.runs) == ([], sha256(OLD))


async def test_bytes_that_were_not_signed_are_never_run(tmp_path: Path, owner: Owner) -> None:
    wanted = owner.sign()
    place = tmp_path / "owner" / "mirror" / "envoy" / VERSION / "x86_64" / "artifact"
    place.write_bytes(NEW[:-1] + b"!")
    async with a_host(tmp_path, owner) as host:
        state = await host.told(wanted)
        assert (state.state, "sha256" in state.reason) == ("failed", True)
        assert (host.envoys.upgrades, host.runs) == ([], sha256(OLD))
        assert not list(host.config.state_dir.glob(f"envoy-bin/{VERSION}*"))


async def test_what_the_controller_does_not_have_fails(tmp_path: Path, owner: Owner) -> None:
    wanted = owner.sign()
    (tmp_path / "owner" / "mirror" / "envoy" / VERSION / "x86_64" / "artifact").unlink()
    async with a_host(tmp_path, owner) as host:
        state = await host.told(wanted)
        assert (state.state, "does not give it" in state.reason) == ("failed", True)


async def test_a_controller_that_is_away_is_waited_for(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostmesh_agent.update_fetch.FIRST_PAUSE_S", 0.01)
    async with a_host(tmp_path, owner) as host:
        host.away = True
        host.updates.take([owner.sign()])
        await until(lambda: host.changes > 0, "it began")
        (state,) = await host.updates.tell()
        assert state.state == "fetching"
        host.away = False
        (state,) = await host.concluded()
        assert state.state == "done"


async def test_an_order_that_is_taken_back_is_given_up(
    tmp_path: Path, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostmesh_agent.update_fetch.FIRST_PAUSE_S", 0.01)
    async with a_host(tmp_path, owner) as host:
        host.away = True
        host.updates.take([owner.sign()])
        await until(lambda: host.changes > 0, "it began")
        host.updates.take([])
        host.away = False
        other = owner.sign(NEW + b"2", "1.42.0")
        state = await host.told(other)
        assert (state.state, host.envoys.upgrades) == ("done", ["1.42.0"])


async def test_once_a_version_is_everywhere_there_is_no_way_below_its_least(tmp_path: Path, owner: Owner) -> None:
    wanted = owner.sign(least="1.41.0")
    older = owner.sign(OLD + b"1", "1.40.5")
    older.rollout = "r2"
    async with a_host(tmp_path, owner) as host:
        assert (await host.told(wanted)).state == "done"
        assert (await host.told(older)).state == "done"
        wanted.attempt = 2
        assert (await host.told(wanted)).state == "done"
        wanted.settled = True
        host.updates.take([wanted])
        await until(lambda: "1.41.0" in (host.config.state_dir / "updates.json").read_text().split("floor")[1], "floor")
        older.attempt = 2
        state = await host.told(older)
        assert (state.state, "floor" in state.reason) == ("refused", True)
        back = WantedUpdate(component="envoy", version=VERSION, rollout="r1", attempt=5, back=True)
        assert (await host.told(back)).state == "done"
        assert host.runs == sha256(NEW)


def test_times_of_calls_are_read_without_the_agents_own() -> None:
    text = (
        "# TYPE envoy_http_downstream_rq_time histogram\n"
        'envoy_http_downstream_rq_time_bucket{http_conn_manager_prefix="inbound_1",le="0.5"} 3\n'
        'envoy_http_downstream_rq_time_sum{http_conn_manager_prefix="inbound_1"} 120.5\n'
        'envoy_http_downstream_rq_time_count{http_conn_manager_prefix="inbound_1"} 10\n'
        'envoy_http_downstream_rq_time_sum{http_conn_manager_prefix="outbound"} 9.5\n'
        'envoy_http_downstream_rq_time_count{http_conn_manager_prefix="outbound"} 5\n'
        'envoy_http_downstream_rq_time_sum{http_conn_manager_prefix="admin"} 1000\n'
        'envoy_http_downstream_rq_time_count{http_conn_manager_prefix="admin"} 1\n'
    )
    assert call_figures.times_in(text) == (15, 130.0)


async def test_what_earlier_rollouts_brought_does_not_fill_the_disk(tmp_path: Path, owner: Owner) -> None:
    async with a_host(tmp_path, owner) as host:
        for number in range(5):
            wanted = owner.sign(NEW + bytes([number]), f"1.50.{number}")
            wanted.rollout = f"r{number}"
            assert (await host.told(wanted)).state == "done"
        names = sorted(each.name for each in (host.config.state_dir / "envoy-bin").iterdir())
        assert [name.partition("-")[0] for name in names] == ["1.50.2", "1.50.3", "1.50.4", "custom"]
        back = WantedUpdate(component="envoy", version="1.50.4", rollout="r4", attempt=2, back=True)
        assert (await host.told(back)).state == "done"
        assert host.runs == sha256(NEW + bytes([3]))


def test_two_threads_install_the_same_envoy_at_once(tmp_path: Path) -> None:
    (tmp_path / "envoy").write_bytes(NEW * 20)
    digest = sha256(NEW * 20)
    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            state = tmp_path / f"state{number}"
            state.mkdir()
            made = [pool.submit(artifact.install, tmp_path / "envoy", digest, state) for _ in range(8)]
            assert {each.result().sha256 for each in made} == {digest}
            assert sorted(each.name for each in next((state / "envoy-bin").iterdir()).iterdir()) == [
                "envoy",
                "verified.json",
            ]
