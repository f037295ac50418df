"""Who gets another version, when that stops, and who goes back: decided from what is seen, whatever happens."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostmesh_controller.model.rollout import RolloutSpec
from hostmesh_controller.rollout import document, plan, steering, turns, waiting
from hostmesh_controller.rollout.health import Figures, Seen
from hostmesh_controller.rollout.plan import quota
from hostmesh_controller.rollout.progress import Mark, Order, Progress, Stage, Touched, order_for
from hostmesh_controller.rollout.steering import NotNowError
from hostmesh_controller.rollout.turns import Held

OLD, NEW = "1.40.0", "1.41.0"
WATCH_S, DEADLINE_S = 60.0, 300.0


def spec(**more: object) -> RolloutSpec:
    return RolloutSpec.model_validate(
        {"version": NEW, "canary": 2, "waves": [10, "50%"], "watch": "60s", "deadline": "300s"} | more
    )


@dataclass
class Hosts:
    """Hosts that do as they are told, unless `bad` says something else of the new version."""

    names: Sequence[str]
    bad: Mapping[str, Seen] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    """Those that never say that they are done."""
    version: dict[str, str] = field(default_factory=dict)
    absent_s: float = 0.0
    """For how long those that are away were not heard of."""
    said: dict[str, Order] = field(default_factory=dict)
    """The order that a host last said to be done with."""

    def seen(self, progress: Progress) -> dict[str, Seen]:
        found = {}
        for host in self.names:
            order = order_for(progress, host)
            if order is not None and host not in self.away and host not in self.stuck:
                self.version[host] = OLD if order.back else order.version
                self.said[host] = replace(order, settled=False)
            # Of one that is away its last report is known.
            known = order is not None and self.said.get(host) == replace(order, settled=False)
            state = "done" if known else ""
            away = host in self.away
            absent_s = self.absent_s if away else 0.0
            now = Seen(not away, self.version.get(host, OLD), state=state, absent_s=absent_s)
            if host in self.bad and order is not None and not order.back:
                now = replace(self.bad[host], alive=now.alive, absent_s=absent_s)
            found[host] = now
        return found


def told(progress: Progress) -> list[str]:
    """Return who is told the new version."""
    return progress.marked(Mark.ORDERED, Mark.WELL, Mark.FAILED)


def run(what: RolloutSpec, hosts: Hosts, progress: Progress | None = None, *, until_s: float = 5000) -> Progress:
    progress = progress or Progress(what.version)
    for now in range(0, int(until_s), 10):
        progress = plan.step(what, hosts.seen(progress), progress, float(now))
    return progress


HUNDRED = [f"h{number}" for number in range(100)]


def test_all_hosts_get_it_wave_by_wave() -> None:
    hosts, what, progress, sizes = Hosts(HUNDRED), spec(), Progress(NEW), []
    for now in range(0, 1000, 10):
        progress = plan.step(what, hosts.seen(progress), progress, float(now))
        sizes.append(len(told(progress)))
    assert sorted(set(sizes)) == [2, 10, 50, 100]
    assert progress.stage is Stage.DONE
    assert sizes.index(10) * 10 >= WATCH_S


def test_hosts_that_have_it_already_are_not_told() -> None:
    hosts = Hosts(HUNDRED, version=dict.fromkeys(HUNDRED[:98], NEW))
    progress = run(spec(), hosts)
    assert (progress.stage, sorted(progress.hosts)) == (Stage.DONE, ["h98", "h99"])


BAD = {
    "it crashes": Seen(alive=True, version=OLD, state="failed", reason="it ended before it served"),
    "it is refused": Seen(alive=True, version=OLD, state="refused", reason="signed by no key"),
    "it hangs": Seen(alive=True, version=OLD, state="changing"),
    "nothing is heard of it": Seen(alive=False, version=OLD, state="fetching"),
    "it answers 503": Seen(alive=True, version=NEW, state="done", before=Figures(1000, 2), after=Figures(100, 50)),
    "it is slow": Seen(
        alive=True, version=NEW, state="done", before=Figures(900, 0, 900, 900.0), after=Figures(100, 0, 100, 3000.0)
    ),
    "it restarts": Seen(alive=True, version=NEW, state="done", restarts=1),
    "it refuses": Seen(alive=True, version=NEW, state="done", refuses="no such filter"),
    "it does not serve": Seen(alive=True, version=NEW, state="done", serves=False),
    "it says done, and is not": Seen(alive=True, version=OLD, state="done"),
}


@pytest.mark.parametrize("why", BAD)
def test_a_bad_version_reaches_the_canary_alone_and_goes_back(why: str) -> None:
    hosts = Hosts(HUNDRED, bad=dict.fromkeys(HUNDRED, BAD[why]))
    progress, ever = Progress(NEW), set[str]()
    for now in range(0, 2000, 10):
        progress = plan.step(spec(), hosts.seen(progress), progress, float(now))
        ever |= set(told(progress))
    assert progress.stage is Stage.HALTED
    assert progress.reason
    assert (len(ever), told(progress)) == (2, [])
    assert progress.marked(Mark.RETURNED) == sorted(ever) or why == "nothing is heard of it"


def test_few_calls_and_a_little_noise_are_no_reason() -> None:
    fine = (
        Seen(alive=True, version=NEW, state="done", before=Figures(1000, 0), after=Figures(19, 19)),
        Seen(alive=True, version=NEW, state="done", before=Figures(1000, 300), after=Figures(1000, 305)),
        Seen(alive=True, version=NEW, state="done", before=Figures(1000, 300), after=Figures(1000, 10)),
        Seen(alive=True, version=NEW, state="done", before=Figures(9, 0, 900, 90.0), after=Figures(9, 0, 900, 900.0)),
    )
    for each in fine:
        assert run(spec(), Hosts(HUNDRED, bad=dict.fromkeys(HUNDRED, each))).stage is Stage.DONE, each


def test_a_host_that_disappears_while_it_is_watched_keeps_the_wave_from_passing() -> None:
    hosts, what, progress = Hosts(HUNDRED), spec(), Progress(NEW)
    for now in (0.0, 10.0):
        progress = plan.step(what, hosts.seen(progress), progress, now)
    hosts.away = set(told(progress)[:1])
    for now in range(20, int(DEADLINE_S) + 10, 10):
        progress = plan.step(what, hosts.seen(progress), progress, float(now))
        assert len(told(progress)) == 2
    progress = run_on(what, hosts, progress, 320, 400)
    assert (progress.stage, "not heard of" in progress.reason) == (Stage.HALTED, True)


def run_on(what: RolloutSpec, hosts: Hosts, progress: Progress, begin_s: int, end_s: int) -> Progress:
    for now in range(begin_s, end_s, 10):
        progress = plan.step(what, hosts.seen(progress), progress, float(now))
    return progress


def test_hosts_that_are_away_are_waited_for_and_others_go_first() -> None:
    hosts = Hosts(HUNDRED, away={"h7"})
    progress = run(spec(), hosts)
    assert (progress.stage, len(told(progress))) == (Stage.RUNNING, 99)
    hosts.away = set()
    assert run_on(spec(), hosts, progress, 5000, 6000).stage is Stage.DONE


def test_a_rollout_without_hosts_is_not_done_and_takes_those_that_come() -> None:
    progress = run(spec(), Hosts(()))
    assert (progress.stage, progress.wave) == (Stage.RUNNING, 0)
    progress = run_on(spec(), Hosts(("a", "b")), progress, 5000, 6000)
    assert (progress.stage, sorted(told(progress))) == (Stage.DONE, ["a", "b"])


def test_who_is_away_for_long_keeps_no_wave_open_and_gets_it_later() -> None:
    away = set(HUNDRED[40:])
    hosts = Hosts(HUNDRED, away=set(away), absent_s=3599)
    progress = run(spec(), hosts)
    # The second wave is 50 hosts, and 40 are there.
    assert (progress.stage, len(told(progress))) == (Stage.RUNNING, 40)
    hosts.absent_s = 3600
    progress = run_on(spec(), hosts, progress, 5000, 5200)
    assert (progress.stage, set(progress.absent), len(told(progress))) == (Stage.DONE, away, 40)
    assert all(each.settled for each in progress.hosts.values())
    hosts.away = away - {"h50", "h51"}
    progress = run_on(spec(), hosts, progress, 5200, 5400)
    assert set(told(progress)) == set(HUNDRED[:40]) | {"h50", "h51"}
    assert set(progress.absent) == away - {"h50", "h51"}
    hosts.away, hosts.bad = set(), {"h60": BAD["it crashes"]}
    progress = run_on(spec(), hosts, progress, 5400, 9000)
    assert (progress.stage, "h60, which was absent" in progress.reason) == (Stage.DONE, True)
    assert progress.marked(Mark.RETURNED) == ["h60"]
    assert document.read(document.write(progress)) == progress


def test_nobody_has_proven_it_as_long_as_all_are_absent() -> None:
    hosts = Hosts(HUNDRED, away=set(HUNDRED), absent_s=1e6)
    assert run(spec(), hosts).stage is Stage.RUNNING
    hosts.away = set(HUNDRED[1:])
    progress = run_on(spec(), hosts, Progress(NEW), 0, 2000)
    assert (progress.stage, told(progress)) == (Stage.DONE, ["h0"])


def test_an_absent_host_that_somebody_else_has_changed_is_left_alone() -> None:
    hosts = Hosts(HUNDRED, away={"h1", "h2"}, absent_s=1e6)
    progress = run(spec(), hosts)
    assert progress.stage is Stage.DONE
    hosts.version["h1"], hosts.away = "1.42.0", {"h2"}
    progress = run_on(spec(), hosts, progress, 5000, 6000)
    assert ("h1" in progress.hosts, dict(progress.absent)) == (False, {"h2": OLD})


def test_a_paused_one_that_is_done_lets_no_absent_host_have_it() -> None:
    hosts = Hosts(HUNDRED, away={"h1"}, absent_s=1e6)
    progress = steering.paused(run(spec(), hosts))
    hosts.away = set()
    progress = run_on(spec(), hosts, progress, 5000, 6000)
    assert len(told(progress)) == 99
    assert len(told(run_on(spec(), hosts, steering.resumed(progress, 6000), 6000, 7000))) == 100


def test_who_has_proven_it_is_not_judged_any_more() -> None:
    hosts = Hosts(HUNDRED)
    progress = run(spec(), hosts)
    hosts.away, hosts.bad = {"h1"}, {"h2": BAD["it answers 503"]}
    assert run_on(spec(), hosts, progress, 5000, 9000) == progress
    orders = [order_for(progress, host) for host in HUNDRED]
    assert all(each is not None and each.settled for each in orders)


@pytest.mark.parametrize("first", [True, False])
def test_a_host_in_another_rollouts_hands_gets_it_once_that_is_over(first: bool) -> None:
    hosts, progress, others = Hosts(HUNDRED), Progress(NEW), dict.fromkeys(HUNDRED[:30], Held("other", first))
    for now in range(0, 5000, 10):
        progress = plan.step(spec(), hosts.seen(progress), progress, float(now), others)
    assert not set(progress.hosts) & set(HUNDRED[:30])
    said = waiting.problems(spec(), hosts.seen(progress), progress, others)
    if first:
        assert (progress.stage, len(told(progress)), dict(progress.absent)) == (Stage.RUNNING, 70, {})
        assert said == ["Rollout other goes first on 30 hosts (h0, h1, h10, …)"]
    else:
        assert (progress.stage, set(progress.absent)) == (Stage.DONE, set(HUNDRED[:30]))
    # The other has changed them.
    hosts.version |= dict.fromkeys(HUNDRED[:30], "1.39.0")
    progress = run_on(spec(), hosts, progress, 5000, 6000)
    assert (len(told(progress)), dict(progress.absent)) == (100, {})


def test_with_most_hosts_in_anothers_hands_the_waves_hold_all_the_same() -> None:
    hosts, progress, sizes = Hosts(HUNDRED), Progress(NEW), []
    for now in range(0, 3000, 10):
        others = dict.fromkeys(HUNDRED[:95], Held("other", first=True)) if now < 1000 else {}
        progress = plan.step(spec(), hosts.seen(progress), progress, float(now), others)
        sizes.append(len(told(progress)))
    assert (sorted(set(sizes)), progress.stage) == ([2, 5, 10, 50, 100], Stage.DONE)


def test_one_that_is_dead_in_anothers_hands_keeps_no_wave_open() -> None:
    hosts, progress = Hosts(HUNDRED, away={"h1"}, absent_s=3600), Progress(NEW)
    for now in range(0, 3000, 10):
        progress = plan.step(spec(), hosts.seen(progress), progress, float(now), {"h1": Held("other", first=True)})
    assert (progress.stage, dict(progress.absent)) == (Stage.DONE, {"h1": ""})


@pytest.mark.parametrize("begins", list(permutations((0, 100, 200))))
def test_rollouts_over_the_same_hosts_take_turns_and_all_end(begins: tuple[int, int, int]) -> None:
    meant = {"a": HUNDRED[:60], "b": HUNDRED[40:], "c": HUNDRED}
    what = {name: spec(version=version) for name, version in zip("abc", ("1.41.0", "1.42.0", "1.43.0"), strict=True)}
    hosts = {name: Hosts(meant[name]) for name in "abc"}
    progresses: dict[str, Progress] = {}
    for now in range(0, 4000, 10):
        for name, begin in zip("abc", begins, strict=True):
            if begin == now:
                progresses[name] = Progress(what[name].version, began=float(now))
        seen = {name: hosts[name].seen(each) for name, each in progresses.items()}
        wants = {name: plan.wants(what[name], seen[name], each) for name, each in progresses.items()}
        for name in sorted(progresses):
            others = turns.held(name, progresses, wants)
            progresses[name] = plan.step(what[name], seen[name], progresses[name], float(now), others)
        in_hand = [host for each in progresses.values() for host in each.in_hand]
        assert len(in_hand) == len(set(in_hand))
    assert {name: (each.stage, len(each.hosts)) for name, each in progresses.items()} == {
        name: (Stage.DONE, len(meant[name])) for name in "abc"
    }


def test_a_settled_host_is_nobodys_once_it_joins_anew_or_loses_the_labels() -> None:
    hosts = Hosts(HUNDRED)
    progress = run(spec(), hosts)
    seen = hosts.seen(progress)
    seen["h1"], seen["h2"] = replace(seen["h1"], joined_anew=True), replace(seen["h2"], selected=False)
    progress = plan.step(spec(), seen, progress, 6000.0)
    assert set(HUNDRED) - set(progress.hosts) == {"h1", "h2"}


def test_a_newer_rollout_takes_hosts_over_from_one_that_is_over() -> None:
    older = run(spec(), Hosts(HUNDRED, away={"h9"}, absent_s=3600))
    assert set(older.absent) == {"h9"}
    newer = Progress(
        "1.42.0", began=6000.0, hosts={host: Touched(Mark.ORDERED, 1, NEW, 6000.0) for host in ("h1", "h9")}
    )
    left = turns.left("a", {"a": older, "b": newer})
    assert (set(older.hosts) - set(left.hosts), dict(left.absent)) == ({"h1"}, {})
    assert turns.left("b", {"a": older, "b": newer}) == newer
    assert turns.left("a", {"a": older, "b": replace(newer, component="agent")}) == older


def test_another_component_begins_anew() -> None:
    progress = run(spec(), Hosts(HUNDRED))
    other = plan.step(spec(component="agent"), Hosts(HUNDRED).seen(Progress(NEW)), progress, 9000.0)
    assert (other.component, other.stage, len(other.hosts)) == ("agent", Stage.RUNNING, 2)


def test_an_agent_that_ends_is_said_to_be_one() -> None:
    hosts = Hosts(HUNDRED, bad=dict.fromkeys(HUNDRED, BAD["it restarts"]))
    what = spec(component="agent")
    assert "the agent has ended 1 times" in run(what, hosts, Progress(NEW, component="agent")).reason


def test_a_host_that_is_no_more_is_nobodys() -> None:
    hosts, what = Hosts(HUNDRED), spec()
    progress = run_on(what, hosts, Progress(NEW), 0, 20)
    gone = told(progress)[0]
    hosts.names = [each for each in HUNDRED if each != gone]
    progress = run_on(what, hosts, progress, 20, 40)
    assert (gone in progress.hosts, len(told(progress))) == (False, 2)


def test_a_pause_touches_nobody_else_and_a_resume_goes_on_where_it_was() -> None:
    hosts, what = Hosts(HUNDRED), spec()
    progress = run_on(what, hosts, Progress(NEW), 0, 100)
    assert len(told(progress)) == 10
    paused = run_on(what, hosts, steering.paused(progress), 100, 3000)
    assert told(paused) == told(progress)
    assert (paused.wave, paused.stage) == (1, Stage.RUNNING)
    resumed = steering.resumed(paused, 3000.0)
    assert resumed.wave == 1
    assert run_on(what, hosts, resumed, 3000, 4000).stage is Stage.DONE


def test_a_paused_rollout_halts_if_a_host_turns_bad() -> None:
    hosts, what = Hosts(HUNDRED), spec()
    progress = steering.paused(run_on(what, hosts, Progress(NEW), 0, 30))
    hosts.bad = dict.fromkeys(HUNDRED, BAD["it answers 503"])
    assert run_on(what, hosts, progress, 30, 50).stage is Stage.HALTED


def test_after_a_halt_a_resume_begins_with_the_canary_in_another_attempt() -> None:
    hosts, what = Hosts(HUNDRED, bad=dict.fromkeys(HUNDRED, BAD["it crashes"])), spec()
    halted = run(what, hosts)
    hosts.bad = {}
    progress = steering.resumed(halted, 5000.0)
    assert progress.attempt > halted.attempt
    progress = run_on(what, hosts, progress, 5000, 5020)
    assert (progress.wave, len(told(progress))) == (0, 2)
    assert {each.attempt for each in progress.hosts.values()} == {progress.attempt}
    assert run_on(what, hosts, progress, 5020, 6000).stage is Stage.DONE


def test_one_that_refuses_the_version_and_the_way_back_holds_up_no_resume() -> None:
    willing, unwilling = {"a": Seen(True, OLD)}, {"a": Seen(True, OLD, state="refused", reason="its owner forbids it")}
    progress = plan.step(spec(), willing, Progress(NEW), 0.0)
    for now in (10.0, 20.0):
        progress = plan.step(spec(), unwilling, progress, now)
    assert (progress.stage, progress.hosts["a"].mark) == (Stage.HALTED, Mark.RETURNED)
    progress = plan.step(spec(), willing, steering.resumed(progress, 30.0), 40.0)
    assert progress.hosts["a"].mark is Mark.ORDERED


def halted(hosts: Hosts) -> Progress:
    """Return a rollout whose canary is not back yet, at 60 s."""
    hosts.bad = dict.fromkeys(HUNDRED, BAD["it crashes"])
    progress = run_on(spec(), hosts, Progress(NEW), 0, 10)
    hosts.stuck = set(told(progress))
    progress = run_on(spec(), hosts, progress, 10, 60)
    assert (progress.stage, progress.marked(Mark.RETURNING)) == (Stage.HALTED, sorted(hosts.stuck))
    hosts.bad, hosts.stuck = {}, set()
    return progress


def test_a_host_that_died_on_its_way_back_keeps_no_resume_from_going_on() -> None:
    hosts = Hosts(HUNDRED, absent_s=3599)
    progress = halted(hosts)
    first, second = progress.marked(Mark.RETURNING)
    hosts.away = {first}
    progress = run_on(spec(), hosts, steering.resumed(progress, 60.0), 60, 3000)
    assert (progress.stage, progress.wave, progress.marked(Mark.RETURNING)) == (Stage.RUNNING, 0, [first])
    hosts.absent_s = 3600
    progress = run_on(spec(), hosts, progress, 3000, 4000)
    assert (progress.stage, len(told(progress)), second in told(progress)) == (Stage.DONE, 99, True)
    assert first in waiting.problems(spec(), hosts.seen(progress), progress)[0]
    hosts.away = set()
    # First it goes back, then it is as any other that was absent.
    progress = run_on(spec(), hosts, progress, 4000, 5000)
    assert (len(told(progress)), dict(progress.absent), progress.hosts[first].settled) == (100, {}, True)


def test_of_one_host_that_is_dead_nothing_is_shown() -> None:
    hosts = Hosts(["a"], bad={"a": BAD["it crashes"]})
    progress = run_on(spec(), hosts, Progress(NEW), 0, 20)
    hosts.away, hosts.absent_s = {"a"}, 1e6
    progress = run_on(spec(), hosts, steering.resumed(progress, 20.0), 20, 4000)
    assert progress.stage is Stage.RUNNING


@pytest.mark.parametrize("verb", ["resume", "abort", "abort twice"])
def test_who_cannot_go_back_tries_again_when_an_operator_says_so(verb: str) -> None:
    hosts = Hosts(HUNDRED)
    progress = halted(hosts)
    many = len(progress.marked(Mark.RETURNING))
    failed = {host: Seen(True, NEW, state="failed", reason="no room") for host in progress.marked(Mark.RETURNING)}
    if verb == "abort twice":
        progress = steering.aborted(progress, 60.0)
    progress = plan.step(spec(), hosts.seen(progress) | failed, progress, 70.0)
    (said,) = waiting.problems(spec(), hosts.seen(progress), progress)
    assert ("cannot go back (no room)" in said, "resume or abort" in said) == (True, True)
    attempt = progress.attempt
    again = steering.resumed(progress, 80.0) if verb == "resume" else steering.aborted(progress, 80.0)
    orders = [order_for(again, host) for host in again.marked(Mark.RETURNING)]
    assert len(orders) == many
    assert all(each is not None and each.back and each.attempt > attempt for each in orders)
    assert "cannot" not in "".join(waiting.problems(spec(), hosts.seen(again), again))
    progress = run_on(spec(), hosts, again, 80, 3000)
    assert progress.marked(Mark.RETURNING) == []
    assert progress.stage is (Stage.DONE if verb == "resume" else Stage.ABORTED)


def test_without_rollback_a_halt_leaves_hosts_as_they_are_and_a_resume_tries_them_again() -> None:
    hosts, what = Hosts(HUNDRED, bad=dict.fromkeys(HUNDRED, BAD["it answers 503"])), spec(rollback="none")
    halted = run(what, hosts)
    assert (halted.stage, len(told(halted))) == (Stage.HALTED, 2)
    hosts.bad = {}
    progress = run_on(what, hosts, steering.resumed(halted, 5000.0), 5000, 5020)
    assert told(progress) == told(halted)
    assert run_on(what, hosts, progress, 5020, 6000).stage is Stage.DONE


def test_an_abort_returns_all_and_is_for_good() -> None:
    hosts, what = Hosts(HUNDRED), spec()
    progress = run_on(what, hosts, Progress(NEW), 0, 200)
    assert len(told(progress)) == 50
    aborted = run_on(what, hosts, steering.aborted(progress, 200.0), 200, 2000)
    assert (aborted.stage, len(aborted.marked(Mark.RETURNED))) == (Stage.ABORTED, 50)
    assert set(hosts.version.values()) == {OLD}
    with pytest.raises(NotNowError, match="apply it again"):
        steering.resumed(aborted, 2000.0)


def test_a_pause_holds_for_another_version_and_ends_with_an_abort() -> None:
    hosts = Hosts(HUNDRED)
    paused = steering.paused(run_on(spec(), hosts, Progress(NEW), 0, 20))
    other = spec(version="1.42.0")
    assert told(run_on(other, hosts, paused, 30, 300)) == []
    aborted = steering.aborted(paused, 30.0)
    assert len(told(run_on(other, hosts, aborted, 40, 60))) == 2


def test_another_version_begins_anew() -> None:
    progress = run(spec(), Hosts(HUNDRED))
    other = plan.step(spec(version="1.42.0"), Hosts(HUNDRED).seen(Progress(NEW)), progress, 9000.0)
    assert (other.version, other.stage, len(other.hosts)) == ("1.42.0", Stage.RUNNING, 2)
    assert other.attempt > progress.attempt


@pytest.mark.parametrize("stage", ["running", "halted", "aborted"])
def test_of_another_version_who_has_not_proven_the_former_goes_back_first(stage: str) -> None:
    hosts, other, progress = Hosts(HUNDRED), spec(version="1.42.0"), Progress(NEW)
    progress = run_on(spec(), hosts, progress, 0, 80)
    assert len(told(progress)) == 10
    canary = sorted(host for host, each in progress.hosts.items() if each.well_since == 10.0)
    hosts.stuck = set(told(progress))
    if stage == "halted":
        bad = dict.fromkeys(canary, BAD["it crashes"])
        progress = plan.step(spec(), hosts.seen(progress) | bad, progress, 80.0)
    elif stage == "aborted":
        progress = steering.aborted(progress, 80.0)
    before = {host: order_for(progress, host) for host in progress.hosts}
    progress = plan.step(other, hosts.seen(progress), progress, 80.0)
    # Those that were well for `watch` have proven it, if it was not called back.
    has_to = sorted(before) if stage != "running" else sorted(set(before) - set(canary))
    assert (progress.stage, progress.marked(Mark.RETURNING)) == (Stage.RUNNING, has_to)
    for host in has_to:
        order = order_for(progress, host)
        assert order is not None
        assert (order.version, order.back) == (NEW, True)
        assert stage == "running" or order == before[host]
    assert document.read(document.write(progress)) == progress
    progress = run_on(other, hosts, progress, 90, 300)
    assert (told(progress), progress.marked(Mark.RETURNING)) == ([], has_to)
    assert "go back to what they had" in waiting.problems(other, hosts.seen(progress), progress)[0]
    hosts.stuck = set()
    progress = run_on(other, hosts, progress, 300, 320)
    assert (len(told(progress)), {hosts.version[host] for host in has_to} - {"1.42.0"}) == (2, {OLD})
    assert {each.before for each in progress.hosts.values()} <= ({OLD} if stage != "running" else {OLD, NEW})
    assert run_on(other, hosts, progress, 320, 2000).stage is Stage.DONE


def test_without_rollback_another_version_calls_nobody_back() -> None:
    hosts, none = Hosts(HUNDRED), {"rollback": "none"}
    progress = run_on(spec(**none), hosts, Progress(NEW), 0, 20)
    progress = plan.step(spec(version="1.42.0", **none), hosts.seen(progress), progress, 20.0)
    assert (progress.marked(Mark.RETURNING), len(told(progress))) == ([], 2)


EVENTS = st.sampled_from(["step", "step", "step", "pause", "resume", "abort", "restart", "away", "back", "bad", "good"])


@settings(max_examples=300, deadline=None)
@given(
    events=st.lists(st.tuples(EVENTS, st.integers(0, 19), st.sampled_from(sorted(BAD))), max_size=120),
    canary=st.integers(1, 4),
    absent_s=st.sampled_from([0.0, 1e6]),
    rollback=st.sampled_from(["all", "none"]),
)
def test_whatever_happens(events: list[tuple[str, int, str]], canary: int, rollback: str, absent_s: float) -> None:
    """Before the canary was proven nobody else is told; halted touches nobody; a restart changes nothing."""
    names = [f"h{number}" for number in range(20)]
    hosts, what = Hosts(names, absent_s=absent_s), spec(canary=canary, waves=["50%"], rollback=rollback)
    progress, now = Progress(NEW), 0.0
    hosts.bad = bad = {}
    for event, which, kind in events:
        now += 20.0
        host = names[which]
        if event == "away":
            hosts.away.add(host)
        elif event == "back":
            hosts.away.discard(host)
        elif event == "bad":
            bad[host] = BAD[kind]
        elif event == "good":
            bad.pop(host, None)
        elif event == "restart":
            again = document.read(document.write(progress))
            assert again == progress
            progress = again
        elif event == "step":
            progress = checked_step(what, hosts, progress, now)
        else:
            with suppress(NotNowError):
                progress = asked(event, progress, now)
        assert len(told(progress)) <= quota(what, progress.wave, len(names))


def checked_step(what: RolloutSpec, hosts: Hosts, before: Progress, now: float) -> Progress:
    seen = hosts.seen(before)
    after = plan.step(what, seen, before, now)
    assert after == plan.step(what, seen, before, now)
    more = set(told(after)) - set(told(before))
    if before.stage not in {Stage.RUNNING, Stage.DONE} or after.stage is Stage.HALTED or before.paused:
        assert not more
    if after.stage is Stage.DONE:
        # The absent: never more at a time than have proven it.
        assert more <= set(before.absent)
        proven = sum(each.settled for each in after.hosts.values())
        under_way = [host for host in told(after) if not after.hosts[host].settled]
        assert len(under_way) <= max(what.canary, proven) or not more
    if after.wave > before.wave:
        for host in told(before):
            was = before.hosts[host]
            assert seen[host].alive
            assert seen[host].version == NEW
            assert was.well_since is not None
            assert now - was.well_since >= WATCH_S
    if after.stage in {Stage.HALTED, Stage.ABORTED} and what.rollback == "all":
        assert not told(after)
    return after


def asked(verb: str, progress: Progress, now: float) -> Progress:
    if verb == "pause":
        return steering.paused(progress)
    if verb == "resume":
        return steering.resumed(progress, now)
    after = steering.aborted(progress, now)
    assert not told(after)
    return after
