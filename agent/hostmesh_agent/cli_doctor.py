"""`hostmesh-agent doctor`: what is wrong with this host, whoever is dead, and what to do."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hostmesh_agent.config import AgentConfig

if TYPE_CHECKING:
    from hostmesh_agent.doctor.ailments import Finding


def add(verbs: Any) -> None:
    doctor = verbs.add_parser(
        "doctor", help="find out what is wrong, with whatever still works; exit code 0 if nothing is, else 1"
    )
    doctor.add_argument("-o", "--output", choices=("table", "json"), default="table")
    doctor.add_argument("--list", action="store_true", help="print every finding that there can be, with its cure")
    doctor.set_defaults(verb=_doctor, in_need=True)


def _doctor(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import log
    from hostmesh_agent.doctor import visit

    if options.list:
        print(listed(as_json=options.output == "json"))
        return 0
    log.configure("critical")
    findings = visit.examine(config, getattr(options, "config_problem", ""))
    healthy = visit.healthy(findings)
    if options.output == "json":
        print(json.dumps({"healthy": healthy, "findings": [told(each) for each in findings]}, indent=2))
    else:
        print(table(findings))
    return 0 if healthy else 1


def listed_findings(config: AgentConfig, config_problem: str = "") -> list[dict[str, str]]:
    """Examine the host and return the findings as documents; `config_problem` is why agent.toml is refused, or ""."""
    from hostmesh_agent.doctor import visit

    return [told(each) for each in visit.examine(config, config_problem)]


def of_agent(status: Any) -> list[dict[str, str]]:
    """Return what a running agent's own status comes to; nothing where none runs: that is `doctor`'s to find."""
    from hostmesh_agent.doctor.host import of_status

    return [told(each) for each in of_status(status)] if status["agent"]["running"] else []


def told(finding: "Finding") -> dict[str, str]:
    """Return the finding as a document."""
    from hostmesh_agent.doctor.ailments import BY_CODE

    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "title": BY_CODE[finding.code].title,
        "what": finding.what,
        "cure": finding.cure,
    }


def table(findings: "Sequence[Finding]") -> str:
    """Return the findings for human eyes."""
    if not findings:
        return "nothing is wrong"
    lines = []
    for each in map(told, findings):
        what = _cell(each["what"])
        lines += [f"{each['code']}  {each['severity']:<7}  {each['title']}: {what}", f"{'':19}cure: {each['cure']}"]
    return "\n".join(lines)


def listed(*, as_json: bool) -> str:
    """Return every finding that there can be: as JSON, or as the table of the documents (Markdown)."""
    from hostmesh_agent.doctor.ailments import AILMENTS

    if as_json:
        rows = [
            {"code": each.code, "severity": each.severity.value, "title": each.title, "cure": each.cure}
            for each in AILMENTS
        ]
        return json.dumps(rows, indent=2)
    lines = ["| code | severity | finding | cure |", "|---|---|---|---|"]
    lines += [f"| {each.code} | {each.severity.value} | {each.title} | {each.cure} |" for each in AILMENTS]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return what others have said (Envoy, a controller, a program's name) as one line without control characters."""
    return "".join(each if each.isprintable() else " " for each in text)
