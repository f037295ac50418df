"""The state of the host's part of the mesh, as one document: for people, for scripts, and for the time after the agent.

The agent answers from what it knows; without an agent the same document is made from the disk and the kernel.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hostmesh_agent import hold, life_file, process, workdir
from hostmesh_agent.alarms import Alarm, Alarms
from hostmesh_agent.cache import Cache
from hostmesh_agent.capture import Capture
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.enforce import Enforced
from hostmesh_agent.envoy import EnvoyStatus
from hostmesh_agent.identities import AGENT
from hostmesh_agent.keyroom import validity
from hostmesh_agent.lifecycle import Phase
from hostmesh_agent.modules import ModuleState
from hostmesh_agent.relay import RelayState
from hostmesh_agent.rotation import Validity
from hostmesh_agent.state import HostRecord, NotJoinedError, State, StateError
from hostmesh_agent.svid import SvidError
from hostmesh_api.v1.hostmesh_pb2 import CaptureGap, WorkloadLease

CAPTURE_OFF: Final = hold.OFF
"""If this file exists in the state directory, nothing is captured: the owner of the host said so."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a running agent knows."""

    record: HostRecord
    agent_version: str
    relay: RelayState
    report_failing: str
    envoy: EnvoyStatus
    enforced: Enforced
    lacking: Sequence[str]
    validities: Mapping[str, Validity]
    missing: Mapping[str, str]
    leases: Sequence[WorkloadLease]
    listeners_wanted: Sequence[str]
    listeners: frozenset[str]
    capture_wanted: str
    """Empty if it is; else why the owner of the host does not want it."""
    modules: Sequence[ModuleState] = ()
    bootstrap_problem: str = ""
    """Why Envoy's bootstrap is not as the configuration wants it."""
    workload_api: Mapping[str, Any] | None = None
    """What it serves and where; None: the owner of the host does not want it."""
    workload_api_problems: Sequence[str] = ()
    capture_alarms: Sequence[str] = ()
    """Changes of capture that were undone, and other programs that change its rules."""
    capture_drift: Sequence[str] = ()
    capture_foreign: Sequence[str] = ()
    """What chains of other programs take before capture's rules see it."""
    trial_until: datetime | None = None
    """Until when a trial of capture waits for its confirmation; None: there is none."""
    envoys: Mapping[str, Any] = field(default_factory=dict)
    """Which of the two Envoys serves, and how a change of them stands."""
    envoy_problems: Sequence[str] = ()
    withdrawn: str = ""
    """Why no caller is to use this host's workloads; "" if they may."""
    recognition: Mapping[str, Any] = field(default_factory=dict)
    """By what rules know Envoy, and which programs call under an identity of their own."""
    recognition_problems: Sequence[str] = ()
    returning_problem: str = ""
    """Why this host, whose certificate is not taken any more, cannot come back."""
    gaps: Sequence[CaptureGap] = ()
    """Of each direction that was without a proxy: the last such time."""
    alarms: Sequence[Alarm] = ()
    """What is wrong with this host by its name."""


def capture_wanted(config: AgentConfig) -> str:
    """Return why nothing is captured by the will of the host's owner; empty if it may be."""
    if not config.capture.enabled:
        return hold.DISABLED
    if hold.tries(config.run_dir):
        return ""
    if hold.is_off(config.state_dir):
        return f"hostmesh-agent capture clear was called ({hold.RESUME})"
    held = hold.read(config.state_dir)
    return f"{held.alarm}: {held.why} ({hold.RESUME})" if held is not None and held.capture is None else ""


def capture_alarms(config: AgentConfig) -> list[str]:
    """Return what the host's people must know of capture: a change that was undone, one sentence each."""
    held = hold.read(config.state_dir)
    if held is None:
        return []
    left = "nothing is captured" if held.capture is None else "capture is not widened"
    when = datetime.fromtimestamp(held.at, UTC)
    return [f"{held.alarm}: a change of capture was undone at {_time(when)}, {left} until {hold.RESUME}: {held.why}"]


