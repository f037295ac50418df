"""Figures read well, and are read well."""

import pytest

from bench.figure import Benchmark, Figure, table
from bench.host import Latency, read_wrk

WRK = """Running 5s test @ http://echo:8080/
  1 threads and 1 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   310.12us   50.00us   2.10ms   90.00%
  Latency Distribution
     50%  301.00us
     75%  330.00us
     90%  400.00us
     99%    1.20ms
  15000 requests in 5.00s, 1.50MB read
Requests/sec:   3000.00
"""


def test_a_table_names_the_command_of_each_figure_and_marks_what_was_missed() -> None:
    benchmark = Benchmark("push", lambda: ())
    figures = (Figure("slow", 301.4, "ms", 300, "why"), Figure("fast", 0.25, "ms", 300), Figure("free", 7, ""))

    lines = [" ".join(line.split()) for line in table([(benchmark, figures)]).splitlines()]

    assert lines[2:] == [
        "slow 301 ms 300 ms make bench ONLY=push MISSED why",
        "fast 0.25 ms 300 ms make bench ONLY=push",
        "free 7 make bench ONLY=push",
    ]


def test_latencies_of_wrk_are_read_in_microseconds() -> None:
    assert read_wrk(WRK) == Latency(p50_us=301.0, p99_us=1200.0)


@pytest.mark.parametrize("trouble", ["  Non-2xx or 3xx responses: 3\n", "  Socket errors: connect 0, read 1\n"])
def test_a_run_with_failed_requests_is_no_measurement(trouble: str) -> None:
    with pytest.raises(ValueError, match="no clean run"):
        read_wrk(WRK + trouble)
