"""Which hosts are dead: the judge, as conversations with times in seconds."""

from hypothesis import given
from hypothesis import strategies as st

from hostmesh_controller.leases import (
    CALM_S,
    LEASE_S,
    RETURN_S,
    STALL_S,
    START_GRACE_S,
    START_LOOK_S,
    START_RETURN_S,
    Leases,
    Sign,
    Todo,
)

FLEET = tuple(f"h{index}" for index in range(10))


def fleet(*hosts: str) -> Leases:
    leases = Leases()
    for host in hosts or FLEET:
        leases.connected(host, 0.0)
    leases.todo(0.0)
    return leases


def miss(leases: Leases, host: str, now: float) -> Todo:
    """Let a knock that was asked for go unanswered."""
    assert host in leases.todo(now).knock
    leases.knocked(host, answered=False, now=now + 2)
    return leases.todo(now + 2)


def let_die(leases: Leases, host: str, now: float) -> None:
    leases.ended(host, now)
    miss(leases, host, now)
    leases.knocked(host, answered=False, now=now + 4)


def test_a_host_that_does_not_answer_twice_is_withdrawn_when_its_lease_is_over_and_not_before() -> None:
    leases = fleet()
    leases.ended("h1", 100.0)
    assert miss(leases, "h1", 100.0).knock == ("h1",)
    leases.knocked("h1", answered=False, now=103.0)
    assert leases.todo(103.0).changed == ()
    assert leases.next_at(103.0) == 100.0 + LEASE_S
    assert leases.sign("h1") is Sign.SILENT
    assert leases.todo(100.0 + LEASE_S).changed == ("h1",)
    assert leases.is_out("h1")
    assert leases.sign("h1") is Sign.WITHDRAWN
    assert leases.next_at(200.0) is None


def test_one_unanswered_knock_withdraws_nobody() -> None:
    leases = fleet()
    leases.ended("h1", 100.0)
    miss(leases, "h1", 100.0)
    assert leases.todo(1000.0).changed == ()


def test_a_host_whose_agent_is_away_keeps_its_place_for_as_long_as_it_answers() -> None:
    leases = fleet()
    leases.ended("h1", 100.0)
    now = 100.0
    for _ in range(120):
        assert leases.todo(now).knock == ("h1",)
        leases.knocked("h1", answered=True, now=now)
        assert leases.todo(now) == Todo()
        assert leases.sign("h1") is Sign.AGENT_AWAY
        following = leases.next_at(now)
        assert following is not None
        now = following
    assert now > 600
    assert miss(leases, "h1", now).knock == ("h1",)
    leases.knocked("h1", answered=False, now=now + 4)
    assert leases.todo(now + 5).changed == ("h1",)


def test_an_agent_that_restarts_changes_nothing() -> None:
    leases = fleet()
    leases.ended("h1", 100.0)
    assert leases.todo(100.0).knock == ("h1",)
    leases.connected("h1", 102.0)
    # The knock of before is answered late, or not at all.
    leases.knocked("h1", answered=False, now=102.1)
    assert leases.todo(500.0) == Todo()
    assert leases.next_at(500.0) is None


def test_the_end_of_an_old_stream_that_a_new_one_took_over_from_says_nothing() -> None:
    leases = fleet()
    leases.connected("h1", 100.0)
    leases.ended("h1", 100.1)
    assert leases.todo(200.0) == Todo()
    assert leases.sign("h1") is Sign.ALIVE


def test_a_mass_disconnect_withdraws_nobody_and_asks_nobody() -> None:
    leases = fleet()
    for host in FLEET[:4]:
        leases.ended(host, 100.0)
    assert leases.todo(100.0) == Todo()
    assert leases.panic
    assert leases.sign("h1") is Sign.HELD
    for now in range(100, 4000, 10):
        assert leases.todo(float(now)) == Todo()


def test_hosts_that_die_one_after_the_other_faster_than_they_are_given_up_are_a_mass_and_are_put_back() -> None:
    leases = fleet()
    for at, host in enumerate(FLEET[:3]):
        let_die(leases, host, 100.0 + at * 6)
    assert not leases.panic
    assert leases.is_out("h0")
    leases.ended("h3", 119.0)
    assert set(leases.todo(119.0).changed) >= {"h0", "h1"}
    assert not any(map(leases.is_out, FLEET))


def test_three_of_ten_are_too_few_for_a_panic_and_two_are_always() -> None:
    leases = fleet()
    for host in FLEET[:3]:
        leases.ended(host, 100.0)
    assert set(leases.todo(100.0).knock) == set(FLEET[:3])
    small = fleet("a", "b")
    for host in ("a", "b"):
        small.ended(host, 100.0)
    assert set(small.todo(100.0).knock) == {"a", "b"}