def document(facts: Facts, now: datetime) -> dict[str, Any]:
    """Return the whole state.

    `healthy` if and only if `problems` is empty; `ready` if the host serves what its configuration says, be it from
    disk with the controller away.
    """
    problems = list(_problems(facts, now))
    relay, envoy, enforced = facts.relay, facts.envoy, facts.enforced
    return {
        "healthy": not problems,
        "ready": _ready(facts),
        "problems": problems,
        "alarms": [{"code": each.code, "text": each.text} for each in facts.alarms],
        "agent": {"running": True, "version": facts.agent_version},
        "host": _host(facts.record),
        "controller": {
            "connected": relay.connected,
            "since": _time(relay.since),
            "last_error": relay.last_error,
            "reports": facts.report_failing or "delivered",
            "returning": facts.returning_problem,
        },
        "certificates": _certificates(facts.validities, facts.missing),
        "envoy": {
            "state": envoy.view.phase.value,
            "pid": envoy.view.pid,
            "version": envoy.version,
            "adopted": envoy.view.adopted,
            "restarts": envoy.view.restarts,
            "crash_looping": envoy.view.crash_looping,
            "last_exit": envoy.view.last_exit,
            "restart_needed": envoy.restart_needed,
            "listeners": sorted(facts.listeners),
            **facts.envoys,
        },
        "withdrawn": facts.withdrawn,
        "configuration": {
            "envoy_connected": relay.envoy_connected,
            "accepted": {name.rpartition(".")[2]: count for name, count in sorted(relay.accepted.items())},
            "refusals": [
                {"at": _time(each.at), "type": each.type_url.rpartition(".")[2], "name": each.name, "why": each.message}
                for each in relay.refusals
            ],
            "lost": relay.lost,
            "cold_copy": relay.cold_copy,
            "listeners_wanted": sorted(facts.listeners_wanted),
            "modules": [
                {"plugin": each.name, "url": each.url, "there": each.there, "error": each.error}
                for each in facts.modules
            ],
        },
        "capture": {
            "state": enforced.capture.state,
            "backend": enforced.capture.backend,
            "rules_hash": enforced.capture.rules_hash,
            "error": enforced.capture.error,
            "inbound_ports": sorted(enforced.in_force.inbound_ports),
            "outbound": enforced.in_force.outbound,
            "refused": [str(each) for each in enforced.capture.refused],
            "missing": list(enforced.capture.missing),
            "gaps": [_gap(each) for each in facts.gaps],
            "waiting_for": list(facts.lacking),
            "not_wanted": facts.capture_wanted,
            "alarms": list(facts.capture_alarms),
            "drift": list(facts.capture_drift),
            "foreign_chains": list(facts.capture_foreign),
            "trial_until": _time(facts.trial_until),
            **facts.recognition,
        },
        "dns": {
            "in_place": enforced.dns_in_place,
            "detail": enforced.dns_detail,
            "left_alone": enforced.dns_left_alone,
        },
        "workloads": [
            {
                "namespace": each.namespace,
                "name": each.name,
                "ready": each.ready,
                "health": WorkloadLease.Health.Name(each.health).lower(),
                "health_reason": each.health_reason,
                "captured_ports": list(each.captured_ports),
            }
            for each in facts.leases
        ],
        "workload_api": facts.workload_api,
    }


def _gap(gap: CaptureGap) -> dict[str, Any]:
    return {
        "direction": gap.direction,
        "failure_mode": "open" if gap.open else "closed",
        "lasts": gap.lasts,
        "refused_ms": gap.refused_ms,
        "passed_ms": gap.passed_ms,
        "count": gap.count,
        "total_ms": gap.total_ms,
    }


def _ready(facts: Facts) -> bool:
    served = bool(facts.listeners_wanted) and facts.listeners.issuperset(facts.listeners_wanted)
    live = facts.envoy.view.phase is Phase.LIVE
    return served and live and not facts.lacking and facts.enforced.capture.state != "error"


