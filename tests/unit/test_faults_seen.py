"""What the oracles of `make faults` hold against a promise: each of them can fail."""

from dataclasses import replace

import pytest

from faults.seen import Bounds, Call, Gauge, Login, Look, Seen, Wire, judge, outages, summary

KINDS = ("http-new", "tcp-kept")
GOOD = Seen(
    calls=[Call(kind, at / 10, 0.01, "ok") for kind in KINDS for at in range(100)],
    logins=[Login("server", at / 5, "ok") for at in range(50)],
    looks=[Look("server", at / 4, "abc") for at in range(40)],
    wire=Wire(packets=1000, control=3),
    gauge=Gauge({"server": 3600.0}, (2, 2)),
)


def with_calls(*bad_at: int, fate: str = "refused", took_s: float = 0.01, lag_s: float = 0.0) -> Seen:
    calls = [
        replace(call, fate=fate, took_s=took_s, lag_s=lag_s)
        if call.kind == KINDS[0] and round(call.at_s * 10) in bad_at
        else call
        for call in GOOD.calls
    ]
    return replace(GOOD, calls=calls)


def test_where_nothing_goes_wrong_every_promise_holds() -> None:
    assert judge(GOOD, Bounds()) == []


def test_one_failed_call_breaks_the_promise_that_none_fails() -> None:
    assert judge(with_calls(50), Bounds()) == [
        "http-new: 1 of 100 calls failed, from 5.0 s to 5.0 s, the first: refused"
    ]


def test_a_kind_of_calls_that_may_fail_is_not_judged() -> None:
    assert judge(with_calls(50), Bounds(unjudged=(KINDS[0],))) == []
    assert judge(with_calls(50), Bounds(unjudged=(KINDS[1],))) != []


def test_an_outage_is_measured_from_the_last_success_to_the_next() -> None:
    seen = with_calls(*range(50, 60))
    assert judge(seen, Bounds(gap_s=1.2)) == []
    assert judge(seen, Bounds(gap_s=1.0)) == ["http-new: without a success for 1.1 s, more than 1 s: refused"]


def test_more_outages_than_allowed_break_the_promise() -> None:
    seen = with_calls(20, 50)
    assert judge(seen, Bounds(gap_s=1, gaps=2)) == []
    assert judge(seen, Bounds(gap_s=1)) == ["http-new: 2 outages, more than 1"]


def test_a_kind_of_call_that_never_succeeds_breaks_any_promise() -> None:
    assert judge(with_calls(*range(100)), Bounds(gap_s=1000)) == [
        "http-new: none of 100 calls succeeded, the first: refused"
    ]


def test_late_answers_count_and_the_loads_own_lateness_does_not() -> None:
    late = with_calls(50, fate="ok", took_s=2.5)
    assert judge(late, Bounds()) == ["1 answers came late, the worst after 2.5 s (http-new)"]
    assert judge(late, Bounds(late=1)) == []
    assert judge(with_calls(50, fate="ok", took_s=2.5, lag_s=1.0), Bounds()) == []
    assert "sent up to 1.0 s late" in summary(with_calls(50, fate="ok", took_s=2.5, lag_s=1.0))


def test_ssh_that_is_lost_breaks_every_promise_that_does_not_name_the_host() -> None:
    logins = [replace(each, fate="refused") if each.at_s == 5 else each for each in GOOD.logins]
    seen = replace(GOOD, logins=logins)
    assert judge(seen, Bounds(gap_s=100)) == ["ssh to server: 1 of 50 probes failed, 0.4 s long: refused"]
    assert judge(seen, Bounds(ssh_gap_s={"server": 1})) == []


def test_rules_that_are_gone_for_a_moment_or_others_at_the_end_are_told() -> None:
    gone = replace(GOOD, looks=[replace(each, digest="") if each.at_s == 5 else each for each in GOOD.looks])
    assert judge(gone, Bounds()) == ["rules of server: gone for 0.5 s"]
    assert judge(gone, Bounds(rules_gap_s={"": 1})) == []
    other = replace(GOOD, looks=[*GOOD.looks, Look("server", 99, "def")])
    assert judge(other, Bounds()) == ["rules of server: def at the end, abc before"]
    assert judge(other, Bounds(rules_same=False)) == []
    told = [replace(GOOD.looks[0], text="a\nb"), replace(other.looks[-1], text="a\nc")]
    assert judge(replace(GOOD, looks=told), Bounds())[1:] == ["-b", "+c"]


def test_plaintext_is_never_allowed() -> None:
    seen = replace(GOOD, wire=Wire(packets=10, plaintext=1, control=1))
    assert judge(seen, Bounds(gap_s=100, late=100)) == ["plaintext on the bridge: 1 packets"]


def test_certificates_that_ended_and_endpoints_that_went_are_told() -> None:
    seen = replace(GOOD, gauge=Gauge({"server": -5.0}, (2, 1)))
    assert judge(seen, Bounds()) == [
        "a certificate of server had ended 5 s ago",
        "the caller held 1 endpoints, less than 2",
    ]
    assert judge(seen, Bounds(certificates=False, endpoints=None)) == []


@pytest.mark.parametrize(
    "seen",
    [
        replace(GOOD, calls=()),
        replace(GOOD, logins=()),
        replace(GOOD, looks=()),
        replace(GOOD, wire=Wire(packets=10)),
        replace(GOOD, gauge=Gauge()),
    ],
    ids=["calls", "logins", "looks", "wire", "gauge"],
)
def test_an_oracle_that_sees_nothing_breaks_the_promise(seen: Seen) -> None:
    assert judge(seen, Bounds()) != []


def test_outages_at_the_ends_of_a_record_count_as_long_as_they_were_seen() -> None:
    assert outages([(1, False), (2, True)]) == [1]
    assert outages([(1, True), (2, False), (4, False)]) == [3]
    assert outages([(1, True)]) == []