def test_after_a_panic_those_who_do_not_come_back_are_judged_by_what_is_found_out_then() -> None:
    leases = fleet()
    for host in FLEET:
        leases.ended(host, 100.0)
    leases.todo(100.0)
    for host in FLEET[1:]:
        leases.connected(host, 300.0)
    assert leases.todo(300.0) == Todo()
    calm = leases.next_at(300.0)
    assert calm == 300.0 + CALM_S
    assert leases.todo(calm).knock == ("h0",)
    assert not leases.panic
    leases.knocked("h0", answered=False, now=calm + 2)
    assert leases.todo(calm + 2).knock == ("h0",)
    leases.knocked("h0", answered=False, now=calm + 4)
    assert leases.todo(calm + 6).changed == ("h0",)


def test_a_start_of_the_controller_gives_everybody_time_and_then_asks_who_did_not_come_back() -> None:
    leases = Leases()
    leases.start(FLEET, 50.0)
    for host in FLEET[1:]:
        leases.connected(host, 54.0)
    assert leases.todo(54.9) == Todo()
    assert leases.next_at(54.9) == 50.0 + START_LOOK_S
    miss(leases, "h0", 50.0 + START_LOOK_S)
    leases.knocked("h0", answered=False, now=58.0)
    assert leases.todo(58.0).changed == ()
    leases.knocked("h0", answered=False, now=60.0)
    assert leases.todo(60.0).knock == ("h0",)
    assert leases.next_at(60.0) == 50.0 + START_RETURN_S
    assert leases.todo(50.0 + START_RETURN_S).changed == ("h0",)
    assert not leases.panic


def test_after_a_start_a_host_that_drops_knocks_is_not_withdrawn_while_its_agent_may_be_on_its_way() -> None:
    leases = Leases()
    leases.start(FLEET, 50.0)
    for host in FLEET[1:]:
        leases.connected(host, 54.0)
    assert leases.todo(55.0).knock == ("h0",)
    for at in (57.0, 59.0, 61.0, 63.0, 65.0):
        leases.knocked("h0", answered=False, now=at)
        assert leases.todo(at) == Todo(knock=("h0",))
    leases.connected("h0", 65.5)
    assert leases.todo(65.5).changed == leases.todo(100.0).changed == ()
    # From now on it is one like the others.
    let_die(leases, "h0", 101.0)
    assert leases.todo(106.0).changed == ("h0",)


def test_after_a_start_a_host_that_answers_may_take_its_time_and_is_asked_again() -> None:
    leases = Leases()
    leases.start(FLEET, 50.0)
    assert set(leases.todo(50.0 + START_LOOK_S).knock) == set(FLEET)
    for host in FLEET:
        leases.knocked(host, answered=True, now=56.0)
    assert leases.todo(50.0 + START_GRACE_S).changed == ()
    assert not leases.panic


def test_after_a_start_hosts_that_lived_are_awaited_until_they_are_here_also_where_they_drop_knocks() -> None:
    leases, here = Leases(), set[str]()
    leases.start(["back", "closed", "slow", "gone"], 0.0, out={"gone"})
    assert leases.awaits(0.0, here.__contains__)
    here.add("back")
    leases.connected("back", 1.0)
    miss(leases, "closed", START_LOOK_S)
    leases.knocked("slow", answered=True, now=START_LOOK_S + 2)
    here.add("slow")
    leases.connected("slow", START_LOOK_S + 3)
    assert leases.awaits(START_LOOK_S + 3, here.__contains__)
    # Its stream stands, and it has not said yet what it calls.
    leases.connected("closed", START_LOOK_S + 4)
    assert leases.awaits(START_LOOK_S + 4, here.__contains__)
    here.add("closed")
    assert not leases.awaits(START_LOOK_S + 4, here.__contains__)
    here.clear()
    assert not leases.awaits(START_LOOK_S + 5, here.__contains__)


def test_after_a_start_nobody_is_awaited_for_longer_than_agents_pause() -> None:
    leases = Leases()
    leases.start(["slow"], 0.0)
    leases.knocked("slow", answered=True, now=START_LOOK_S)
    assert leases.awaits(START_RETURN_S - 0.1, lambda _: False)
    assert not leases.awaits(START_RETURN_S, lambda _: False)


