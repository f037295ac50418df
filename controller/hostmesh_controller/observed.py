"""Calls as agents tell of them: which are believed, what they add to what was known, and how much of it is kept.

A host speaks for the ports of the workloads that are placed on it, and for nothing else. Whom it names as callers is
its own word: a host that lies makes a wrong picture of who calls itself.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from hostmesh_api.call_stats import METHODS, OTHER, Chain, Security, chain_of, port_of
from hostmesh_api.identity import parse_identity
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ObservedCall
from hostmesh_controller.mesh.inbound import inbound_ports
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.names import canonical_address
from hostmesh_controller.store import CallKey, CallRecord, PortKey

MAX_TOLD: Final = 2000
"""Calls of one report; an agent of this version tells half as many at most."""
MAX_CALLERS: Final = 1024
"""Of one port; the others are one, of whom there is no count."""
MAX_RECORDS: Final = 100_000
"""Of the whole mesh: about 60 MB."""
MAX_CALLER_CHARS: Final = 640
NOT_TOLD_APART: Final = ""
_KNOWN_METHODS: Final = frozenset({*METHODS, OTHER})
_MAX_COUNT: Final = 2**53
MAX_EPOCH_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Speaker:
    """A host that tells of calls: what its chains' ports are, and whose identities there can be."""

    host: str
    ports: Mapping[str, PortKey]
    trust_domains: frozenset[str]


class Source(NamedTuple):
    """Whose sums are told: a host's, of one of its epochs."""

    host: str
    epoch: str


def speaker(mesh: Mesh, host: str) -> Speaker:
    ports = {
        port_of(port.workload.address, port.number, shared=port.shared): PortKey(*port.workload.key, port.number)
        for port in inbound_ports(mesh, host)
    }
    return Speaker(host, ports, frozenset({mesh.settings.trust_domain, *mesh.config.trust_domain_aliases}))


def key_of(call: ObservedCall, by: Speaker) -> CallKey | None:
    """Return which calls the host tells of, or None if it may not, or if they make no sense."""
    chain = chain_of(call.chain)
    port = by.ports.get(chain.port) if chain is not None else None
    if chain is None or port is None:
        return None
    caller = _caller(call.caller, chain, by)
    return None if caller is None else CallKey(*port, call.chain.partition("|")[2], caller)


def _caller(text: str, chain: Chain, by: Speaker) -> str | None:
    if text == NOT_TOLD_APART:
        return text
    if len(text) > MAX_CALLER_CHARS:
        return None
    if chain.security is not Security.MUTUAL_TLS:
        return canonical_address(text)
    try:
        identity = parse_identity(text)
    except ValueError:
        return None
    return identity.uri if identity.trust_domain in by.trust_domains else None


def added(before: CallRecord | None, call: ObservedCall, key: CallKey, source: Source, now: datetime) -> CallRecord:
    """Return what is known of some calls once they were told of again; the same record if nothing is new."""
    host, epoch = source
    told, denied = min(call.count, _MAX_COUNT), min(call.denied, call.count, _MAX_COUNT)
    methods = frozenset(call.methods) & _KNOWN_METHODS
    last = now - timedelta(seconds=call.last_seen_s)
    first = min(now - timedelta(seconds=call.first_seen_s), last)
    if before is None:
        return CallRecord(key, methods, told, denied, first, last, host, epoch, told, denied)
    continues = (before.host, before.epoch) == source and told >= before.told
    more, more_denied = (told - before.told, max(denied - before.told_denied, 0)) if continues else (told, denied)
    if continues and not more and methods <= before.methods and last - before.last_seen < timedelta(seconds=1):
        return before
    return replace(
        before,
        methods=before.methods | methods,
        count=min(before.count + more, _MAX_COUNT),
        denied=min(before.denied + more_denied, _MAX_COUNT),
        first_seen=min(before.first_seen, first),
        last_seen=max(before.last_seen, last),
        host=host,
        epoch=epoch,
        told=told,
        told_denied=denied,
    )


def uncounted(before: CallRecord | None, new: CallRecord, key: CallKey) -> CallRecord:
    """Return what is known of the calls of those for whom there is no room, after one more: not how many there were."""
    if before is None:
        return replace(new, key=key, count=0, denied=0, told=0, told_denied=0)
    return replace(before, methods=before.methods | new.methods, last_seen=max(before.last_seen, new.last_seen))


def watched(host: str, report: HostReport, placed: Iterable[tuple[str, str]]) -> frozenset[PortKey]:
    """Return the ports of which a host sees every call: the captured ones of the workloads placed on it; and itself."""
    known = frozenset(placed)
    captured = (
        PortKey(lease.namespace, lease.name, port)
        for lease in report.leases
        if (lease.namespace, lease.name) in known
        for port in lease.captured_ports
    )
    return frozenset((host_itself(host), *captured))


def host_itself(host: str) -> PortKey:
    """Return what stands for a host among watched ports: its Envoy counts, whatever its ports are."""
    return PortKey("", host, 0)