def _problems(facts: Facts, now: datetime) -> Iterator[str]:
    relay, envoy = facts.relay, facts.envoy
    if not relay.connected:
        yield f"the controller is not connected: {relay.last_error or 'not reached yet'}"
        if facts.returning_problem:
            yield facts.returning_problem
    elif facts.report_failing:
        yield f"reports are not delivered: {facts.report_failing}"
    if relay.lost:
        yield f"the configuration on disk was lost: {relay.lost}"
    yield from relay.problems
    for name, each in sorted(facts.validities.items()):
        if each.not_after <= now:
            yield f"the certificate of {_owner(name)} ended at {_time(each.not_after)}"
    for name, why in sorted(facts.missing.items()):
        yield f"{name} has no certificate: {why}"
    if envoy.view.phase is not Phase.LIVE:
        why = f" ({envoy.view.last_exit})" if envoy.view.last_exit else ""
        yield f"Envoy is {envoy.view.phase.value}{why}"
    if envoy.restart_needed:
        yield f"Envoy needs a restart: {envoy.restart_needed}"
    yield from facts.envoy_problems
    yield from map(str, facts.alarms)
    yield from configuration_problems(facts.modules, facts.bootstrap_problem)
    yield from facts.workload_api_problems
    yield from facts.recognition_problems
    if facts.enforced.capture.state == "error":
        yield f"capture: {facts.enforced.capture.error}"
    yield from facts.capture_alarms
    yield from (f"capture waits: {each}" for each in facts.lacking)
    yield from (f"{each.namespace}/{each.name} is not ready" for each in facts.leases if not each.ready)


def configuration_problems(modules: Iterable[ModuleState], bootstrap_problem: str) -> Iterator[str]:
    """Yield what of the configuration does not work here, and what happens instead."""
    if bootstrap_problem:
        yield bootstrap_problem
    for each in modules:
        if each.error and not each.there:
            instead = "everything passes without it" if each.fail_open else "what it guards is refused"
            yield f"the Wasm module of {each.name} ({each.url}) is not there, {instead}: {each.error}"


def offline(config: AgentConfig, why: str, now: datetime) -> dict[str, Any]:
    """Return what can be said without an agent: from the disk and the kernel, in the same form."""
    problems = [why]
    alarms = Alarms()
    state = State(config.state_dir, alarms)
    record: HostRecord | None = None
    certificates: list[dict[str, Any]] = []
    try:
        record = state.host()
        serial, not_before, not_after = validity(state.files().chain_pem)
        certificates = _certificates({AGENT: Validity(serial, not_before, not_after)}, {})
        if not_after <= now:
            problems.append(f"the certificate of this host ended at {_time(not_after)}")
    except NotJoinedError as error:
        problems = [str(error)]
    except (StateError, SvidError) as error:
        problems.append(str(error))
    capture = Capture().state()
    directory = life_file.active_directory(config)
    running = process.recorded_runs(directory)
    if record is not None and not running:
        problems.append("Envoy does not run")
    if capture.state == "error":
        problems.append(f"capture: {capture.error}")
    cached = _cached(config, alarms)
    return {
        "healthy": False,
        "ready": False,
        "problems": [*problems, *map(str, alarms)],
        "alarms": [{"code": each.code, "text": each.text} for each in alarms],
        "agent": {"running": False},
        "host": None if record is None else _host(record),
        "certificates": certificates,
        "envoy": _envoy_offline(config, directory, running),
        "configuration": {"accepted": cached},
        "capture": {
            "state": capture.state,
            "backend": capture.backend,
            "rules_hash": capture.rules_hash,
            "error": capture.error,
            "not_wanted": capture_wanted(config),
        },
    }


def _envoy_offline(config: AgentConfig, directory: Path, running: bool) -> dict[str, Any]:
    record = process.read_record(directory)
    held = (config.envoy_dir / workdir.HOLD).exists()
    return {
        "state": "running" if running else "held" if held else "down",
        "pid": record.pid if record is not None and running else None,
        "version": "" if record is None else record.version,
        "last_words": "" if running else workdir.last_words(directory),
    }


def _cached(config: AgentConfig, alarms: Alarms) -> dict[str, int]:
    counts: dict[str, int] = {}
    directory = config.state_dir / "cache"
    # Opening a cache creates it: a question must leave nothing behind.
    if directory.is_dir() and any(directory.iterdir()):
        cache = Cache(directory, alarms)
        for each in cache.entries():
            name = each.type_url.rpartition(".")[2]
            counts[name] = counts.get(name, 0) + 1
        cache.close()
    return dict(sorted(counts.items()))


