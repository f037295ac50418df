"""What may be captured now, decided from what is wanted and what is known. Pure.

Capture widens only with evidence: the certificate is in place and Envoy has the listeners. It narrows at once. What is
captured and still wanted stays captured whatever happens to the evidence: while Envoy is down its connections wait or
fail, and none goes out in plain text. Unless the policy says `open` for a direction: then what need not be mutual TLS
passes by from when Envoy is gone until it has its listeners again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from hostmesh_agent.capture import OWN_PORTS, CaptureRequest, HostFloor, Scope, Table, plan
from hostmesh_agent.capture.who import Direction
from hostmesh_agent.certs import Wanted, wanted
from hostmesh_agent.state import HostRecord
from hostmesh_agent.terms import narrowing
from hostmesh_api.joinstring import require_endpoint
from hostmesh_api.v1.hostmesh_pb2 import Capture, HostConfig


class RefusedError(ValueError):
    """The controller's configuration for this host cannot be used; the controller is told why."""


@dataclass(frozen=True, slots=True)
class InForce:
    """What the kernel captures now."""

    inbound_ports: frozenset[int] = frozenset()
    outbound: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of this moment.

    Attributes:
        certificates: SPIFFE IDs whose certificates are in place.
        listeners: that Envoy has.
        in_force: what the kernel captures.
        guarded: ports that took mutual TLS alone when they were last captured: they are closed before they are served.
        always: ports that are captured whatever the controller wants: so the host's owner says.
        gone: there is no Envoy that serves.
        passing: the directions that pass by Envoy since it was gone.
    """

    certificates: frozenset[str]
    listeners: frozenset[str]
    in_force: InForce
    guarded: frozenset[int] = frozenset()
    always: frozenset[int] = frozenset()
    gone: bool = False
    passing: frozenset[Direction] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """`request` None: nothing is to be captured. `lacking` says what else is wanted and why it must wait.

    `passing` are the directions that pass by Envoy because it is gone.
    """

    request: CaptureRequest | None
    lacking: tuple[str, ...]
    passing: frozenset[Direction] = frozenset()


def full_request(wanted: Capture) -> CaptureRequest:
    """Return everything the controller asks for."""
    return CaptureRequest(
        scope=Scope.ALL if wanted.scope == Capture.ALL else Scope.MESH,
        inbound_ports=frozenset(wanted.inbound_ports),
        mesh_prefixes=frozenset(wanted.outbound_prefixes),
        virtual_prefixes=frozenset(wanted.virtual_prefixes),
        dns=wanted.dns,
        inbound=narrowing(wanted.inbound),
        outbound=narrowing(wanted.outbound),
        transparent=wanted.transparent,
    )


def check(config: HostConfig, record: HostRecord, floor: HostFloor) -> Wanted:
    """Return the certificates that the configuration needs.

    Raises:
        RefusedError: it is not for this host or cannot be planned; the reason is for the controller's operator.
    """
    if (config.host, config.trust_domain) != (record.host, record.trust_domain):
        raise RefusedError(
            f"it is for host {config.host!r} of {config.trust_domain!r}, "
            f"this is {record.host!r} of {record.trust_domain!r}"
        )
    try:
        for endpoint in (*config.agents_endpoints, *config.join_endpoints):
            require_endpoint(endpoint)
        try:
            plan(full_request(config.capture), floor)
        except ValueError as error:
            policy = config.capture.policy
            raise RefusedError(f"CapturePolicy {policy}: {error}" if policy else str(error)) from error
        return wanted(config, record.identity)
    except ValueError as error:
        raise RefusedError(str(error)) from error


def decide(config: HostConfig, evidence: Evidence) -> Decision:
    """Return what may be captured now, and what has to wait for what."""
    missing = sorted(set(config.listeners) - evidence.listeners)
    no_listener = f"Envoy does not have {', '.join(missing)} yet" if missing else ""
    passing = _passing(config, evidence, no_listener)
    inbound, lacking = _inbound(config, evidence, no_listener, passing)
    outbound_lacks = "" if evidence.in_force.outbound else _outbound_lacks(config, evidence, no_listener)
    full = full_request(config.capture)
    wants_outbound = full.scope is Scope.ALL or bool(full.mesh_prefixes or full.virtual_prefixes)
    if wants_outbound and outbound_lacks:
        lacking.append(f"outbound: {outbound_lacks}")
    outbound = wants_outbound and not outbound_lacks
    passes = outbound and Direction.OUTBOUND in passing
    called = full.mesh_prefixes
    if passes:
        called -= frozenset(config.capture.open_prefixes)
        lacking.append("outbound: what is not of the mesh passes by until Envoy is back")
    if not inbound and not outbound:
        return Decision(None, tuple(lacking), passing)
    return Decision(
        CaptureRequest(
            # The mesh's own destinations are called with mutual TLS, and virtual addresses are nobody else's.
            scope=full.scope if outbound and not passes else Scope.MESH,
            inbound_ports=frozenset(inbound),
            mesh_prefixes=called if outbound else frozenset(),
            virtual_prefixes=full.virtual_prefixes if outbound else frozenset(),
            dns=full.dns and outbound,
            inbound=full.inbound,
            outbound=full.outbound,
            strict_ports=frozenset(config.strict_ports) | evidence.always,
            transparent=full.transparent,
        ),
        tuple(lacking),
        passing,
    )


def _passing(config: HostConfig, evidence: Evidence, no_listener: str) -> frozenset[Direction]:
    """Return the directions that pass by: from when Envoy is gone until it has its listeners again."""
    capture = config.capture
    may = {Direction.INBOUND: capture.inbound.open, Direction.OUTBOUND: capture.outbound.open}
    may[Direction.OUTBOUND] &= capture.scope == Capture.ALL or bool(capture.open_prefixes)
    without = {each for each in Direction if evidence.gone or (each in evidence.passing and no_listener)}
    return frozenset(each for each in without if may[each])


def _inbound(
    config: HostConfig, evidence: Evidence, no_listener: str, passing: frozenset[Direction]
) -> tuple[set[int], list[str]]:
    owners = {port: each.spiffe_id for each in config.workloads for port in each.ports}
    closed = evidence.in_force.inbound_ports | evidence.guarded
    if Direction.INBOUND in evidence.passing - passing:
        # They passed by, and must not any more. What has no certificate was never captured, and waits for it.
        closed |= {
            port for port in config.capture.inbound_ports if owners.get(port, "") in {"", *evidence.certificates}
        }
    allowed = set(evidence.always)
    lacking: list[str] = []
    for port in sorted(config.capture.inbound_ports):
        owner = owners.get(port, "")
        if Direction.INBOUND in passing:
            # A port that takes mutual TLS alone is closed, also one that does so since Envoy is gone.
            if port in config.strict_ports:
                allowed.add(port)
            elif port not in allowed:
                lacking.append(f"inbound port {port}: connections pass by until Envoy is back")
        elif port in closed:
            allowed.add(port)
        elif no_listener:
            lacking.append(f"inbound port {port}: {no_listener}")
        elif owner and owner not in evidence.certificates:
            lacking.append(f"inbound port {port}: {owner} has no certificate yet")
        else:
            allowed.add(port)
    return allowed, lacking


def _outbound_lacks(config: HostConfig, evidence: Evidence, no_listener: str) -> str:
    if no_listener:
        return no_listener
    if config.outbound_spiffe_id and config.outbound_spiffe_id not in evidence.certificates:
        return f"{config.outbound_spiffe_id} has no certificate yet"
    return ""


def in_force(table: Table | None) -> InForce:
    """Read from the kernel's table what it captures."""
    if table is None:
        return InForce()
    ports: set[int] = set()
    outbound = False
    for each in table.sets:
        if each.name == "inbound_ports":
            ports = set(_numbers(each.ranges))
        elif each.name.startswith(("mesh", "virtual")):
            outbound = outbound or bool(each.ranges)
    return InForce(frozenset(ports) - OWN_PORTS, outbound)


def _numbers(ranges: Iterable[tuple[bytes, bytes]]) -> Iterable[int]:
    for first, last in ranges:
        yield from range(int.from_bytes(first, "big"), int.from_bytes(last, "big") + 1)
