"""Play faults in the lab, with oracles, and write what came of them into FAULTS.md.

make faults                       all of them
make faults ONLY="envoy-killed"   some
make faults SEED=7                with the random choices of another run
make faults FULL=1                what is shortened (agents that stand still) as long as it is to hold
"""

import argparse
import fcntl
import json
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from commit import commit
from faults.fault import Fault
from faults.play import play
from faults.scene import new_scene
from faults.suite import FAULTS
from faults.table import Result, document, merged, read, rendered

RESULTS: Final = Path(__file__).with_name("results.json")
TABLE: Final = Path(__file__).parents[2] / "FAULTS.md"
AROUND_S: Final = 5.0


def rows() -> list[tuple[str, str, str]]:
    return [(each.name, each.fault, each.promise) for each in FAULTS]


def known() -> list[Result]:
    return read(json.loads(RESULTS.read_text())) if RESULTS.exists() else []


def record(new: Sequence[Result]) -> None:
    """Write the results, and the table that is made of them."""
    with (RESULTS.parent / "__main__.py").open() as lock:
        # Two runs may write at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = merged(known(), new, [each.name for each in FAULTS])
        RESULTS.write_text(json.dumps(document(results), indent=1, ensure_ascii=False) + "\n")
        TABLE.write_text(rendered(rows(), results))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to play; all unless given")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or random.randrange(1_000_000)))
    parser.add_argument("--around", type=float, default=AROUND_S, metavar="S", help="look on so long around a fault")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - {each.name for each in FAULTS}):
        parser.error(f"no fault is called {', '.join(unknown)}; there are: {', '.join(each.name for each in FAULTS)}")
    by_name = {each.name: each for each in FAULTS}
    chosen = [by_name[name] for name in options.names] or list(FAULTS)
    # Told to end, it ends in order: nothing of the lab is left.
    signal.signal(signal.SIGTERM, _interrupted)
    failed = run(chosen, options.seed, options.around)
    return 1 if failed else 0


def _interrupted(_: int, __: object) -> None:
    raise KeyboardInterrupt


def say(text: str) -> None:
    print(text, flush=True)


def run(chosen: Sequence[Fault], seed: int, around_s: float) -> int:
    """Play the faults, one after the other; return how many promises did not hold. Each result is written at once."""
    say(f"seed {seed}, commit {commit()}")
    failed = 0
    at = 0
    while at < len(chosen):
        with new_scene(seed, around_s) as scene:
            broken = False
            while at < len(chosen) and not broken:
                result = play(chosen[at], scene, seed, say)
                record([result])
                failed += bool(result.problems)
                # What did not hold may have left a scene in which nothing else can be told.
                broken = bool(result.problems) or chosen[at].last
                at += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
