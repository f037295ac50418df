"""The states of roots: which step leads where, and that no order of steps leads anywhere else."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_controller import authority_roots as steps
from hostmesh_controller.authority_roots import MAX_REVOKED, Root, Roots, RootState, Source, StepError

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def root(number: int) -> Root:
    digits = f"{number:04x}"
    whole = digits * 16
    return Root(whole[:12], whole, Source.SELF_SIGNED, RootState.PREPARED, "PEM", f"-{whole[:12]}", START)


ONE = steps.first("cluster.local", root(1), START)
TWO = steps.prepare(ONE, root(2))
ACTIVATED = steps.activate(TWO, START + HOUR)
TAINTED = steps.taint(ACTIVATED, None, START + 2 * HOUR, timedelta(seconds=30))
REVOKED = steps.revoke(TAINTED, None, START + 3 * HOUR, compromised=False)


def states(roots: Roots) -> list[str]:
    return [each.state.value for each in roots.items]


def test_the_four_steps_lead_from_one_root_to_the_next() -> None:
    assert [states(each) for each in (ONE, TWO, ACTIVATED, TAINTED, REVOKED)] == [
        ["active"],
        ["active", "prepared"],
        ["old", "active"],
        ["tainted", "active"],
        ["revoked", "active"],
    ]
    assert [len(each.trusted) for each in (ONE, TWO, ACTIVATED, TAINTED, REVOKED)] == [1, 2, 2, 2, 1]
    assert ACTIVATED.active.fingerprint == root(2).fingerprint


def test_which_root_signed_when_is_known() -> None:
    assert TAINTED.signing_at(START + HOUR / 2) == TAINTED.items[0]
    assert TAINTED.signing_at(START + HOUR) == TAINTED.items[1]
    assert TAINTED.signing_at(START - HOUR) is None


@pytest.mark.parametrize(
    ("roots", "step", "reason"),
    [
        (TWO, lambda roots: steps.prepare(roots, root(3)), "is prepared already"),
        (ONE, lambda roots: steps.prepare(roots, root(1)), "is active already"),
        (REVOKED, lambda roots: steps.prepare(roots, root(1)), "is revoked already"),
        (ONE, lambda roots: steps.activate(roots, START), "no root is prepared"),
        (ACTIVATED, lambda roots: steps.activate(roots, START), "no root is prepared"),
        (
            ONE,
            lambda roots: steps.taint(roots, None, START, HOUR),
            "there is no old root to taint: first .hostmesh ca prepare. and .activate. another",
        ),
        (ONE, lambda roots: steps.taint(roots, root(1).id, START, HOUR), "signs: prepare another"),
        (TWO, lambda roots: steps.taint(roots, root(2).id, START, HOUR), "is prepared: only an old one"),
        (TAINTED, lambda roots: steps.taint(roots, root(1).id, START, HOUR), "is tainted: only an old one"),
        (ONE, lambda roots: steps.revoke(roots, root(1).id, START, compromised=True), "signs: prepare another"),
        (ACTIVATED, lambda roots: steps.revoke(roots, root(1).id, START, compromised=True), "taint it first"),
        (ACTIVATED, lambda roots: steps.revoke(roots, None, START, compromised=False), "no tainted root to revoke"),
        (REVOKED, lambda roots: steps.revoke(roots, root(1).id, START, compromised=False), "is revoked already"),
        (ONE, lambda roots: steps.revoke(roots, "beef", START, compromised=False), "no root 'beef'"),
        (ONE, lambda roots: steps.revoke(roots, "", START, compromised=False), "no root ''"),
    ],
)
def test_a_step_out_of_order_is_refused_with_what_must_come_first(roots: Roots, step: object, reason: str) -> None:
    assert callable(step)
    with pytest.raises(StepError, match=reason):
        step(roots)


def test_renewals_are_spread_over_an_hour_at_most() -> None:
    with pytest.raises(ValueError, match="spread over 0 to 1:00:00"):
        steps.taint(ACTIVATED, None, START, 2 * HOUR)


def test_a_root_that_was_prepared_in_vain_can_be_dropped() -> None:
    assert states(steps.revoke(TWO, root(2).id, START, compromised=False)) == ["active", "revoked"]


def test_one_that_is_revoked_can_be_found_to_be_compromised_later() -> None:
    assert REVOKED.retired
    found = steps.revoke(REVOKED, root(1).id, START + 9 * HOUR, compromised=True)
    assert not found.retired
    assert found.items[0].revoked_at == START + 3 * HOUR


def test_a_beginning_of_a_fingerprint_names_a_root_if_it_is_of_one() -> None:
    assert states(steps.revoke(TWO, "0002", START, compromised=False)) == ["active", "revoked"]
    with pytest.raises(StepError, match="beginning of several"):
        steps.revoke(TWO, "000", START, compromised=False)


STEP = st.sampled_from(["prepare", "activate", "taint", "revoke", "compromised"])


@given(st.lists(st.tuples(STEP, st.integers(1, 6)), max_size=60))
def test_no_order_of_steps_leads_out_of_the_legal_states(tries: list[tuple[str, int]]) -> None:
    roots, at = ONE, START
    for count, (step, which) in enumerate(tries, start=2):
        at += HOUR
        named = roots.items[which % len(roots.items)].id
        before = roots
        try:
            match step:
                case "prepare":
                    roots = steps.prepare(roots, root(count))
                case "activate":
                    roots = steps.activate(roots, at)
                case "taint":
                    roots = steps.taint(roots, named, at, HOUR)
                case _:
                    roots = steps.revoke(roots, named, at, compromised=step == "compromised")
        except StepError:
            assert roots is before
        _legal(roots)
        # Who signed stays trusted until it was tainted.
        assert before.active.id in {each.id for each in roots.trusted}


def _legal(roots: Roots) -> None:
    found = states(roots)
    assert found.count("active") == 1
    assert found.count("prepared") <= 1
    assert found.count("revoked") <= MAX_REVOKED
    assert roots.active in roots.trusted
    assert steps.loads(steps.dumps(roots)) == roots


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "trust_domain": "a", "roots": []}',
        '{"format": 1, "trust_domain": "a", "roots": []}',
        steps.dumps(TWO).replace('"prepared"', '"active"'),
        steps.dumps(TWO).replace('"active"', '"old"'),
        steps.dumps(TWO).replace('"active"', '"wise"'),
        steps.dumps(TWO).replace("2026-01-01", "someday"),
        steps.dumps(TWO).replace('"file"', '"files"'),
    ],
)
def test_a_state_that_no_step_leads_to_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        steps.loads(text)
