"""What an agent notices of disk, limits, clock and addresses, and what it calls it."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hostmesh_agent import vital_signs, vitals
from hostmesh_agent.alarms import CODES, Alarm, Alarms
from hostmesh_agent.rotation import Failure, Renew, Validity, Wait, next_action
from hostmesh_agent.vital_signs import Vigil
from hostmesh_agent.vitals import Reading, Room, Shift

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
WELL = Reading(
    NOW.timestamp(), 1000.0, 900.0, (Room("/var/lib/hostmesh", 1 << 30, False),), 40, 4096, 50 << 20, 192 << 20
)


def after(seconds: float, before: Reading = WELL, jump_s: float = 0.0, slept_s: float = 0.0) -> Reading:
    return replace(
        before,
        wall_s=before.wall_s + seconds + slept_s + jump_s,
        boottime_s=before.boottime_s + seconds + slept_s,
        monotonic_s=before.monotonic_s + seconds,
    )


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 400 * 86400.0, -400 * 86400.0])
def test_a_clock_that_was_set_is_told_from_a_machine_that_slept(jump_s: float) -> None:
    assert vitals.shift(WELL, after(10, jump_s=jump_s)) == Shift(jump_s, 0.0)
    assert vitals.shift(WELL, after(10, slept_s=7200)) == Shift(0.0, 7200.0)
    assert vitals.shift(WELL, after(10, jump_s=jump_s, slept_s=7200)).matters
    assert not vitals.shift(WELL, after(10, jump_s=0.5)).matters


def test_what_is_near_its_limit_has_its_name() -> None:
    assert vitals.of_limits(WELL) == []
    assert [each.code for each in vitals.of_limits(replace(WELL, files=3900, memory_bytes=190 << 20))] == [
        "limits.files",
        "limits.memory",
    ]
    assert [each.code for each in vitals.of_limits(replace(WELL, max_files=64))] == ["limits.files"]
    assert vitals.of_limits(replace(WELL, max_memory_bytes=0, memory_bytes=1 << 40)) == []


def test_a_disk_that_is_full_or_read_only_has_its_name() -> None:
    rooms = (Room("/a", 1 << 20, False), Room("/b", 1 << 40, True), Room("/c", None, False), Room("/d", 1 << 40, False))
    assert [(each.code, each.text.split()[0]) for each in vitals.of_disk(rooms)] == [
        ("disk.full", "/a"),
        ("disk.read-only", "/b"),
    ]


def test_a_clock_before_the_certificates_beginning_or_behind_its_end_is_named_and_nothing_is_thrown_away() -> None:
    begin, end = NOW - HOUR, NOW + 2 * DAY
    assert vitals.of_certificate(NOW, begin, end) == []
    (behind,) = vitals.of_certificate(NOW - 400 * DAY, begin, end)
    (ahead,) = vitals.of_certificate(NOW + 400 * DAY, begin, end)
    assert (behind.code, ahead.code) == ("clock.behind", "clock.certificate-ended")
    assert "2025-04-27" in behind.text
    assert "set the clock; nothing is thrown away" in behind.text
    assert "comes back by its last key" in ahead.text


def test_an_address_that_the_host_has_no_more_is_named() -> None:
    used = [("shop/cart", "10.0.0.1"), ("shop/web", ""), ("shop/db", "10.0.0.7")]
    (found,) = vitals.of_addresses(used, ["10.0.0.7", "fd00::7"])
    assert found.code == "address.changed"
    assert "shop/cart has the address 10.0.0.1" in found.text
    assert vitals.of_addresses(used, []) == []


class Watched:
    """A vigil that looks at what the test says."""

    def __init__(self) -> None:
        self.alarms = Alarms()
        self.reading = WELL
        self.shifts = self.changes = self.sleeps = 0
        self.addresses = ["10.0.0.1"]
        self.certificate = (NOW - DAY, NOW + 2 * DAY)
        self.vigil = Vigil(
            [Path("/")],
            self.alarms,
            lambda: self.certificate,
            lambda: [("shop/cart", "10.0.0.1")],
            lambda: self.addresses,
            self._shifted,
            self._changed,
            look=self._look,
        )

    def look(self, reading: Reading) -> list[str]:
        self.reading = reading
        self.vigil.look()
        return [each.code for each in self.alarms]

    def _look(self, _: Iterable[Path]) -> Reading:
        return self.reading

    def _shifted(self, went: Shift) -> None:
        self.shifts += 1
        self.sleeps += went.slept

    def _changed(self) -> None:
        self.changes += 1


def test_an_alarm_is_up_for_as_long_as_what_is_wrong_and_is_told_at_once() -> None:
    watched = Watched()
    assert watched.look(WELL) == []
    assert watched.changes == 0
    assert watched.look(replace(after(10), rooms=(Room("/a", 0, False),))) == ["disk.full"]
    assert watched.changes == 1
    watched.addresses = ["10.0.0.2"]
    assert watched.look(after(20)) == ["address.changed"]
    watched.addresses = ["10.0.0.1"]
    assert watched.look(after(30)) == []
    assert (watched.changes, watched.shifts) == (3, 0)


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 400 * DAY, -400 * DAY])
def test_a_jump_of_the_clock_makes_the_agent_look_at_its_certificates_at_once(jump: timedelta) -> None:
    watched = Watched()
    watched.look(WELL)
    found = watched.look(after(10, jump_s=jump.total_seconds()))
    certificate = {400 * DAY: "clock.certificate-ended", -400 * DAY: "clock.behind"}.get(jump)
    assert found == sorted(filter(None, ["clock.jumped", certificate]))
    assert watched.shifts == 1
    # Set right again: one more jump, and both are over.
    assert watched.look(after(20)) == []
    assert (watched.shifts, watched.sleeps) == (2, 0)


def test_a_jump_of_the_clock_is_told_for_an_hour_unless_the_clock_is_put_back() -> None:
    watched = Watched()
    watched.look(WELL)
    first = after(10, jump_s=3600)
    assert watched.look(first) == ["clock.jumped"]
    assert watched.look(after(vitals.TOLD_FOR_S - 1, first)) == ["clock.jumped"]
    # An hour further on is not back.
    second = after(vitals.TOLD_FOR_S - 1, first, jump_s=3600)
    assert watched.look(second) == ["clock.jumped"]
    assert watched.look(after(vitals.TOLD_FOR_S, second)) == []
    # What was told long ago is forgotten: back to where it began is a jump.
    assert watched.look(after(vitals.TOLD_FOR_S + 10, second, jump_s=-7200)) == ["clock.jumped"]


def test_a_machine_that_slept_is_no_jump_and_its_certificates_are_looked_at_at_once() -> None:
    watched = Watched()
    watched.look(WELL)
    assert watched.look(after(10, slept_s=8 * 3600)) == []
    assert (watched.shifts, watched.sleeps) == (1, 1)


@pytest.mark.parametrize("jump", [400 * DAY, -400 * DAY])
def test_renewals_that_failed_by_a_wrong_clock_are_not_put_off_when_it_is_right_again(jump: timedelta) -> None:
    certificate = {"web": Validity("00" * 8, NOW - DAY, NOW + DAY)}
    failed = {"web": Failure(9, NOW + jump)}
    due = NOW + timedelta(hours=6)
    assert next_action(certificate, failed, due) == Renew("web")
    # By a clock that is far behind nothing is due, and no wait is longer than some minutes.
    waiting = next_action(certificate, {}, NOW - 400 * DAY)
    assert isinstance(waiting, Wait)
    assert waiting.until - (NOW - 400 * DAY) <= timedelta(minutes=10)


def test_a_look_at_this_process_finds_what_is_there(tmp_path: Path) -> None:
    found = vital_signs.read([tmp_path, tmp_path / "absent"])
    assert found.files > 3
    assert 1 << 20 < found.memory_bytes < 1 << 40
    assert found.boottime_s >= found.monotonic_s - 1
    assert [each.read_only for each in found.rooms] == [False, False]
    assert found.rooms[1].free_bytes is None


def test_an_alarm_has_a_known_code_and_is_logged_once() -> None:
    alarms = Alarms()
    with pytest.raises(KeyError):
        alarms.up("no.such-code", "x")
    alarms.up("disk.full", "first")
    alarms.up("disk.full", "second")
    assert list(alarms) == [Alarm("disk.full", "second")]
    alarms.up("memory.not-written", "a", "calls")
    alarms.up("memory.not-written", "b", "health")
    alarms.down("memory.not-written", "calls")
    assert [str(each) for each in alarms] == ["disk.full: second", "memory.not-written: b"]
    assert all(code.count(".") == 1 and text.endswith(".") for code, text in CODES.items())
