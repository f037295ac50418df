"""What the operator's guide says of the agent's budget is what the unit enforces, and its commands are there."""

import configparser
import re
from pathlib import Path

from faults.suite import FAULTS
from hostmesh_agent import budget

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "OPERATING.md").read_text()
FIGURES = GUIDE.partition("\n## 10. ")[2].partition("\n## ")[0]


def unit() -> dict[str, str]:
    # Some settings are there more than once; none of those that are asked for is.
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep names as they are
    parser.read(ROOT / "packaging/systemd/hostmesh-agent.service")
    return dict(parser["Service"])


def row(name: str) -> str:
    (found,) = [line for line in FIGURES.splitlines() if line.startswith(f"| agent, {name} |")]
    return found.split("|")[2].strip()


def test_the_published_budget_is_what_the_agent_and_its_unit_have() -> None:
    enforced = unit()
    assert row("CPU") == f"{budget.MAX_CPU_PERCENT} % of a core at most, {budget.IDLE_CPU_PERCENT} % at idle"
    assert enforced["CPUQuota"] == f"{budget.MAX_CPU_PERCENT}%"
    most, idle = budget.MAX_MEMORY_BYTES >> 20, budget.IDLE_RSS_BYTES >> 20
    assert row("memory") == f"{most} MB at most, {idle} MB resident at idle; no swap"
    assert (enforced["MemoryMax"], enforced["MemorySwapMax"]) == (f"{most}M", "0")
    assert row("open files") == f"{budget.MAX_FILES}; with less than {budget.ENOUGH_FILES} it goes on, with an alarm"
    assert enforced["LimitNOFILE"].startswith(f"{budget.MAX_FILES}:")
    assert row("tasks") == enforced["TasksMax"]


def test_every_command_beside_a_figure_is_there() -> None:
    known = set(re.findall(r'Benchmark\("([\w-]+)"', (ROOT / "tests/bench/__main__.py").read_text()))
    named = set(re.findall(r"`make bench ONLY=([\w-]+)`", FIGURES))
    assert {"agent", "cold-5000", "gap"} <= named <= known
    named = {each for words in re.findall(r"`make faults ONLY=\"?([\w -]+)\"?`", FIGURES) for each in words.split()}
    assert named
    assert named <= {each.name for each in FAULTS}
    for path in re.findall(r"`make test-hosts ONLY=([\w/.]+)`", FIGURES):
        assert (ROOT / path).is_file()
