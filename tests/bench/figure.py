"""A measured number, and the table of them."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from commit import commit


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    `most` is what we promise at most, None where nothing is promised. `detail` says what the number alone does not.
    """

    what: str
    value: float
    unit: str
    most: float | None = None
    detail: str = ""

    @property
    def kept(self) -> bool:
        return self.most is None or self.value <= self.most


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A way to measure some figures; it can be run alone by its name."""

    name: str
    measure: Callable[[], Sequence[Figure]]

    @property
    def command(self) -> str:
        return f"make bench ONLY={self.name}"


HEADS: Final = ("figure", "measured", "at most", "command", "")


def table(results: Sequence[tuple[Benchmark, Sequence[Figure]]]) -> str:
    """Return the table of all figures, with the command of each."""
    rows = [HEADS]
    for benchmark, figures in results:
        for figure in figures:
            most = "" if figure.most is None else f"{_number(figure.most)} {figure.unit}"
            mark = "" if figure.kept else "MISSED  "
            rows.append(
                (figure.what, f"{_number(figure.value)} {figure.unit}", most, benchmark.command, mark + figure.detail)
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS) - 1)]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    what, value, most, command, detail = row
    padded = (what.ljust(widths[0]), value.rjust(widths[1]), most.rjust(widths[2]), command.ljust(widths[3]), detail)
    return "  ".join(padded).rstrip()


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def machine() -> str:
    """Return what the figures were measured on: they mean little on another machine, their ratios more."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    load = os.getloadavg()[0]
    busy = "  (busy: figures of time are too high)" if load > 0.5 else ""
    return "\n".join(
        (
            f"machine: {os.cpu_count()} cores of {model}, {_memory_gib():.0f} GiB, Linux {platform.release()}",
            f"python {platform.python_version()}, commit {commit()}, load before {load:.2f}{busy}",
        )
    )


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