def test_a_controller_that_starts_without_a_network_withdraws_nobody() -> None:
    leases = Leases()
    leases.start(FLEET, 50.0)
    for at in (55.0, 57.0, 59.0):
        leases.todo(at)
        for host in FLEET:
            leases.knocked(host, answered=False, now=at + 1)
    assert leases.todo(60.0) == Todo()
    assert leases.panic


def test_who_was_withdrawn_before_a_start_stays_so_until_it_reports_and_counts_for_no_panic() -> None:
    leases = Leases()
    leases.start(FLEET, 50.0, FLEET[:6])
    for host in FLEET[6:]:
        leases.connected(host, 51.0)
    for now in (50.0, 55.0, 80.0, 200.0):
        assert leases.todo(now) == Todo()
    assert not leases.panic
    assert all(map(leases.is_out, FLEET[:6]))
    leases.connected("h0", 201.0)
    leases.reported("h0", serves=True, now=201.0)
    assert leases.todo(201.0).changed == ("h0",)
    leases.ended("h7", 202.0)
    assert leases.todo(202.0).knock == ("h7",)


def test_a_start_after_which_hardly_anybody_comes_back_is_a_panic() -> None:
    leases = Leases()
    leases.start(FLEET, 50.0)
    leases.connected("h1", 51.0)
    assert leases.todo(50.0 + START_GRACE_S) == Todo()
    assert leases.panic


def test_a_mass_disconnect_right_after_a_start_is_one_too() -> None:
    leases = Leases()
    leases.start(FLEET, 50.0)
    for host in FLEET:
        leases.connected(host, 51.0)
    for host in FLEET[:5]:
        leases.ended(host, 52.0)
    assert leases.todo(52.0) == Todo()
    assert leases.panic


def test_a_withdrawn_host_is_back_with_its_first_report_and_without_one_after_a_while() -> None:
    for reports in (True, False):
        leases = fleet()
        let_die(leases, "h1", 100.0)
        leases.todo(106.0)
        leases.connected("h1", 200.0)
        assert leases.todo(200.0).changed == ()
        assert leases.next_at(200.0) == 200.0 + RETURN_S
        if reports:
            leases.reported("h1", serves=True, now=201.0)
        assert leases.todo(201.0 if reports else 200.0 + RETURN_S).changed == ("h1",)
        assert leases.sign("h1") is Sign.ALIVE
        assert leases.next_at(300.0) is None


def test_an_envoy_that_is_down_for_longer_than_a_restart_takes_its_host_is_stalled_until_it_runs() -> None:
    leases = fleet()
    leases.reported("h1", serves=False, now=100.0)
    assert leases.todo(100.0 + STALL_S - 0.1).changed == ()
    leases.reported("h1", serves=False, now=102.0)
    assert leases.todo(100.0 + STALL_S).changed == ("h1",)
    assert leases.is_stalled("h1")
    assert not leases.is_out("h1")
    leases.reported("h1", serves=True, now=110.0)
    assert leases.todo(110.0).changed == ("h1",)
    assert leases.next_at(110.0) is None


def test_a_host_that_left_is_nobodys_business() -> None:
    leases = fleet()
    leases.forget("h1")
    leases.ended("h1", 100.0)
    assert leases.todo(100.0) == Todo()
    assert leases.sign("h1") is Sign.UNKNOWN


EVENTS = st.lists(
    st.tuples(st.sampled_from(FLEET), st.sampled_from(("up", "down", "yes", "no", "report")), st.floats(0, 20)),
    max_size=80,
)


@given(EVENTS)
def test_whatever_happens_nobody_with_a_stream_and_a_report_is_out_and_all_is_told(
    events: list[tuple[str, str, float]],
) -> None:
    leases, now = fleet(), 0.0
    told: dict[str, tuple[bool, bool]] = {}
    for host, event, later_s in events:
        now += later_s
        match event:
            case "up":
                leases.connected(host, now)
            case "down":
                leases.ended(host, now)
            case "report":
                leases.reported(host, serves=True, now=now)
            case _:
                leases.knocked(host, answered=event == "yes", now=now)
        for each in leases.todo(now).changed:
            told[each] = leases.is_out(each), leases.is_stalled(each)
        for each in FLEET:
            assert told.get(each, (False, False)) == (leases.is_out(each), leases.is_stalled(each))
            if leases.sign(each) is Sign.ALIVE:
                assert not leases.is_out(each)
        assert sum(leases.counts().values()) == len(FLEET)
        if leases.panic:
            recent = [each for each in FLEET if leases.is_out(each)]
            assert all((leases.missing_since(each) or now) <= now for each in recent)
