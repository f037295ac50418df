"""When two machines use one identity, and when it only looks like it."""

from datetime import UTC, datetime, timedelta

import pytest

from hostmesh_controller.clones import MAX_AGENTS, OVERLAP, Clone, Sighting, Sightings, observe, sighting

START = datetime(2026, 1, 1, tzinfo=UTC)
A, B = Sighting("a", "boot-1", "machine-1", "10.0.0.1"), Sighting("b", "boot-1", "machine-1", "10.0.0.2")
Word = tuple[Sighting, float]
"""Who speaks, how many seconds after the start."""


def told(*words: Word) -> Clone | None:
    """Return the first clone that is found when these are heard."""
    known = Sightings()
    for seen, at_s in words:
        known, clone = observe(known, seen, START + timedelta(seconds=at_s))
        if clone is not None:
            return clone
    return None


def every(seen: Sighting, start_s: int, end_s: int, step_s: int = 10) -> list[Word]:
    return [(seen, at) for at in range(start_s, end_s, step_s)]


def test_two_agents_that_are_both_heard_after_both_have_begun_are_two() -> None:
    words = sorted([*every(A, 0, 60), *every(B, 5, 65)], key=lambda word: word[1])
    clone = told(*words)
    assert clone == Clone(A, B)
    assert str(clone) == (
        "two agents speak with one identity, at 10.0.0.1 boot boot-1 machine machine- "
        "and at 10.0.0.2 boot boot-1 machine machine-"
    )


def test_a_copy_of_the_whole_disk_on_the_same_kernel_is_told_from_the_original() -> None:
    """As two containers are: they have one boot id, one machine id, and perhaps one address."""
    copy = Sighting("b", A.boot_id, A.machine, A.address)
    assert told(*sorted([*every(A, 0, 60), *every(copy, 5, 65)], key=lambda word: word[1])) is not None


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            [*every(A, 0, 60), *every(Sighting("b", "boot-2", "machine-1", "10.0.0.1"), 90, 200)], id="reboot"
        ),
        pytest.param(
            [(Sighting("a", "boot-1", "machine-1", f"10.0.0.{at % 3}"), at) for at in range(0, 300, 10)],
            id="addresses that change, and change back",
        ),
        pytest.param(
            [*every(A, 0, 60), *every(Sighting("a", "boot-1", "machine-2", "10.0.1.1"), 60, 200)], id="live migration"
        ),
        pytest.param(
            [word for n in range(20) for word in every(Sighting(f"a{n}", "boot-1"), n * 40, n * 40 + 40)],
            id="an agent that is restarted again and again",
        ),
        pytest.param(
            [*every(A, 0, 60), *every(B, 60, 90), (A, 60 + OVERLAP.seconds - 1), *every(B, 90, 200)],
            id="a call of the agent before that was under way",
        ),
        pytest.param(
            [*every(A, 0, 60), *every(B, 60, 200), *every(A, 200, 400), *every(Sighting("c"), 400, 600)],
            id="a machine put back to a snapshot of its memory, and its agent restarted later",
        ),
        pytest.param(
            [*every(Sighting(""), 0, 60), *every(A, 60, 200)], id="an agent that is new enough to say who it is"
        ),
    ],
)
def test_one_machine_is_never_taken_for_two(words: list[Word]) -> None:
    assert told(*words) is None


def test_a_thief_that_does_not_say_who_it_is_is_another_too() -> None:
    thief = Sighting("", address="192.0.2.1")
    assert told(*sorted([*every(A, 0, 100), *every(thief, 5, 105)], key=lambda word: word[1])) is not None


def test_what_is_remembered_is_bounded_whatever_a_peer_says() -> None:
    known = Sightings()
    for number in range(1000):
        known, _ = observe(known, sighting(f"{number}" * 1000, "b" * 1000, "m" * 1000, ""), START)
    assert len(known.agents) == MAX_AGENTS
    assert all(len(each.last.agent) <= 64 for each in known.agents)
