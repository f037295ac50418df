from hostmesh_agent.overdue import Overdue
from hostmesh_agent.shrink import WAIT_S


def test_the_time_for_which_something_is_held_back_counts_over_streams_and_that_without_one_does_not() -> None:
    overdue = Overdue(3600)
    assert overdue.begin(100) == 3600
    overdue.interrupt(1100)
    overdue.interrupt(2000)
    assert overdue.begin(9000) == 2600
    overdue.interrupt(11_600)
    assert overdue.begin(20_000) == WAIT_S, "all of it may not have come yet"


def test_another_loss_has_all_the_time_once_one_is_over() -> None:
    overdue = Overdue(3600)
    overdue.begin(0)
    overdue.interrupt(3000)
    overdue.end()
    assert overdue.begin(5000) == 3600


def test_what_is_never_taken_by_itself_is_not_either_after_a_year() -> None:
    overdue = Overdue(0)
    overdue.begin(0)
    overdue.interrupt(3e7)
    assert overdue.begin(3e7) is None
