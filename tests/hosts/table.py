"""HOSTS.md: what the runs of `make test-hosts` found, one row a test. Results are kept beside the tests, as JSON.

`python -m hosts.table` (with PYTHONPATH=tests) makes the table of the results that there are, and runs nothing.
"""

import ast
import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from commit import UNKNOWN

TESTS: Final = Path(__file__).parent
RESULTS: Final = TESTS / "results.json"
TABLE: Final = TESTS.parents[1] / "HOSTS.md"
HELD: Final = "held"
FAILED: Final = "FAILED"
SKIPPED: Final = "not run"
_HEAD: Final = """\
# Real hosts: what was shown, and on which Debian

Made by `make test-hosts` from what it found; not written by hand (a test compares it with `tests/hosts/results.json`).
Hosts are containers of systemd-nspawn that boot Debian's own systemd, on one bridge with a controller. They have
hostmesh by `apt install` (one by `dnf`) out of the signed repositories that `make repo` makes. They share this
machine's kernel: what needs a kernel of its own is not shown here. No distribution of rpm's was to be had: dnf runs on
Debian.

Each row is a test, by its name. Seconds are those of all its cases, without what tests share (hosts that are made
once). A single run (`make test-hosts ONLY=tests/hosts/test_names.py`) writes its own rows anew; a test that never ran
says so. The commits that were tested are named at the end.

"""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one case of a test.

    Attributes:
        test: file and function.
        case: what the function was given; "": nothing.
        debian: numbers of the versions on whose hosts it ran something.
        word, why: held, failed or not run; and why, if it did not hold.
        seen: figures that it told.
        of: version, day and kernel of the run.
        commit: what was tested.
    """

    test: str
    case: str
    debian: tuple[str, ...]
    word: str
    why: str
    seconds: float
    seen: str
    of: str
    commit: str = UNKNOWN


def read(entries: Iterable[Mapping[str, Any]]) -> list[Result]:
    return [Result(**{**entry, "debian": tuple(entry["debian"])}) for entry in entries]


def document(results: Iterable[Result]) -> list[dict[str, Any]]:
    return [{**asdict(each), "debian": list(each.debian)} for each in results]


def merged(
    old: Iterable[Result], new: Iterable[Result], tests: Sequence[str], cases: Mapping[str, set[str]]
) -> list[Result]:
    """Return the newest result of each case, in the order of the tests. `cases`: which ones there are, where known."""
    kept = {(each.test, each.case): each for each in (*old, *new)}
    there = [each for each in kept.values() if each.case in cases.get(each.test, {each.case})]
    return [each for test in tests for each in there if each.test == test]


def names() -> list[str]:
    """Return every test of the folder, by file and function, as they are written."""
    return [
        f"{file.name}::{each.name}"
        for file in sorted(TESTS.glob("test_*.py"))
        for each in ast.parse(file.read_text()).body
        if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")
    ]


def rendered(tests: Sequence[str], results: Sequence[Result]) -> str:
    by_test = {name: [each for each in results if each.test == name] for name in tests}
    held = sum(bool(found) and all(each.word == HELD for each in found) for found in by_test.values())
    total = sum(each.seconds for each in results)
    lines = [
        f"{held} of {len(tests)} tests held, in {total / 60:.0f} minutes of tests.",
        "",
        "| what | Debian | result | what was seen | s |",
        "|---|---|---|---|---|",
        *(_row(name, found) for name, found in by_test.items()),
        "",
        "Runs:",
        "",
        *_runs(results),
    ]
    return _HEAD + "\n".join(lines).rstrip() + "\n"


def _row(name: str, found: Sequence[Result]) -> str:
    file, _, function = name.partition("::")
    what = f"`{file.removesuffix('.py')}`: {function.removeprefix('test_').replace('_', ' ')}"
    if not found:
        return f"| {what} | | {SKIPPED} | | |"
    debian = ", ".join(sorted({version for each in found for version in each.debian}))
    seen = "; ".join(each.seen for each in found if each.seen)
    seconds = f"{sum(each.seconds for each in found):.0f}"
    return f"| {' | '.join(_cell(each) for each in (what, debian, _result(found), seen, seconds))} |"


def _result(found: Sequence[Result]) -> str:
    """Return "held", and what did not hold, by case. What was told of several cases alike is told once."""
    parts = []
    for word in (HELD, FAILED, SKIPPED):
        some = [each for each in found if each.word == word]
        if not some:
            continue
        text = f"**{word}**" if word == FAILED else word
        if len(some) < len(found):
            text += f" ({', '.join(each.case for each in some)})"
        whys = "; ".join(dict.fromkeys(each.why for each in some if each.why))
        parts.append(f"{text}: {whys}" if whys else text)
    return ". ".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _runs(results: Iterable[Result]) -> Iterator[str]:
    by_run: dict[str, int] = {}
    for each in results:
        run = f"commit {each.commit}: {each.of}"
        by_run[run] = by_run.get(run, 0) + 1
    for run, count in by_run.items():
        yield f"- {run}; {count} cases"


def known() -> list[Result]:
    return read(json.loads(RESULTS.read_text())) if RESULTS.exists() else []


def record(new: Sequence[Result], cases: Mapping[str, set[str]]) -> None:
    """Write the results, and the table that is made of them."""
    with Path(__file__).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs may end at the same time
        results = merged(known(), new, names(), cases)
        RESULTS.write_text(json.dumps(document(results), indent=1, ensure_ascii=False) + "\n")
        TABLE.write_text(rendered(names(), results))


if __name__ == "__main__":
    record([], {})
