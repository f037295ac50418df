"""FAULTS.md is what the runs of `make faults` found, for every fault of the suite, and nobody's own words."""

import json
from dataclasses import replace

from faults.__main__ import RESULTS, TABLE, rows
from faults.suite import FAULTS
from faults.table import Result, document, merged, read, rendered

RESULT = Result("one", (), "found | it", "10 calls", 3.4, "hostmesh 1", 7)


def results() -> list[Result]:
    return read(json.loads(RESULTS.read_text()))


def test_the_table_is_made_of_the_results_and_not_edited() -> None:
    assert TABLE.read_text() == rendered(rows(), results()), "make faults writes it; edit what it is made of"


def test_every_fault_of_the_suite_is_in_the_table_and_nothing_else_is() -> None:
    names = [line.split("`")[1] for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    assert names == [each.name for each in FAULTS], "make faults writes it"
    assert {each.name for each in results()} <= set(names)


def test_faults_have_names_of_their_own_and_say_what_they_promise() -> None:
    assert len({each.name for each in FAULTS}) == len(FAULTS)
    assert all(each.fault and each.promise.endswith(".") for each in FAULTS)


def test_a_result_goes_to_disk_and_back() -> None:
    assert read(json.loads(json.dumps(document([RESULT])))) == [RESULT]


def test_a_new_result_replaces_the_old_one_and_faults_that_are_no_more_go() -> None:
    new = Result("one", ("it broke",), "", "", 1, "hostmesh 2", 8)
    assert merged([RESULT, Result("gone", (), "", "", 1, "v", 1)], [new], ["one"]) == [new]


def test_a_promise_that_did_not_hold_is_told_as_failed() -> None:
    broken = Result("one", ("it broke",), "", "", 1, "hostmesh 2", 8)
    text = rendered([("one", "f", "p.")], [broken])
    assert "0 of 1 promises held" in text
    assert "**FAILED**: it broke" in text


def test_the_commit_that_was_tested_is_named_and_an_old_row_says_that_it_is_not_known() -> None:
    one, two = RESULT, replace(RESULT, name="two", commit="1234567-dirty")
    text = rendered([("one", "f", "p."), ("two", "f", "p.")], [one, two])
    assert "- commit unknown: hostmesh 1; `one`\n- commit 1234567-dirty: hostmesh 1; `two`\n" in text
    old = {key: value for key, value in document([one])[0].items() if key != "commit"}
    assert read([old]) == [one]


def test_a_fault_that_was_not_played_is_told_so_and_bars_do_not_break_the_table() -> None:
    text = rendered([("one", "f", "p."), ("two", "f", "p.")], [RESULT])
    assert "1 of 2 promises held" in text
    assert "| `two` | f | p. | not run |  |  |" in text
    assert "found \\| it" in text
