"""HOSTS.md is what the runs of `make test-hosts` found, for every test of the folder, and nobody's own words."""

import json
from dataclasses import replace

from hosts.table import FAILED, HELD, RESULTS, SKIPPED, TABLE, Result, document, known, merged, names, read, rendered

ONE = Result("test_a.py::test_it_works", "trixie", ("13",), HELD, "", 3.4, "13: 21 s", "abc of 2026-01-01, Linux 6")
TWO = Result("test_a.py::test_it_works", "bullseye", ("11",), HELD, "", 1.2, "", "abc of 2026-01-01, Linux 6")
NAMES = ["test_a.py::test_it_works", "test_b.py::test_more"]


def test_the_table_is_made_of_the_results_and_not_edited() -> None:
    again = "make test-hosts writes it; without a run: PYTHONPATH=tests .venv/bin/python -m hosts.table"
    assert TABLE.read_text() == rendered(names(), known()), again


def test_every_test_of_real_hosts_is_in_the_table_and_nothing_else_is() -> None:
    assert len(names()) == len(set(names())) > 20
    assert {each.test for each in read(json.loads(RESULTS.read_text()))} <= set(names())


def test_a_result_goes_to_disk_and_back() -> None:
    assert read(json.loads(json.dumps(document([ONE, TWO])))) == [ONE, TWO]


def test_cases_of_one_test_are_one_row_and_a_test_that_never_ran_says_so() -> None:
    text = rendered(NAMES, [ONE, TWO])
    assert "1 of 2 tests held" in text
    assert "| `test_a`: it works | 11, 13 | held | 13: 21 s | 5 |" in text
    assert f"| `test_b`: more | | {SKIPPED} | | |" in text
    assert "- commit unknown: abc of 2026-01-01, Linux 6; 2 cases" in text


def test_each_run_names_the_commit_that_it_tested_and_an_old_row_says_that_it_is_not_known() -> None:
    text = rendered(NAMES, [ONE, replace(TWO, commit="1234567")])
    assert "- commit unknown: abc of 2026-01-01, Linux 6; 1 cases\n" in text
    assert "- commit 1234567: abc of 2026-01-01, Linux 6; 1 cases\n" in text
    old = {key: value for key, value in document([ONE])[0].items() if key != "commit"}
    assert read([old]) == [ONE]


def test_what_did_not_hold_and_what_did_not_run_are_told_with_the_case_and_the_reason() -> None:
    broken = Result(ONE.test, "bookworm", ("12",), FAILED, "assert 1 == 2 | x", 1, "", ONE.of)
    left_out = Result(ONE.test, "bullseye", (), SKIPPED, "no such kernel", 0, "", ONE.of)
    text = rendered(NAMES, [ONE, broken, left_out])
    assert "0 of 2 tests held" in text
    row = "held (trixie). **FAILED** (bookworm): assert 1 == 2 \\| x. not run (bullseye): no such kernel"
    assert f"| `test_a`: it works | 12, 13 | {row} |" in text


def test_a_new_result_replaces_the_one_of_its_case_alone_and_what_is_no_more_goes() -> None:
    new = Result(ONE.test, "trixie", ("13",), FAILED, "why", 1, "", "def")
    gone = Result("test_z.py::test_gone", "", (), HELD, "", 1, "", "old")
    other = Result(ONE.test, "buster", (), HELD, "", 1, "", "old")
    assert merged([ONE, TWO, gone, other], [new], NAMES, {ONE.test: {"trixie", "bullseye"}}) == [new, TWO]
    assert merged([ONE, TWO], [], NAMES, {}) == [ONE, TWO]
