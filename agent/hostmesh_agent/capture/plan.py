"""What is captured, decided: a request and the host's floor in, the whole ruleset out. Pure.

The order of the output chain is the policy. Envoy first, since everything it sends must pass; then what must never
depend on Envoy (SSH, the controller); then virtual addresses, which exist nowhere else; then the host itself; then
the mesh.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from hostmesh_agent.capture import callers
from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.callers import Caller
from hostmesh_agent.capture.rules import (
    Chain,
    Hook,
    KeyType,
    NamedSet,
    Refusal,
    Rule,
    Ruleset,
    Table,
)
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_api import wire

SSH_PORT: Final = 22
NAME_PORTS: Final = (53, 853)
"""Where resolvers are asked over TCP: names outside the mesh must be found whatever may be called."""
BEFORE_DOCKER: Final = -110  # Docker's and everybody's destination NAT is at -100
BEFORE_NAT: Final = -150  # "mangle": the answer still carries Envoy's own address

CONTROLLER_PORTS: Final = frozenset({wire.AGENTS_PORT, wire.JOIN_PORT, wire.ADMIN_PORT})
OWN_PORTS: Final = CONTROLLER_PORTS | {wire.OUTBOUND_PORT, wire.INBOUND_PORT, wire.DNS_PORT}

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

_LOOPBACK: Final[dict[int, Prefix]] = {4: IPv4Network("127.0.0.0/8"), 6: IPv6Network("::1/128")}
_INBOUND_SOURCE: Final[dict[int, Address]] = {
    4: IPv4Address(wire.INBOUND_SOURCE_V4),
    6: IPv6Address(wire.INBOUND_SOURCE_V6),
}
_KEY: Final = {4: KeyType.IPV4, 6: KeyType.IPV6}


class Scope(StrEnum):
    MESH = "mesh"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """What the controller asks for.

    Prefixes are CIDR text of either family. `virtual_prefixes` are the ranges of virtual addresses: captured in either
    scope, and made routable. `callers` are programs that call others under an identity of their own.
    """

    scope: Scope = Scope.MESH
    inbound_ports: frozenset[int] = frozenset()
    mesh_prefixes: frozenset[str] = frozenset()
    virtual_prefixes: frozenset[str] = frozenset()
    dns: bool = True
    callers: tuple[Caller, ...] = ()

    @property
    def outbound(self) -> bool:
        """Whether anything that programs of the host call is captured."""
        return self.scope is Scope.ALL or bool(self.mesh_prefixes or self.virtual_prefixes)


@dataclass(frozen=True, slots=True)
class HostFloor:
    """What the host insists on, whatever the controller asks for.

    Attributes:
        envoy_uid: user of Envoy's process; never 0, or the whole system's traffic would pass for Envoy's.
        envoy_cgroup: by what Envoy is known where there is cgroup v2; None: by its user alone.
        ssh_ports: where the host's SSH servers listen; 22 is always added.
        ssh_servers: the same as far as it is known, without that.
        never_inbound_ports: the operator's excludes.
        controller: addresses and ports of the controllers.
        ipv6: the kernel has IPv6 on.
        envoy_ports: what Envoy listens on beside the well-known ports.
        mtls_only: the host's owner lets nobody in without mutual TLS: from outside there is no way to Envoy but its
            listener of inbound connections.
        outbound_port: Envoy's listener for outbound TCP; another during a blue/green change. Same for the next two.
    """

    envoy_uid: int
    ssh_ports: frozenset[int] = frozenset()
    ssh_servers: frozenset[int] = frozenset()
    never_inbound_ports: frozenset[int] = frozenset()
    controller: frozenset[tuple[str, int]] = frozenset()
    ipv6: bool = True
    envoy_ports: frozenset[int] = frozenset()
    mtls_only: bool = False
    envoy_cgroup: ByCgroup | None = None
    outbound_port: int = wire.OUTBOUND_PORT
    inbound_port: int = wire.INBOUND_PORT
    dns_port: int = wire.DNS_PORT


class PlanError(ValueError):
    """The request or the floor cannot be planned; nothing must be applied."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """The request after the refusals, with addresses parsed."""

    request: CaptureRequest
    floor: HostFloor
    inbound_ports: frozenset[int]
    mesh: dict[int, tuple[Prefix, ...]]
    virtual: dict[int, tuple[Prefix, ...]]
    families: tuple[int, ...] = field(default=(4, 6))


def plan(request: CaptureRequest, floor: HostFloor) -> Ruleset:
    """Return the rules for `request` that `floor` allows.

    What the floor forbids is left out and reported in `refused`; the rest of the request still holds.

    Raises:
        PlanError: a port or a prefix is no such thing, or Envoy would run as root.
    """
    if floor.envoy_uid <= 0:
        raise PlanError(
            f"Envoy must have a user of its own; uid {floor.envoy_uid} would exempt the system from capture"
        )
    inbound_ports, refused = _allowed_ports(request.inbound_ports, floor)
    parts = _Parts(
        request=request,
        floor=floor,
        inbound_ports=inbound_ports,
        mesh=_by_family(request.mesh_prefixes),
        virtual=_by_family(request.virtual_prefixes),
        families=(4, 6) if floor.ipv6 else (4,),
    )
    return Ruleset(
        table=Table(sets=_sets(parts), chains=_chains(parts)),
        virtual_prefixes=tuple(str(prefix) for version in parts.families for prefix in parts.virtual[version]),
        loopback_addresses=_loopback_addresses(parts) if floor.ipv6 else (),
        refused=refused,
    )


def _loopback_addresses(parts: _Parts) -> tuple[str, ...]:
    return wire.INBOUND_SOURCE_V6, *sorted({str(each.addresses[6]) for each in parts.request.callers})


def _allowed_ports(requested: frozenset[int], floor: HostFloor) -> tuple[frozenset[int], tuple[Refusal, ...]]:
    allowed, refused = set(), []
    for port in sorted(requested):
        if not 0 < port <= 65535:
            raise PlanError(f"{port} is not a TCP port")
        why = _why_never_inbound(port, floor)
        if why:
            refused.append(Refusal(f"inbound port {port}", why))
        else:
            allowed.add(port)
    return frozenset(allowed), tuple(refused)


def _why_never_inbound(port: int, floor: HostFloor) -> str:
    """Return why `port` must stay as it is, or "" where it may be captured."""
    if port == SSH_PORT or port in floor.ssh_ports:
        return "SSH listens there, and the way into the host must not depend on the mesh"
    own = OWN_PORTS | floor.envoy_ports | {floor.outbound_port, floor.inbound_port, floor.dns_port}
    if port in own or port in {port for _, port in floor.controller}:
        return "it is one of hostmesh's own ports"
    if port in floor.never_inbound_ports:
        return "the host's own configuration excludes it (capture.exclude_inbound_ports)"
    return ""


def _by_family(texts: Iterable[str]) -> dict[int, tuple[Prefix, ...]]:
    found: dict[int, list[Prefix]] = {4: [], 6: []}
    for text in texts:
        try:
            prefix = ip_network(text)
        except ValueError as error:
            raise PlanError(f"not an address prefix: {error}") from error
        found[prefix.version].append(prefix)
    return {version: tuple(sorted(prefixes)) for version, prefixes in found.items()}


def ranges(prefixes: Iterable[Prefix]) -> tuple[tuple[bytes, bytes], ...]:
    """Return (first, last) ranges that hold what `prefixes` of one family hold, sorted.

    The kernel refuses ranges that overlap: a prefix inside another goes. Neighbours stay apart, so that one that
    comes or goes does not touch the other, through which traffic flows.
    """
    outer: list[Prefix] = []
    for prefix in sorted(prefixes, key=lambda each: (int(each[0]), each.prefixlen)):
        if not outer or int(prefix[0]) > int(outer[-1][-1]):
            outer.append(prefix)
    return tuple((prefix[0].packed, prefix[-1].packed) for prefix in outer)


def _sets(parts: _Parts) -> tuple[NamedSet, ...]:
    untouched = CONTROLLER_PORTS | {SSH_PORT} | parts.floor.ssh_ports
    own = {parts.floor.outbound_port} if parts.floor.mtls_only else set()
    sets = [
        NamedSet("inbound_ports", KeyType.PORT, _ports(parts.inbound_ports | own), intervals=False),
        NamedSet("untouched_ports", KeyType.PORT, _ports(untouched), intervals=False),
    ]
    for version in parts.families:
        sets += [
            NamedSet(f"mesh{version}", _KEY[version], ranges(parts.mesh[version]), intervals=True),
            NamedSet(f"virtual{version}", _KEY[version], ranges(parts.virtual[version]), intervals=True),
        ]
    return tuple(sorted(sets, key=lambda each: each.name))


def _ports(numbers: frozenset[int]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((number.to_bytes(2, "big"), number.to_bytes(2, "big")) for number in sorted(numbers))


def _chains(parts: _Parts) -> tuple[Chain, ...]:
    chains = [
        Chain("inbound", "nat", Hook.PREROUTING, BEFORE_DOCKER, tuple(_inbound(parts))),
        Chain("outbound", "nat", Hook.OUTPUT, BEFORE_DOCKER, tuple(_outbound(parts))),
    ]
    if parts.request.dns:
        chains.append(Chain("answers", "filter", Hook.OUTPUT, BEFORE_NAT, (_answers(parts),)))
    return tuple(sorted(chains, key=lambda each: each.name))


def _inbound(parts: _Parts) -> Iterator[Rule]:
    yield Rule((*words.from_loopback(), *words.RETURN))
    for version in parts.families:
        yield Rule(
            (
                *words.family(version),
                *words.to_local_address(),
                *words.tcp_port_in("inbound_ports"),
                *words.change_port(parts.floor.inbound_port),
            ),
        )


def _outbound(parts: _Parts) -> Iterator[Rule]:
    yield from _of_envoy(parts)
    yield Rule((*words.tcp_port_in("untouched_ports"), *words.RETURN), "SSH and the controllers' ports")
    for text, port in sorted(parts.floor.controller):
        address = _address(text)
        if address.version in parts.families:
            yield Rule(
                (*words.family(address.version), *words.to_address(address), *words.tcp_port(port), *words.RETURN),
                "controller",
            )
    if parts.request.dns:
        resolver = IPv4Address(wire.DNS_ADDRESS)
        yield Rule(
            (*words.family(4), *words.to_address(resolver), *words.udp_port(53), *words.redirect(parts.floor.dns_port)),
            "mesh names",
        )
    for version in parts.families:
        yield from _to_proxy(parts, version, "virtual")
    yield Rule((*words.to_local_address(), *words.RETURN), "the host itself")
    for version in parts.families:
        yield from _to_proxy(parts, version, "mesh")
    if parts.request.scope is Scope.ALL:
        for port in NAME_PORTS:
            yield Rule((*words.tcp_port(port), *words.RETURN), "resolvers outside the mesh")
        for version in parts.families:
            yield from _to_proxy(parts, version, "")


def _of_envoy(parts: _Parts) -> Iterator[Rule]:
    """Envoy's own traffic passes, but for its calls to a service of this very host.

    Those must enter the host's own inbound listener, as a call from another host would. Envoy's connections from
    there to the program come from addresses of their own and pass.
    """
    envoy = callers.envoy(parts.floor.envoy_cgroup, parts.floor.envoy_uid)
    for version in parts.families:
        yield Rule(
            (
                *envoy,
                *words.over_loopback(),
                *words.family(version),
                *words.not_to_prefix(_LOOPBACK[version]),
                *words.from_address(_INBOUND_SOURCE[version], inverted=True),
                *words.tcp_port_in("inbound_ports"),
                *words.redirect(parts.floor.inbound_port),
            ),
            "call to a service of this host",
        )
    yield Rule((*envoy, *words.RETURN), callers.ENVOY)


def _to_proxy(parts: _Parts, version: int, set_prefix: str) -> Iterator[Rule]:
    destination = words.to_set(version, f"{set_prefix}{version}") if set_prefix else ()
    where = (*words.family(version), *destination, *words.protocol(words.TCP))
    yield from callers.rules(parts.request.callers, version, where, parts.floor.outbound_port)
    yield Rule((*where, *words.redirect(parts.floor.outbound_port)))


def _answers(parts: _Parts) -> Rule:
    """Envoy's DNS filter cannot say "not mine, ask the next server"; the kernel says it in its place."""
    return Rule(
        (
            *words.family(4),
            *words.from_address(IPv4Address("127.0.0.1")),
            *words.udp_source_port(parts.floor.dns_port),
            *words.no_such_name_becomes_refused(),
        ),
        "not a mesh name: ask the next resolver",
    )


def _address(text: str) -> Address:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise PlanError(f"controller address {text!r} is not an IP address: {error}") from error
    return network.network_address
