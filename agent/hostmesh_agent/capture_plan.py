"""What capture would be beside what it is: for people who look before they let it happen. Blocks for milliseconds."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hostmesh_agent import foreign, workdir
from hostmesh_agent.cache import Cache
from hostmesh_agent.capture import CaptureError, HostFloor, PlanError, kernel, routes
from hostmesh_agent.capture import floor as kernel_floor
from hostmesh_agent.capture.difference import difference
from hostmesh_agent.capture.rules import Ruleset
from hostmesh_agent.capture.text import table_text
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.controller_addresses import ControllerAddresses
from hostmesh_agent.converge import Decision, full_request
from hostmesh_agent.enforce import Enforcement
from hostmesh_agent.relay import host_config
from hostmesh_agent.state import State, StateError
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import CLIENT_MARK, HOST_CONFIG_TYPE

NOTHING = "# nothing is to be captured\n"


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be applied, and how that differs from the kernel.

    Attributes:
        source: whose plan it is: of the running agent, or of the configuration on disk.
        rules: in nft's words.
        difference: a line for each part that would come ("+") or go ("-"); none if nothing would.
        refused: what is wanted and never done.
        lacking: what is wanted and has to wait, and for what.
        foreign: what chains of other programs would take before these rules see it.
        held: capture is held: nothing of this is done before a `capture trial` or `capture resume`.
    """

    source: str
    rules: str
    difference: tuple[str, ...]
    refused: tuple[str, ...]
    lacking: tuple[str, ...]
    held: bool
    foreign: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "rules": self.rules,
            "difference": list(self.difference),
            "refused": list(self.refused),
            "waiting_for": list(self.lacking),
            "held": self.held,
            "foreign_chains": list(self.foreign),
        }


def planned(enforcement: Enforcement, decision: Decision, floor: HostFloor, held: bool) -> Plan:
    """Return the running agent's plan.

    Raises:
        CaptureError: it cannot be planned, or the kernel does not tell.
    """
    try:
        ruleset = None if decision.request is None else enforcement.ruleset(decision.request, floor)
    except PlanError as error:
        raise CaptureError(str(error)) from error
    return _compared("the running agent", ruleset, decision.lacking, held)


def on_disk(config: AgentConfig, held: bool) -> Plan:
    """Return the plan of the last good configuration, for when no agent runs: all of it, as if Envoy were ready.

    Raises:
        CaptureError: there is none, or it cannot be planned, or the kernel does not tell.
    """
    found = _last_configuration(config)
    if found is None:
        raise CaptureError(f"there is no configuration in {config.state_dir}: no controller has sent one yet")
    try:
        floor = kernel_floor.look(
            workdir.account(config.envoy.user).uid,
            ControllerAddresses(config.state_dir, writes=False).look(State(config.state_dir).host().agents_endpoints),
            config.capture,
            mtls_only=config.floor.mtls_only,
        )
        request = full_request(found.capture)
        enforcement = Enforcement(
            dns=config.dns.enabled, resolv_conf=config.dns.resolv_conf, state_dir=config.state_dir
        )
        ruleset = enforcement.ruleset(request, floor)
    except (PlanError, StateError, workdir.WorkdirError) as error:
        raise CaptureError(str(error)) from error
    return _compared("the configuration on disk (no agent runs)", ruleset, (), held)


def _last_configuration(config: AgentConfig) -> HostConfig | None:
    directory = config.state_dir / "cache"
    # Opening a cache creates it: a question must leave nothing behind.
    if not directory.is_dir() or not any(directory.iterdir()):
        return None
    cache = Cache(directory)
    try:
        bodies = [each.resource.body for each in cache.entries() if each.type_url == HOST_CONFIG_TYPE]
    finally:
        cache.close()
    return host_config(bodies[0]) if bodies else None


def _compared(source: str, ruleset: Ruleset | None, lacking: tuple[str, ...], held: bool) -> Plan:
    now = kernel.read()
    wanted = None if ruleset is None else ruleset.table
    lines = difference(now, wanted)
    refused: tuple[str, ...] = ()
    rules = NOTHING
    if ruleset is not None:
        missing = routes.lacking(ruleset.virtual_prefixes, ruleset.loopback_addresses, ruleset.marked_home)
        lines += tuple(f"+ route to {each} over the loopback interface" for each in sorted(missing.prefixes))
        lines += tuple(f"+ address {each} of the loopback interface" for each in sorted(missing.addresses))
        lines += tuple(f"+ {what} of IPv{version} for mark {CLIENT_MARK}" for version, what in sorted(missing.marked))
        refused = tuple(map(str, ruleset.refused))
        rules = table_text(ruleset.table)
    others: tuple[str, ...] = ()
    with suppress(CaptureError):  # changed by others meanwhile: the plan holds all the same
        others = tuple(map(str, foreign.look_at(wanted)))
    return Plan(source, rules, lines, refused, lacking, held, others)


def text(plan: Mapping[str, Any]) -> str:
    """Return a plan's document for human eyes."""
    lines = [f"# by {plan['source']}", *plan["rules"].splitlines(), ""]
    lines += [f"refused: {each}" for each in plan["refused"]]
    lines += [f"waits: {each}" for each in plan["waiting_for"]]
    lines += [f"before it: {each}" for each in plan["foreign_chains"]]
    if plan["held"]:
        lines.append("held: none of this is done before `capture trial` or `capture resume`")
    if plan["difference"]:
        lines += ["the kernel would be changed:", *(f"  {each}" for each in plan["difference"])]
    else:
        lines.append("the kernel holds exactly this")
    return "\n".join(lines)
