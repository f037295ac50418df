"""One Envoy takes another's place: what is decided, and that an agent killed at any step has one that goes on."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostmesh_agent import upgrade
from hostmesh_agent.places import BLUE, GREEN, Instance
from hostmesh_agent.upgrade import Life, Refused, Seen, Side, Stage, Times, step

TIMES = Times(rehearsal_s=5, probation_s=20, hung_after_s=10)
RUNS = Side(runs=True)
STEADY = Seen("v2", differs=True, active=RUNS, other=Side(), automatic=True, times=TIMES)
NEW_IS_READY = replace(STEADY, other=RUNS)
WARMING = Life(Stage.WARMING, BLUE, "v2")
PROBATION = Life(Stage.PROBATION, GREEN, "v2")
SERVES = replace(STEADY, other=RUNS, active=RUNS, differs=False)


def test_an_upgrade_goes_through_its_stages_and_the_new_one_serves() -> None:
    life = step(Life(), STEADY, 0)
    assert (life, upgrade.runs(life)) == (WARMING, frozenset(Instance))
    assert step(life, replace(NEW_IS_READY, other=replace(RUNS, lacks=("x",))), 8) == life
    assert step(life, NEW_IS_READY, 4.9) == life, "it rehearses"
    life = step(life, NEW_IS_READY, 5)
    assert life == PROBATION
    assert step(life, SERVES, 19.9) == life, "the old one is whole"
    life = step(life, SERVES, 20)
    assert (life.stage, life.active, upgrade.drains(life)) == (Stage.DRAINING, GREEN, BLUE)
    assert step(life, replace(SERVES, other=replace(RUNS, connections=3)), 44) == life
    for end in (replace(SERVES, other=replace(RUNS, connections=0)), replace(SERVES, other=Side())):
        assert step(life, end, 1) == Life(Stage.STEADY, GREEN)
    assert step(life, SERVES, 45) == Life(Stage.STEADY, GREEN), "the time that was promised is over"


def test_nothing_begins_that_is_not_asked_for_or_was_refused() -> None:
    for seen in (replace(STEADY, automatic=False), replace(STEADY, differs=False), replace(STEADY, active=Side())):
        assert step(Life(), seen, 100) == Life()
    refusing = Life(refused=(Refused("v2", "bad"),))
    assert step(refusing, STEADY, 100) == refusing
    assert step(refusing, replace(STEADY, wanted="v3"), 100).trying == "v3"


@pytest.mark.parametrize(
    ("new", "since_s", "why"),
    [
        (Side(ended="killed by SIGSEGV"), 1, "it ended before it served: killed by SIGSEGV"),
        (Side(runs=True, failed="it refuses in: bad"), 1, "it refuses in: bad"),
        (Side(runs=True, lacks=("no listeners",)), 60, "it was not ready within 60 s: no listeners"),
        (Side(), 60, "it was not ready within 60 s: it does not run"),
    ],
)
def test_a_new_one_that_is_bad_before_it_serves_never_serves(new: Side, since_s: float, why: str) -> None:
    assert step(WARMING, replace(STEADY, other=new), since_s) == Life(refused=(Refused("v2", why),))


@pytest.mark.parametrize(
    ("seen", "since_s", "why"),
    [
        (replace(SERVES, active=Side(ended="killed")), 0, "it ended while it served: killed"),
        (replace(SERVES, active=replace(RUNS, silent_s=10)), 12, "it has not answered for 10 s"),
        (replace(SERVES, active=replace(RUNS, failed="5xx")), 3, "5xx"),
        (replace(SERVES, back=True), 3, "it was called back"),
        (replace(SERVES, flipped=False), 15, "the rules could not be made to lead to it within 15 s"),
    ],
)
def test_a_new_one_that_is_bad_while_it_serves_is_put_back(seen: Seen, since_s: float, why: str) -> None:
    life = step(PROBATION, seen, since_s)
    assert life == Life(Stage.DRAINING, BLUE, refused=(Refused("v2", why),))
    assert upgrade.drains(life) is GREEN


def test_there_is_no_way_back_to_an_old_one_that_is_gone() -> None:
    crashed = replace(SERVES, active=Side(ended="killed"), other=Side())
    assert step(PROBATION, crashed, 1) == Life(Stage.DRAINING, GREEN)


def test_what_the_rules_still_lead_to_is_not_ended() -> None:
    draining = Life(Stage.DRAINING, GREEN)
    assert step(draining, replace(SERVES, flipped=False, other=replace(RUNS, connections=0)), 100) == draining
    assert step(PROBATION, replace(SERVES, flipped=False), 14) == PROBATION


def test_another_wish_during_the_start_ends_it_and_blames_nobody() -> None:
    assert step(WARMING, replace(NEW_IS_READY, wanted="v3"), 5) == Life()


BY_HAND = replace(STEADY, automatic=False)


def test_what_a_person_asked_for_begins_anew_where_something_else_is_wanted_by_now() -> None:
    life = step(Life(), replace(BY_HAND, asked=True), 0)
    assert life == replace(WARMING, asked=True)
    life = step(life, replace(BY_HAND, wanted="v3"), 1)
    assert life == Life(asked=True)
    life = step(life, replace(BY_HAND, wanted="v3"), 0)
    assert life == Life(Stage.WARMING, BLUE, "v3", asked=True)
    assert step(life, replace(BY_HAND, wanted="v3", other=RUNS), 5) == Life(Stage.PROBATION, GREEN, "v3")


def test_what_a_person_asked_for_ends_where_nothing_differs_where_it_is_bad_and_where_it_is_called_back() -> None:
    asked = Life(asked=True)
    assert step(asked, replace(BY_HAND, differs=False), 0) == Life()
    assert step(asked, replace(BY_HAND, back=True), 0) == Life()
    assert step(asked, replace(BY_HAND, active=replace(RUNS, silent_s=10)), 0) == asked, "it waits for one that is well"
    refusing = replace(asked, refused=(Refused("v2", "bad"),))
    assert step(refusing, BY_HAND, 0) == replace(refusing, asked=False)
    assert step(refusing, replace(BY_HAND, asked=True), 0) == replace(WARMING, asked=True), "a person may try again"
    warming = replace(WARMING, asked=True)
    assert step(warming, replace(BY_HAND, other=Side(ended="killed")), 1).asked is False
    back = Life(refused=(Refused("v2", "it was called back"),))
    assert step(warming, replace(BY_HAND, back=True, wanted="v3"), 1) == back


def test_one_that_hangs_is_replaced_at_once_and_not_drained() -> None:
    silent = replace(STEADY, again="v2", automatic=False, differs=False, active=replace(RUNS, silent_s=25))
    assert step(Life(), replace(silent, active=replace(RUNS, silent_s=24.9)), 0) == Life()
    life = step(Life(), silent, 0)
    assert life == Life(Stage.WARMING, BLUE, "v2", hung=True)
    assert step(life, replace(STEADY, other=RUNS), 1) == Life(), "it answers again"
    life = step(life, replace(silent, other=RUNS), 1)
    assert life == Life(Stage.PROBATION, GREEN, "v2", hung=True)
    life = step(life, SERVES, 0)
    assert life.stage is Stage.DRAINING
    assert step(life, SERVES, 0) == Life(Stage.STEADY, GREEN)


def test_one_that_hangs_is_not_upgraded_and_a_failed_stand_in_is_tried_again() -> None:
    assert step(Life(), replace(STEADY, active=replace(RUNS, silent_s=10)), 0) == Life()
    stands_in = Life(Stage.WARMING, BLUE, "v2", hung=True)
    silent = replace(STEADY, again="v2", active=replace(RUNS, silent_s=30), other=Side(ended="killed"))
    assert step(stands_in, silent, 1) == Life()


HANGS = replace(STEADY, again="v1", active=replace(RUNS, silent_s=25))


def test_one_that_hangs_after_a_failed_upgrade_is_replaced_by_its_like_and_not_by_what_was_put_back() -> None:
    put_back = (Refused("v2", "bad"),)
    life = step(Life(refused=put_back), HANGS, 0)
    assert life == Life(Stage.WARMING, BLUE, "v1", hung=True, refused=put_back)
    ended = step(life, replace(HANGS, other=Side(ended="killed")), 1)
    assert ended == Life(refused=put_back), "what served until it hung is not to blame"
    life = step(life, replace(HANGS, other=RUNS), 1)
    assert life == Life(Stage.PROBATION, GREEN, "v1", hung=True, refused=put_back)
    life = step(life, replace(HANGS, active=RUNS, other=RUNS), 0)
    assert life == Life(Stage.DRAINING, GREEN, hung=True, refused=put_back), "it is no proof for what was put back"


def test_what_nobody_has_tried_rehearses_before_it_stands_in_and_is_tried_once() -> None:
    life = step(Life(), HANGS, 0)
    assert life == Life(Stage.WARMING, BLUE, "v2", hung=True)
    assert step(life, replace(HANGS, other=RUNS), 4.9) == life
    assert step(life, replace(HANGS, other=RUNS), 5).stage is Stage.PROBATION
    bad = step(life, replace(HANGS, other=replace(RUNS, failed="HTTP 503")), 1)
    assert bad == Life(refused=(Refused("v2", "HTTP 503"),))
    assert step(bad, HANGS, 0).trying == "v1"


def test_what_was_put_back_and_is_wanted_again_during_a_probation_is_not_forgotten() -> None:
    life = replace(PROBATION, refused=(Refused("v0", "old"), Refused("v3", "bad")))
    assert step(life, replace(SERVES, wanted="v3"), 20).refused == (Refused("v3", "bad"),)


@dataclass
class Host:
    """A host with two Envoys, as the agent sees it; what the agent does about a state is `carry_out`."""

    life: Life = field(default_factory=Life)
    running: frozenset[Instance] = frozenset({BLUE})
    rules: Instance = BLUE
    drained: frozenset[Instance] = frozenset()
    since_s: float = 0.0
    new_is_good: bool = True

    def acts(self) -> list[str]:
        """What is still to be done, in the order of the agent."""
        wanted = upgrade.runs(self.life)
        due = ["flip"] if self.rules is not self.life.active else []
        due += [f"end {each}" for each in Instance if each in self.running - wanted]
        starts_other = self.life.stage is Stage.WARMING
        starts = {self.life.active} | ({self.life.other} if starts_other else set())
        due += [f"start {each}" for each in Instance if each in (wanted & starts) - self.running]
        draining = upgrade.drains(self.life)
        if draining in self.running and draining not in self.drained and draining is not None:
            due.append(f"drain {draining}")
        return due

    def do(self, act: str) -> None:
        verb, _, name = act.partition(" ")
        if verb == "flip":
            self.rules = self.life.active
            return
        instance = Instance(name)
        if verb == "start":
            self.running |= {instance}
        elif verb == "end":
            self.running -= {instance}
            self.drained -= {instance}
        else:
            self.drained |= {instance}

    def seen(self, *, asked: bool, by_hand: bool) -> Seen:
        active, other = (
            Side(
                runs=each in self.running,
                failed="" if self.new_is_good or each is BLUE else "bad",
                connections=0 if each in self.drained else 1,
            )
            for each in (self.life.active, self.life.other)
        )
        flipped = self.rules is self.life.active
        differs = self.life.active is BLUE
        seen = Seen("v2", differs, active, other, flipped=flipped, times=TIMES)
        return replace(seen, asked=asked and by_hand, automatic=asked and not by_hand)

    def check(self) -> None:
        assert self.rules in self.running, "the rules lead to an Envoy that runs"
        assert self.rules not in self.drained, "and that takes connections"


@given(st.lists(st.integers(0, 4), max_size=40), st.booleans(), st.booleans())
def test_an_agent_killed_at_any_step_leaves_an_envoy_that_serves_and_the_next_one_finishes(
    kills: list[int], new_is_good: bool, by_hand: bool
) -> None:
    """Each number is how many acts an agent does before it is killed; then it is another agent with another clock."""
    host = Host(new_is_good=new_is_good)
    asked = True
    for number in [*kills, *[100] * 200]:
        budget = number
        for act in host.acts():
            if not budget:
                break
            host.do(act)
            budget -= 1
            host.check()
        host.since_s = host.since_s + 7 if number == 100 else 0.0
        if budget:
            life = step(host.life, host.seen(asked=asked, by_hand=by_hand), host.since_s)
            if life != host.life:
                asked = asked and life.stage is Stage.STEADY and not life.refused
                # Written down; whether anything is done about it is up to whoever lives on.
                host.life, host.since_s = life, 0.0
        host.check()
    assert (host.life.stage, host.life.active) == (Stage.STEADY, GREEN if new_is_good else BLUE)
    assert host.running == {host.life.active}
    assert bool(host.life.refused) is not new_is_good
