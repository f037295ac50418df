"""How long a direction was without a proxy: what was refused, what passed, how often."""

from hostmesh_agent.capture.who import Direction
from hostmesh_agent.gaps import Gap, Gaps, Seen, after

IN, OUT = Direction.INBOUND, Direction.OUTBOUND
CLOSED = Seen(captured=True, open=False, passes=False)
OPEN = Seen(captured=True, open=True, passes=False)
PASSES = Seen(captured=False, open=True, passes=True)


def story(*steps: tuple[float, bool, Seen]) -> Gaps:
    gaps: Gaps = {}
    for now, gone, seen in steps:
        gaps = after(gaps, {IN: seen}, gone=gone, now=now)
    return gaps


def test_in_mode_closed_a_gap_lasts_until_envoy_serves_and_all_of_it_is_refused() -> None:
    gaps = story((1, False, CLOSED), (10, True, CLOSED), (11, True, CLOSED), (12.5, False, CLOSED), (20, False, CLOSED))
    gap = gaps[IN]
    assert (gap.open, gap.ended) == (False, 12.5)
    assert (gap.refused_s(20), gap.passed_s(20), gap.total_s(20)) == (2.5, 0, 2.5)


def test_in_mode_open_connections_are_refused_until_they_pass_and_pass_until_they_are_captured() -> None:
    gap = story((10, True, OPEN), (10.25, True, PASSES), (12, False, PASSES), (12.5, False, OPEN))[IN]
    assert (gap.refused_s(99), gap.passed_s(99), gap.total_s(99)) == (0.25, 2.25, 2.5)


def test_a_gap_that_lasts_grows() -> None:
    gap = story((10, True, PASSES))[IN]
    assert (gap.ended, gap.refused_s(13), gap.passed_s(13), gap.total_s(13)) == (None, 0, 3, 3)


def test_gaps_are_counted_and_their_lengths_summed() -> None:
    gap = story((1, True, CLOSED), (2, False, CLOSED), (5, True, CLOSED), (8, False, CLOSED))[IN]
    assert (gap.count, gap.refused_s(9), gap.total_s(9)) == (2, 3, 4)


def test_where_nothing_is_captured_the_absence_of_envoy_is_no_gap() -> None:
    assert story((1, True, Seen(captured=False, open=True, passes=False))) == {}
    assert story((1, False, CLOSED)) == {}


def test_each_direction_has_its_own() -> None:
    gaps = after({}, {IN: CLOSED, OUT: PASSES}, gone=True, now=1.0)
    assert gaps == {IN: Gap(IN, False, 1.0), OUT: Gap(OUT, True, 1.0, passed_from=1.0)}
