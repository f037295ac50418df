"""What pytest tells of each case becomes a row of HOSTS.md (hooks; conftest.py takes them in)."""

import os
import shutil
from collections.abc import Generator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

import pytest

from commit import commit
from hosts import table
from hosts.machine import Machine
from hosts.roots import number
from hosts.table import FAILED, HELD, SKIPPED, TESTS, Result

_MAX_WHY_CHARS: Final = 300
_cases: Final[dict[str, set[str]]] = {}


def why_no_hosts() -> str:
    """Return why no hosts can be made here; "": they can."""
    if os.getuid() != 0:
        return "real hosts are made as root"
    missing = [each for each in ("systemd-nspawn", "mmdebstrap") if not shutil.which(each)]
    return f"needs {', '.join(missing)}: make test-hosts installs it" if missing else ""


def name_of(item: pytest.Item) -> tuple[str, str]:
    """Return the test as the table has it, and its case."""
    function, _, case = item.name.partition("[")
    return f"{item.path.name}::{function}", case.removesuffix("]")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Before any are left out: which cases there are of each test, and of which commit."""
    commit()
    for item in items:
        if item.path.parent == TESTS:
            test, case = name_of(item)
            _cases.setdefault(test, set()).add(case)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    Machine.used.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    # What the first test of all sets up is set up for all.
    Machine.used.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    test, case = name_of(item)
    if report.when == "call" or report.outcome != "passed":
        word = {"passed": HELD, "failed": FAILED, "skipped": SKIPPED}[report.outcome]
        debian = tuple(sorted({number(each) for each in Machine.used}))
        seen = "; ".join(str(value) for name, value in item.user_properties if name == "seen")
        _record(Result(test, case, debian, word, _why(report), round(report.duration, 1), seen, _run(), commit()))
    return report


def _record(result: Result) -> None:
    """Write it at once: a run that is cut short has shown what it has shown.

    A machine that can have no hosts has nothing to say of what was shown elsewhere.
    """
    if not why_no_hosts():
        table.record([result], _cases)


def _why(report: pytest.TestReport) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")[:_MAX_WHY_CHARS]
    if report.outcome == "failed":
        lines = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
        return (lines or ["see the run"])[0][:_MAX_WHY_CHARS]
    return ""


def _run() -> str:
    linux = ".".join(os.uname().release.split(".")[:2])
    return f"hostmesh {version('hostmesh')}, {datetime.now(UTC):%Y-%m-%d}, Linux {linux}"
