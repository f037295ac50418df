"""The report: results as JSON, kept beside the suite, and the table that is made of them. No input, no output."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from commit import UNKNOWN

HELD: Final = "held"
FAILED: Final = "FAILED"
NOT_RUN: Final = "not run"

_HEAD: Final = """\
# What goes wrong, and what holds

Made by `make faults` from what it found; not written by hand (a test compares it with `tests/faults/results.json`).
Each fault is played in the lab, with real controllers, agents, Envoys and kernel rules, mutual TLS STRICT in the whole
mesh. Meanwhile, and some seconds before and after, oracles look on:

- **calls**: six ways of calling on a fixed schedule, whether answers come or not: HTTP/1.1 on new and on kept
  connections, gRPC calls, one gRPC stream, TCP on new connections and one that stays. An answer after more than 2 s
  is late.
- **SSH**: each host's own sshd is probed every 200 ms, every tenth time with a whole login.
- **bridge**: every packet is searched for a secret that each call carries; plaintext of its own proves that it sees.
- **rules**: a digest of the kernel's table of each host, four times a second.
- **certificates, endpoints**: seconds left, read from the files; what the caller's Envoy holds of a service of two
  hosts.

A promise that did not hold says FAILED and why. Again: `make faults`; one: `make faults ONLY=NAME`; the same random
order: `SEED=N`; what is shortened, whole: `FULL=1`. The commits that were tested are named at the end.

"""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a fault. `problems`: each way in which its promise did not hold; `commit`: of what was tested."""

    name: str
    problems: tuple[str, ...]
    found: str
    oracles: str
    duration_s: float
    versions: str
    seed: int
    commit: str = UNKNOWN

    @property
    def word(self) -> str:
        return FAILED if self.problems else HELD


def document(results: Iterable[Result]) -> list[dict[str, Any]]:
    return [{**asdict(each), "problems": list(each.problems)} for each in results]


def read(entries: Iterable[Mapping[str, Any]]) -> list[Result]:
    return [Result(**{**entry, "problems": tuple(entry["problems"])}) for entry in entries]


def merged(old: Iterable[Result], new: Iterable[Result], names: Sequence[str]) -> list[Result]:
    """Return the newest result of each fault that the suite has, in the suite's order."""
    by_name = {each.name: each for each in (*old, *new)}
    return [by_name[name] for name in names if name in by_name]


def rendered(rows: Sequence[tuple[str, str, str]], results: Iterable[Result]) -> str:
    """Return FAULTS.md. `rows`: name, fault and promise of each fault, in the suite's order."""
    by_name = {each.name: each for each in results}
    found = [by_name.get(name) for name, _, _ in rows]
    held = sum(each is not None and not each.problems for each in found)
    lines = [
        f"{held} of {len(rows)} promises held.",
        "",
        "| fault | what is done | promise | result | what was seen | s |",
        "|---|---|---|---|---|---|",
    ]
    for (name, fault, promise), result in zip(rows, found, strict=True):
        lines.append(_row(name, fault, promise, result))
    return _HEAD + "\n".join(lines) + "\n" + _versions(found)


def _row(name: str, fault: str, promise: str, result: Result | None) -> str:
    if result is None:
        cells = [f"`{name}`", fault, promise, NOT_RUN, "", ""]
    else:
        word = f"**{FAILED}**: {'; '.join(result.problems)}" if result.problems else HELD
        seen = ". ".join(part for part in (result.found, result.oracles) if part)
        cells = [f"`{name}`", fault, promise, word, seen, f"{result.duration_s:.0f}"]
    return f"| {' | '.join(_cell(each) for each in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _versions(results: Iterable[Result | None]) -> str:
    by_version: dict[str, list[Result]] = {}
    for each in results:
        if each is not None:
            by_version.setdefault(f"commit {each.commit}: {each.versions}", []).append(each)
    lines = []
    for version, some in by_version.items():
        which = "" if len(by_version) == 1 else f"; {', '.join(f'`{each.name}`' for each in some)}"
        lines.append(f"- {version}{which}")
    return "\nVersions:\n\n" + "\n".join(lines) + "\n" if lines else ""
