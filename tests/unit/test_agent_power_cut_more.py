"""A power cut at any moment: what agent and upgrader write beside identity and configuration is whole after it."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

import killing
from hostmesh_agent import chosen_binary, hold, life_file
from hostmesh_agent.capture import Owner
from hostmesh_agent.cold_copy import FILE, ColdCopy
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.dns import Resolver
from hostmesh_agent.enforce import Enforcement
from hostmesh_agent.places import GREEN
from hostmesh_agent.update_ledger import Ledger
from hostmesh_agent.update_order import Order, Standing
from hostmesh_agent.upgrade import Life, Refused, Stage
from hostmesh_agent.upgrader.record import DONE, Memory, Pending, Record, Result, told
from hostmesh_agent.upgrader.request import Request, Verb
from hostmesh_agent.widening import Widening
from hostmesh_api.cold import CONFIG, encode_page, page_name
from hostmesh_api.delta import Resource
from hostmesh_api.v1.hostmesh_pb2 import ColdContent, ColdResource, ColdService

pytestmark = pytest.mark.skipif(not killing.CHANGING, reason="the numbers of this machine's system calls are not known")

TOKEN: Final = "0123456789abcdef"


@dataclass(frozen=True)
class Kept:
    """Something in a directory that is written and read; `old` is there before `new` is written."""

    write: Callable[[Path, Any], object]
    read: Callable[[Path], object]
    old: object
    new: object


def capture_that_did_no_harm(directory: Path) -> Widening:
    config = AgentConfig(state_dir=directory)
    owner = Owner()
    enforcement = Enforcement(dns=False, resolv_conf=directory / "resolv.conf", state_dir=directory, owner=owner)
    return Widening(config, owner, enforcement)


def standing(version: str) -> Standing:
    return Standing(Order(version, "next", 1), DONE, floor=version)


def nobody_is_told() -> None:
    pass


PENDING: Final = Pending("hostmesh-agent", "2", "1", TOKEN, connected=True)
KEPT: Final = {
    "which Envoy serves": Kept(
        life_file.write,
        life_file.read,
        Life(refused=(Refused("1.39.0", "it crashed"),)),
        Life(Stage.PROBATION, GREEN, "1.40.0"),
    ),
    "why capture is held": Kept(
        hold.write,
        hold.read,
        hold.Hold("SSH_LOST", "one", 1),
        hold.Hold("TRIAL_UNDONE", "two", 2, b"capture"),
    ),
    "the choice of Envoy's binary": Kept(
        chosen_binary.restore,
        chosen_binary.choice,
        {"binary": "/opt/a", "sha256": "1" * 64},
        {"binary": "/opt/b", "sha256": "2" * 64, "version": "1.40.0"},
    ),
    "the last good capture": Kept(
        lambda place, capture: capture_that_did_no_harm(place)._note_good(capture),
        lambda place: capture_that_did_no_harm(place)._last_good(),
        b"old",
        b"new",
    ),
    "orders and floors of updates": Kept(
        lambda place, what: Ledger(place, nobody_is_told).write("agent", what),
        lambda place: Ledger(place, nobody_is_told).of("agent"),
        standing("1.0.0"),
        standing("2.0.0"),
    ),
    "floors of the upgrader": Kept(
        lambda place, record: Memory(place).write(record),
        lambda place: Memory(place).read(),
        Record({"hostmesh-agent": "1"}),
        Record({"hostmesh-agent": "2"}, {"hostmesh-agent": "1"}),
    ),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_is_written_while_power_is_lost_at_any_step_is_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    kept, place = KEPT[what], tmp_path / "state"

    def prepare() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        kept.write(place, kept.old)

    found = []
    for _ in killing.at_every_step(lambda: kept.write(place, kept.new), prepare, place):
        with capture_logs() as logs:
            found.append(kept.read(place))
        assert [each for each in logs if each["log_level"] in {"warning", "error"}] == []
    assert (found[0], found[-1]) == (kept.old, kept.new)
    assert all(each in (kept.old, kept.new) for each in found)
    assert len(found) > 4
    kept.write(place, kept.new)
    assert kept.read(place) == kept.new


def page(version: str) -> Resource:
    cluster = ColdResource(
        names=["outbound|80||a.default.svc.cluster.local"], rest=random.Random(version).randbytes(20_000)
    )
    content = ColdContent(services=[ColdService(hosts=["a"], clusters=[cluster])])
    return encode_page(page_name(CONFIG, 1), content)


def test_a_cold_copy_that_loses_power_at_any_step_has_the_old_page_or_the_new_one_or_none(tmp_path: Path) -> None:
    """Its commits are not flushed one by one, so a cut may take the newest page; it never takes the file."""
    place, old, new = tmp_path / "cold", page("1"), page("2")

    def write(what: Resource) -> None:
        copy = ColdCopy(place, 1 << 20)
        copy.write([what], [])
        copy.close()

    def prepare() -> None:
        shutil.rmtree(place, ignore_errors=True)
        write(old)

    found = []
    for _ in killing.at_every_step(lambda: write(new), prepare, place):
        with capture_logs() as logs:
            copy = ColdCopy(place, 1 << 20)
            found.append(copy.versions().get(old.name, ""))
            copy.close()
        assert (logs, [each.name for each in place.glob(f"{FILE}*.unreadable")]) == ([], [])
    assert {old.version, new.version} <= {*found} <= {old.version, new.version, ""}
    assert found[-1] == new.version


@pytest.mark.parametrize("link", [False, True], ids=["file", "link"])
@pytest.mark.parametrize("verb", ["apply", "restore"])
def test_the_resolvers_file_is_what_it_was_or_is_to_be_wherever_power_is_lost(
    tmp_path: Path, verb: str, link: bool
) -> None:
    place, state = tmp_path / "etc", tmp_path / "state"
    path = place / "resolv.conf"

    def prepare() -> None:
        for each in (place, state):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir()
        if link:
            (place / "theirs").write_text("nameserver 192.0.2.53\n")
            path.symlink_to("theirs")
        else:
            path.write_text("nameserver 192.0.2.53\n")
        if verb == "restore":
            Resolver(path, state).apply()

    def seen() -> tuple[bool, bytes]:
        return path.is_symlink(), path.read_bytes()

    def act() -> None:
        getattr(Resolver(path, state), verb)()

    prepare()
    before = seen()
    act()
    after = seen()
    assert before != after
    found = []
    for _ in killing.at_every_step(act, prepare, place):
        found.append(seen())
        act()
        assert seen() == after
        assert [*place.glob(".*")] == []
    assert {*found} == {before, after}


def upgrader_at_work(directory: Path) -> Iterator[tuple[Memory, bool]]:
    """Yield what remains, each time, and whether an exchange of packages may have begun: `begin` had returned."""
    memory, former, mark = Memory(directory / "memory"), directory / "a_1.deb", directory / "begun"

    def prepare() -> None:
        shutil.rmtree(directory, ignore_errors=True)
        memory.prepare()
        former.write_bytes(b"the package before")

    def act() -> None:
        memory.begin(PENDING, former)
        mark.touch()
        memory.end()
        memory.tell(TOKEN, Result(DONE))

    for _ in killing.at_every_step(act, prepare, memory.directory):
        yield memory, mark.exists()


def test_the_package_to_put_back_is_whole_wherever_power_is_lost_while_another_one_may_be_there(tmp_path: Path) -> None:
    asked = Request(PENDING.package, PENDING.version, Verb.MIRROR, TOKEN)
    found = []
    for memory, begun in upgrader_at_work(tmp_path / "upgrade"):
        pending, result = memory.pending(), told(asked, memory.directory)
        assert pending in (None, PENDING)
        if pending is not None:
            # What the unit's last line and the next boot install.
            assert [each.read_bytes() for each in memory.back.iterdir()] == [b"the package before"]
        assert result in (None, Result(DONE))
        found.append((pending is not None, begun, result is not None))
    # Is it pending, may another one be there, is it told: what may be there is pending until it is proven.
    assert list(dict.fromkeys(found)) == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (False, True, False),
        (False, True, True),
    ]
