"""Judges of the agent, of its disk and of the kernel below it. Pure."""

from collections.abc import Iterator
from typing import Any, Final

from hostmesh_agent.capture import led
from hostmesh_agent.doctor.ailments import Finding
from hostmesh_agent.doctor.facts import AgentFacts, DiskFacts, KernelFacts

LOW_BYTES: Final = 64 << 20
LOW_INODES: Final = 1000
FULL_SHARE: Final = 0.9
OWNED_SINCE: Final = (6, 9)


def judge_agent(facts: AgentFacts) -> Iterator[Finding]:
    """Yield what the agent is, and what it says of itself where it answers."""
    if not facts.answers:
        if facts.listens:
            yield Finding("HM-A103", "its socket is there, and nobody answers in time")
        elif facts.status.get("host") is not None:
            yield Finding("HM-A102", "this host has joined, and no agent runs")
    else:
        yield from of_status(facts.status)
    for name, (used, limit) in sorted(facts.open_files.items()):
        if used >= limit * FULL_SHARE:
            yield Finding("HM-A105", f"{name} has {used} files open of {limit}")


def of_status(status: Any) -> Iterator[Finding]:
    """Yield the findings in a running agent's own status: each of its problems has a code."""
    controller, envoy, capture = status["controller"], status["envoy"], status["capture"]
    coded: list[Finding] = []
    if not controller["connected"]:
        coded.append(Finding("HM-M101", controller["last_error"] or "it was not reached yet"))
    elif controller["reports"] != "delivered":
        coded.append(Finding("HM-M102", controller["reports"]))
    coded += [
        Finding("HM-C105", f"{each['name']}: {each['missing']}") for each in status["certificates"] if "missing" in each
    ]
    if envoy["crash_looping"]:
        coded.append(Finding("HM-E104", f"it was started {envoy['restarts']} times; {envoy['last_exit']}"))
    if envoy["restart_needed"]:
        coded.append(Finding("HM-E105", envoy["restart_needed"]))
    if capture["not_wanted"]:
        coded.append(Finding("HM-A106", capture["not_wanted"]))
    if capture["state"] == "error":
        coded.append(Finding("HM-R101", capture["error"]))
    coded += [Finding("HM-R102", each) for each in capture["waiting_for"]]
    others = capture.get("foreign_chains", ())
    coded += [Finding("HM-R107" if led.WHY in each else "HM-R103", each) for each in others]
    coded += [Finding("HM-R105", each) for each in capture.get("alarms", ()) if each not in others]
    coded += [Finding("HM-R106", each) for each in capture.get("drift", ())]
    lacking = sorted(set(status["configuration"]["listeners_wanted"]) - set(envoy["listeners"]))
    if lacking and envoy["state"] == "live":
        coded.append(Finding("HM-E106", f"it lacks {', '.join(lacking)}"))
    for each in status["workloads"]:
        if not each["ready"]:
            coded.append(
                Finding("HM-M103", f"{each['namespace']}/{each['name']}: {each['health_reason'] or 'not ready'}")
            )
    yield from coded
    told = {each.what for each in coded}
    for problem in status["problems"]:
        if problem not in told and not _has_code(problem):
            yield Finding(next((code for start, code in _OF_PROBLEMS if problem.startswith(start)), "HM-A104"), problem)


def _has_code(problem: str) -> bool:
    """Tell whether a finding was made of what the document says beside the problem."""
    return problem.startswith(_TOLD_ALREADY) or problem.endswith(" is not ready") or " has no certificate: " in problem


_TOLD_ALREADY: Final = (
    "the controller is not connected",
    "reports are not delivered",
    "capture: ",
    "capture waits: ",
    "Envoy needs a restart",
)
_OF_PROBLEMS: Final = (
    ("the certificate of ", "HM-C107"),
    ("Envoy is ", "HM-E108"),
    ("Envoy hangs", "HM-E102"),
    ("Envoy was put back", "HM-E109"),
    ("the cold copy ", "HM-M104"),
    ("cold.", "HM-M104"),
    ("disk.full: ", "HM-H101"),
    ("the configuration on disk was lost", "HM-M105"),
)


def judge_disk(facts: DiskFacts) -> Iterator[Finding]:
    if facts.read_only:
        yield Finding("HM-H103", "its file system is mounted read-only")
    if facts.free_bytes < min(LOW_BYTES, facts.total_bytes // 50):
        yield Finding("HM-H101", f"{facts.free_bytes >> 20} MiB of {facts.total_bytes >> 20} MiB are free")
    if facts.total_inodes and facts.free_inodes < min(LOW_INODES, facts.total_inodes // 50):
        yield Finding("HM-H102", f"{facts.free_inodes} of {facts.total_inodes} are free")
    yield from (Finding("HM-H104", each) for each in facts.open_directories)


def judge_kernel(facts: KernelFacts) -> Iterator[Finding]:
    if facts.nf_tables is False:
        yield Finding("HM-K103", "it refuses to speak of nf_tables")
    if facts.release < OWNED_SINCE:
        yield Finding("HM-K104", "this is Linux {}.{}".format(*facts.release))
    if not facts.cgroup_v2:
        yield Finding("HM-K105", "cgroup v2 is not mounted")
    used, limit = facts.connections, facts.connections_max
    if used is not None and limit and used >= limit * FULL_SHARE:
        yield Finding("HM-K101", f"{used} connections are tracked, at most {limit} can be")
    if facts.dropped:
        yield Finding("HM-K102", f"{facts.dropped} found no room since the boot")
