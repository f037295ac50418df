"""The story of one Envoy, told as events and actions."""

from hostmesh_agent.lifecycle import (
    MAX_BACKOFF_S,
    STABLE_S,
    Action,
    Adopted,
    Event,
    Exited,
    Held,
    Lifecycle,
    Live,
    Phase,
    Start,
    Started,
    StartFailed,
    StopRequested,
    Terminate,
    Tick,
    WaitUntil,
)


def lifecycle(jitter: float = 1.0) -> Lifecycle:
    return Lifecycle(lambda: jitter)


def tell(life: Lifecycle, now: float, *events: Event) -> list[Action]:
    return [action for event in events for action in life.handle(event, now)]


def test_envoy_is_started_becomes_live_and_is_left_alone() -> None:
    life = lifecycle()
    assert tell(life, 0, Tick()) == [Start()]
    assert tell(life, 0, Tick()) == []
    assert tell(life, 0.1, Started(7), Tick()) == []
    assert life.view().phase is Phase.STARTING
    assert tell(life, 0.2, Live(), Tick()) == []
    view = life.view()
    assert (view.phase, view.pid, view.adopted, view.restarts, view.since) == (Phase.LIVE, 7, False, 0, 0.2)
    assert tell(life, 1e6, Tick()) == []


def test_a_running_envoy_is_adopted_and_not_started_again() -> None:
    life = lifecycle()
    assert tell(life, 0, Adopted(7), Tick(), Live(), Tick()) == []
    view = life.view()
    assert (view.phase, view.adopted, view.restarts) == (Phase.LIVE, True, 0)


def test_the_first_restart_is_immediate_and_the_next_ones_back_off_up_to_the_bound() -> None:
    life = lifecycle()
    tell(life, 0, Tick(), Started(1), Live())
    assert tell(life, 1, Exited("exit code 1")) == [Start()]
    now = 1.0
    waits = []
    for pid in range(2, 14):
        tell(life, now, Started(pid))
        (wait,) = tell(life, now, Exited("exit code 1"))
        assert isinstance(wait, WaitUntil)
        waits.append(wait.at - now)
        now = wait.at
        assert tell(life, now - 0.01, Tick()) == [wait]
        assert tell(life, now, Tick()) == [Start()]
    assert waits[:4] == [0.5, 1, 2, 4]
    assert waits[-1] == MAX_BACKOFF_S
    view = life.view()
    assert view.crash_looping
    assert view.restarts == 13
    assert view.last_exit == "exit code 1"


def test_jitter_shortens_a_wait_to_no_less_than_half() -> None:
    for jitter, expected in ((0.0, 0.25), (1.0, 0.5)):
        life = lifecycle(jitter)
        tell(life, 0, Tick(), Started(1), Exited("x"), Started(2))
        assert tell(life, 0, Exited("x")) == [WaitUntil(expected)]


def test_a_stable_run_is_forgiven_without_waiting_for_the_next_exit() -> None:
    life = lifecycle()
    tell(life, 0, Tick(), Started(1), Exited("x"), Started(2), Exited("x"), Tick())
    tell(life, 1, Tick(), Started(3), Exited("x"))
    assert life.view().crash_looping
    assert tell(life, 2, Tick()) == [Start()]
    assert tell(life, 2, Started(4), Tick()) == [WaitUntil(2 + STABLE_S)]
    tell(life, 2 + STABLE_S, Tick())
    assert not life.view().crash_looping
    assert tell(life, 100, Exited("x")) == [Start()]


def test_a_hold_keeps_envoy_down_but_does_not_end_a_running_one() -> None:
    life = lifecycle()
    assert tell(life, 0, Held(True), Tick()) == [WaitUntil(1)]
    assert life.view().phase is Phase.HELD
    assert tell(life, 1, Held(False), Tick()) == [Start()]
    tell(life, 1, Started(1), Live())
    assert tell(life, 2, Held(True), Tick()) == []
    assert life.view().phase is Phase.LIVE
    assert tell(life, 3, Exited("x")) == [WaitUntil(4)]
    assert life.view().phase is Phase.HELD


def test_a_failed_start_counts_like_a_crash() -> None:
    life = lifecycle()
    tell(life, 0, Tick())
    assert tell(life, 0, StartFailed("no such user")) == [Start()]
    assert tell(life, 0, StartFailed("no such user")) == [WaitUntil(0.5)]
    assert life.view().last_exit == "could not be started: no such user"
    assert life.view().phase is Phase.DOWN


def test_a_requested_stop_ends_envoy_for_good() -> None:
    life = lifecycle()
    tell(life, 0, Tick(), Started(1), Live())
    (action,) = tell(life, 1, StopRequested())
    assert isinstance(action, Terminate)
    assert tell(life, 2, Exited("exit code 0"), Tick()) == []
    assert life.view().phase is Phase.STOPPED
    assert tell(life, 1000, Tick()) == []


def test_a_stop_during_a_start_ends_the_envoy_that_comes_of_it() -> None:
    life = lifecycle()
    tell(life, 0, Tick())
    assert tell(life, 0, StopRequested(), Tick()) == []
    (action,) = tell(life, 0, Started(1))
    assert isinstance(action, Terminate)


def test_a_stop_while_held_or_backing_off_is_done_at_once() -> None:
    held = lifecycle()
    tell(held, 0, Held(True), Tick(), StopRequested())
    assert held.view().phase is Phase.STOPPED
    waiting = lifecycle()
    tell(waiting, 0, Tick(), Started(1), Exited("x"), Started(2), Exited("x"), StopRequested())
    assert waiting.view().phase is Phase.STOPPED
