"""Measure, and print each figure with the command that measures it alone.

make bench                    all of them
make bench ONLY="push few"    some
make bench N=200              with another number of simulated proxies than 1,000
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from bench import changes, cold, connect, endpoint, gap, host, push, readiness, rules
from bench.figure import Benchmark, Figure, machine, table
from bench.hosts import Hosts
from bench.stage import Stage

PROXIES = 1_000


def benchmarks(stage: Stage, hosts: Hosts) -> list[Benchmark]:
    """Return all benchmarks, in the order in which they run."""
    return [
        Benchmark("storm", partial(connect.storm, stage)),
        Benchmark("push", partial(push.push, stage)),
        Benchmark("few", partial(push.few, stage)),
        Benchmark("idle", partial(connect.idle, stage)),
        Benchmark("restart", partial(connect.restart, stage)),
        Benchmark("memory", partial(connect.memory, stage)),
        Benchmark("endpoint-5000", endpoint.endpoint),
        Benchmark("changes-5000", changes.changes),
        Benchmark("cold-5000", cold.cold),
        Benchmark("rules", rules.rules),
        Benchmark("agent", partial(host.agent, hosts)),
        Benchmark("first", partial(host.first, hosts)),
        Benchmark("readiness", partial(readiness.readiness, hosts)),
        Benchmark("gap", partial(gap.gap, hosts)),
        Benchmark("latency", partial(host.latency, hosts)),
    ]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all unless given")
    parser.add_argument("--proxies", type=int, default=int(os.environ.get("N") or PROXIES), help="simulated proxies")
    options = parser.parse_args(arguments)
    print(machine(), flush=True)
    results: list[tuple[Benchmark, Sequence[Figure]]] = []
    with ExitStack() as stack:
        known = benchmarks(stack.enter_context(Stage(options.proxies)), stack.enter_context(Hosts()))
        names = [benchmark.name for benchmark in known]
        if unknown := sorted(set(options.names) - set(names)):
            parser.error(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(names)}")
        for benchmark in known:
            if not options.names or benchmark.name in options.names:
                print(f"measuring {benchmark.name} …", file=sys.stderr, flush=True)
                results.append((benchmark, benchmark.measure()))
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
