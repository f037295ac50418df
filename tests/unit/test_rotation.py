"""When certificates are renewed."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.rotation import (
    BACKOFF_LAST,
    LOOK_AGAIN,
    Failure,
    Renew,
    Renewal,
    Rotation,
    Validity,
    Wait,
    backoff,
    due_at,
    next_action,
    renew_at,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = timedelta(hours=72)
SERIAL = st.integers(min_value=1, max_value=2**128 - 1).map(lambda number: f"{number:032x}")


def validity(serial: str = "8" + "0" * 31, start: datetime = START, life: timedelta = LIFE) -> Validity:
    return Validity(serial, start, start + life)


def test_renewal_is_half_way() -> None:
    assert renew_at(START, START + LIFE) == START + timedelta(hours=36)


def test_a_certificate_without_life_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot begin"):
        renew_at(START, START)


@given(SERIAL)
def test_jitter_stays_within_a_tenth_of_life_and_is_the_same_at_each_look(serial: str) -> None:
    due = due_at(validity(serial))
    assert abs(due - renew_at(START, START + LIFE)) <= LIFE / 20
    assert due == due_at(validity(serial))


def test_hosts_that_joined_together_do_not_renew_together() -> None:
    dues = {due_at(validity(f"{number * 0x28F5C28:032x}")) for number in range(1, 100)}
    assert max(dues) - min(dues) > LIFE / 20


def test_nothing_due_waits_for_the_first_but_never_long() -> None:
    certificates = {"a": validity()}
    assert next_action(certificates, {}, START) == Wait(START + LOOK_AGAIN)
    soon = due_at(validity()) - timedelta(seconds=7)
    assert next_action(certificates, {}, soon) == Wait(due_at(validity()))


def test_nothing_to_keep_waits() -> None:
    assert next_action({}, {}, START) == Wait(START + LOOK_AGAIN)


def test_a_missing_one_comes_before_one_that_ends_soon_and_that_before_others() -> None:
    certificates = {"late": validity(life=LIFE * 2), "soon": validity(), "missing": None}
    now = START + LIFE * 2
    assert next_action(certificates, {}, now) == Renew("missing")
    del certificates["missing"]
    assert next_action(certificates, {}, now) == Renew("soon")


def test_an_expired_one_is_still_renewed() -> None:
    assert next_action({"a": validity()}, {}, START + LIFE * 9) == Renew("a")


def test_after_failures_the_wait_grows_to_its_bound() -> None:
    now = START + LIFE
    waits = []
    for count in range(1, 40):
        failures = {"a": Failure(count, now)}
        action = next_action({"a": validity()}, failures, now)
        assert isinstance(action, Wait)
        waits.append(action.until - now)
    assert waits == sorted(waits)
    assert waits[0] == timedelta(seconds=5)
    assert waits[-1] == BACKOFF_LAST == backoff(10**6)
    assert next_action({"a": validity()}, {"a": Failure(1, now)}, now + timedelta(seconds=5)) == Renew("a")


def test_one_that_fails_does_not_hold_up_another() -> None:
    now = START + LIFE
    assert next_action({"a": validity(), "b": validity()}, {"a": Failure(1, now)}, now) == Renew("b")


def test_a_failure_from_the_future_does_not_block() -> None:
    now = START + LIFE
    assert next_action({"a": validity()}, {"a": Failure(9, now + LIFE)}, now) == Renew("a")


async def test_the_loop_renews_what_is_due_and_knows_the_new_one() -> None:
    renewed = asyncio.Event()
    new = Validity("1", START + LIFE, START + LIFE * 2)

    async def renew() -> Validity:
        renewed.set()
        return new

    rotation = Rotation(lambda: START + LIFE)
    task = asyncio.ensure_future(rotation.run())
    rotation.keep({"a": Renewal(validity(), renew)})
    async with asyncio.timeout(5):
        await renewed.wait()
    await asyncio.sleep(0)
    assert rotation.validities() == {"a": new}
    task.cancel()


async def test_all_that_was_due_has_been_tried_once_it_came_or_failed() -> None:
    asked = asyncio.Queue[str]()
    answers = asyncio.Queue[Validity | EnrolError]()

    async def renew(name: str) -> Validity:
        asked.put_nowait(name)
        answer = await answers.get()
        if isinstance(answer, EnrolError):
            raise answer
        return answer

    rotation = Rotation(lambda: START)
    rotation.keep({name: Renewal(None, partial(renew, name)) for name in ("a", "b")})
    task, tried = asyncio.ensure_future(rotation.run()), asyncio.ensure_future(rotation.tried())
    async with asyncio.timeout(5):
        assert await asked.get() == "a"
        answers.put_nowait(EnrolError("away"))
        assert await asked.get() == "b"
        assert not tried.done()
        answers.put_nowait(validity())
        await tried
    assert rotation.validities() == {"a": None, "b": validity()}
    task.cancel()


@pytest.mark.parametrize("error", [EnrolError("away"), RuntimeError("a mistake of ours")])
async def test_the_loop_outlives_failures_and_tries_again(error: Exception) -> None:
    clock = [START + LIFE]
    tried = asyncio.Queue[int]()
    attempts = 0

    async def renew() -> Validity:
        nonlocal attempts
        attempts += 1
        tried.put_nowait(attempts)
        if attempts == 1:
            raise error
        return Validity("1", clock[0], clock[0] + LIFE)

    rotation = Rotation(lambda: clock[0])
    renewal = Renewal(validity(), renew)
    rotation.keep({"a": renewal})
    task = asyncio.ensure_future(rotation.run())
    async with asyncio.timeout(5):
        assert await tried.get() == 1
        assert rotation.validities() == {"a": validity()}
        clock[0] += timedelta(seconds=5)
        rotation.keep({"a": renewal})
        assert await tried.get() == 2
    task.cancel()