def _host(record: HostRecord) -> dict[str, Any]:
    return {
        "name": record.host,
        "trust_domain": record.trust_domain,
        "spiffe_id": record.identity.uri,
        "controllers": list(record.agents_endpoints),
    }


def _certificates(validities: Mapping[str, Validity], missing: Mapping[str, str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "serial": each.serial, "not_after": _time(each.not_after)}
        for name, each in sorted(validities.items())
    ]
    return found + [{"name": name, "missing": why} for name, why in sorted(missing.items())]


def _owner(name: str) -> str:
    return "this agent" if name == AGENT else name


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="seconds")


def table(status: Mapping[str, Any]) -> str:
    """Return the document for human eyes."""
    lines = [f"{name:<12} {value}" for name, value in _rows(status)]
    lines += ["", *(f"  problem: {each}" for each in status["problems"])] if status["problems"] else []
    lines += [f"  finding: {each['code']} {each['title']}; cure: {each['cure']}" for each in status.get("findings", ())]
    return "\n".join(lines)


def _rows(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    host, envoy, capture = status["host"], status["envoy"], status["capture"]
    yield "health", "healthy" if status["healthy"] else "not healthy"
    yield "agent", f"running, {status['agent']['version']}" if status["agent"]["running"] else "not running"
    yield "host", "has not joined" if host is None else f"{host['name']} ({host['spiffe_id']})"
    if "controller" in status:
        controller = status["controller"]
        since = f"since {controller['since']}" if controller["connected"] else controller["last_error"]
        yield "controller", f"{'connected' if controller['connected'] else 'not connected'}, {since}"
    for each in status["certificates"]:
        yield "certificate", f"{each['name']}: {each.get('missing') or 'until ' + each['not_after']}"
    pid = f", pid {envoy['pid']}" if envoy["pid"] else ""
    change = "" if envoy.get("stage", "steady") == "steady" else f", {envoy['instance']} ({envoy['stage']})"
    yield "envoy", f"{envoy['state']}{pid}, version {envoy['version'] or 'unknown'}{change}"
    accepted = ", ".join(f"{count} {name}" for name, count in status["configuration"]["accepted"].items())
    yield "config", accepted or "none"
    cold = status["configuration"].get("cold_copy")
    if cold:
        yield "cold copy", f"{cold['services']} services, {cold['bytes']} bytes"
    ports = ", ".join(map(str, capture.get("inbound_ports", ()))) or "none"
    details = (
        f", inbound ports {ports}, outbound {'yes' if capture['outbound'] else 'no'}" if "outbound" in capture else ""
    )
    yield "capture", f"{capture['state']}{details}" + (f" ({capture['not_wanted']})" if capture["not_wanted"] else "")
    for each in capture.get("gaps", ()):
        since = "lasts" if each["lasts"] else "is over"
        passed = f", passed by for {each['passed_ms']} ms" if each["failure_mode"] == "open" else ""
        yield (
            "gap",
            f"{each['direction']} without Envoy ({each['failure_mode']}) {since}: refused for {each['refused_ms']} ms"
            f"{passed}; {each['count']} in all, {each['total_ms']} ms",
        )
    for each in capture.get("foreign_chains", ()):
        yield "foreign", each
    for each in capture.get("missing", ()):
        yield "not there", f"{each}: what the capture policy says of it is not in force"
    if "dns" in status:
        detail = f" ({status['dns']['detail']})" if status["dns"]["detail"] else ""
        yield "dns", f"{'in place' if status['dns']['in_place'] else 'off'}{detail}"
    if status.get("workload_api"):
        served = status["workload_api"]
        yield "workload api", f"{served['socket']}, {len(served['identities'])} identities"
    for each in status.get("workloads", ()):
        health = f", unhealthy: {each['health_reason']}" if each.get("health") == "unhealthy" else ""
        yield "workload", f"{each['namespace']}/{each['name']} {'ready' if each['ready'] else 'not ready'}{health}"
