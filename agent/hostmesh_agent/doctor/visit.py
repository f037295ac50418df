"""All looks and judges, one after the other. A look that fails costs its own findings and no others."""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from hostmesh_agent.config import AgentConfig
from hostmesh_agent.doctor import host, identity, look_host, look_identity, look_mesh, look_names, mesh
from hostmesh_agent.doctor.ailments import AILMENTS, Finding, Severity
from hostmesh_agent.name_findings import findings as name_findings
from hostmesh_agent.state import State, StateError

_ORDER = {each: at for at, each in enumerate(Severity)}


def examine(config: AgentConfig, config_problem: str = "") -> list[Finding]:
    """Return what is wrong, errors first; each thing once. Takes seconds where something does not answer.

    `config_problem` is why agent.toml is refused; "" if it is not.
    """
    found = dict.fromkeys([*of_config(config_problem), *_examine(config)])
    if any(each.code in {"HM-E101", "HM-E102"} for each in found):
        # One that does not answer does not tell its listeners either.
        found = {each: None for each in found if each.code not in {"HM-E106"}}
    at = {each.code: number for number, each in enumerate(AILMENTS)}
    return sorted(found, key=lambda each: (_ORDER[each.severity], at[each.code]))


def of_config(problem: str) -> list[Finding]:
    return [Finding("HM-A107", problem)] if problem else []


def healthy(findings: Iterable[Finding]) -> bool:
    """Notes alone do no harm."""
    return all(each.severity is Severity.NOTE for each in findings)


def _examine(config: AgentConfig) -> Iterator[Finding]:
    now = datetime.now(UTC)
    state = State(config.state_dir)
    agents: list[Any] = []

    def agent() -> Iterator[Finding]:
        agents.append(look_host.look_agent(config, now))
        return host.judge_agent(agents[0])

    yield from tried("the agent", agent)
    answers = bool(agents and agents[0].answers)
    status = agents[0].status if agents else {}
    joined = state.joined
    looks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("the identity", lambda: identity.judge(look_identity.look(config, now))),
        ("the disk", lambda: () if (disk := look_host.look_disk(config)) is None else host.judge_disk(disk)),
        ("the kernel", lambda: host.judge_kernel(look_host.look_kernel())),
        ("Envoy", lambda: mesh.judge_envoy(look_mesh.look_envoy(config), joined=joined)),
        ("rules and ports", lambda: mesh.judge_rules(look_mesh.look_rules(), agent=answers, joined=joined)),
        ("the controllers", lambda: mesh.judge_controllers(look_mesh.look_controllers(config, _endpoints(state)))),
        ("names", lambda: _names(config, status)),
    )
    for what, act in looks:
        yield from tried(what, act)


def _names(config: AgentConfig, status: Any) -> Iterable[Finding]:
    facts, silent = look_names.look(config, status)
    return mesh.judge_names(name_findings(facts), silent)


def _endpoints(state: State) -> tuple[str, ...]:
    try:
        return state.host().agents_endpoints
    except StateError:
        return ()


def tried(what: str, act: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Return what a look and its judge come to; of one that fails, that it failed."""
    try:
        return list(act())
    except Exception as error:  # a doctor that falls ill is of no use: it says so and goes on
        return [Finding("HM-X101", f"{what}: {str(error) or type(error).__name__}")]
