"""What is captured, decided: a request and the host's floor in, the whole ruleset out. Pure.

The order of the output chain is the policy. Envoy first, since everything it sends must pass; then what must never
depend on Envoy (SSH, the controller); then programs that are excluded; then virtual addresses, which exist nowhere
else; then the host itself; then destinations that are excluded; then the mesh. Inbound, ports that take mutual TLS
alone come before all that is excluded: of those no plaintext reaches a program.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from hostmesh_agent.capture import bypass, callers, doors, names, transparent, who
from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.callers import Caller
from hostmesh_agent.capture.expressions import Words
from hostmesh_agent.capture.narrow import Narrowed
from hostmesh_agent.capture.rules import (
    Backend,
    Chain,
    Hook,
    KeyType,
    NamedSet,
    Refusal,
    Rule,
    Ruleset,
    Table,
)
from hostmesh_agent.capture.who import ALL_OF_IT, NOBODY, Direction, Match, Narrowing, Present, ranges
from hostmesh_agent.capture.xtables import UntranslatableError, translated
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_api import wire

SSH_PORT: Final = 22
NAME_PORTS: Final = (53, 853)
"""Where resolvers are asked over TCP: names outside the mesh must be found whatever may be called."""
BEFORE_DOCKER: Final = -110  # Docker's and everybody's destination NAT is at -100
BEFORE_NAT: Final = -150  # "mangle": the answer still carries Envoy's own address
BEHIND_NAT: Final = 0  # what was redirected has another destination there

CONTROLLER_PORTS: Final = frozenset({wire.AGENTS_PORT, wire.JOIN_PORT, wire.ADMIN_PORT})
OWN_PORTS: Final = CONTROLLER_PORTS | wire.ENVOYS_PORTS | {wire.DNS_TCP_PORT}

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network

_LOOPBACK: Final[dict[int, Prefix]] = {4: IPv4Network("127.0.0.0/8"), 6: IPv6Network("::1/128")}
_INBOUND_SOURCE: Final[dict[int, Address]] = {
    4: IPv4Address(wire.INBOUND_SOURCE_V4),
    6: IPv6Address(wire.INBOUND_SOURCE_V6),
}
_OUTBOUND_V6: Final = IPv6Address(wire.OUTBOUND_V6)
_KEY: Final = {4: KeyType.IPV4, 6: KeyType.IPV6}


_NO_NAMES: Final = Refusal(
    "the question for a name",
    "iptables cannot change Envoy's answers for names outside the mesh, so the host's resolver stays as it is; "
    "mesh names need a kernel with nf_tables",
)


class Scope(StrEnum):
    MESH = "mesh"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class CaptureRequest:
    """What the controller asks for.

    Prefixes are CIDR text of either family. `virtual_prefixes` are the ranges of virtual addresses: captured in either
    scope, and made routable. `inbound` and `outbound` narrow down what is captured; of `strict_ports` (those of the
    `inbound_ports` that take mutual TLS alone) every connection is captured all the same. `callers` are programs that
    call others under an identity of their own. `transparent`: programs see the address of who calls.
    """

    scope: Scope = Scope.MESH
    inbound_ports: frozenset[int] = frozenset()
    mesh_prefixes: frozenset[str] = frozenset()
    virtual_prefixes: frozenset[str] = frozenset()
    dns: bool = True
    inbound: Narrowing = ALL_OF_IT
    outbound: Narrowing = ALL_OF_IT
    strict_ports: frozenset[int] = frozenset()
    callers: tuple[Caller, ...] = ()
    transparent: bool = False

    @property
    def takes_outbound(self) -> bool:
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
        never_outbound: whatever of outbound connections the owner excludes.
        never_interfaces: where nothing is captured, in neither direction: so the owner says.
        max_scope: the widest that the owner allows.
        present: who is there of those that are named.
        backend: what of the kernel is to hold the rules.
        outbound_port: where the Envoy that serves now takes outbound TCP: two take turns. Same for the next two.
        door_port: where it takes what is for the `doorways`; None: it binds them itself.
        doorways: address ("" for all of the host's) and TCP port of what Envoy itself listens on.
        not_transparent: why programs of this host cannot see the address of who calls; "" if they can.
        uses_clients: an Envoy runs that may use its clients' addresses, so that the rules for them must be there.
        names_answered: there is an Envoy that answers questions about names.
    """

    envoy_uid: int
    ssh_ports: frozenset[int] = frozenset()
    ssh_servers: frozenset[int] = frozenset()
    never_inbound_ports: frozenset[int] = frozenset()
    controller: frozenset[tuple[str, int]] = frozenset()
    ipv6: bool = True
    envoy_ports: frozenset[int] = frozenset()
    mtls_only: bool = False
    never_outbound: tuple[Match, ...] = ()
    never_interfaces: frozenset[str] = frozenset()
    max_scope: Scope = Scope.ALL
    present: Present = NOBODY
    backend: Backend = Backend.NFTABLES
    envoy_cgroup: ByCgroup | None = None
    outbound_port: int = wire.OUTBOUND_PORT
    inbound_port: int = wire.INBOUND_PORT
    dns_port: int = wire.DNS_PORT
    door_port: int | None = None
    doorways: frozenset[tuple[str, int]] = frozenset()
    not_transparent: str = ""
    uses_clients: bool = False
    names_answered: bool = True


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
    transparent: bool = False

    @property
    def closed_ports(self) -> frozenset[int]:
        """Of what is captured inbound: what nobody reaches but by mutual TLS, or not at all."""
        # Both: while one of two Envoys drains, it still takes what comes to its own port.
        outbound = {self.floor.outbound_port, wire.OUTBOUND_PORT, wire.SECOND_OUTBOUND_PORT}
        own = frozenset(outbound if self.floor.mtls_only else ())
        return self.request.strict_ports & self.inbound_ports | own

    @property
    def inbound(self) -> Narrowed:
        never = (Match(interfaces=self.floor.never_interfaces),) if self.floor.never_interfaces else ()
        return Narrowed(Direction.INBOUND, never, self.request.inbound, self.families, self.floor.present)

    @property
    def outbound(self) -> Narrowed:
        never = (*self.inbound.never, *self.floor.never_outbound)
        return Narrowed(Direction.OUTBOUND, never, self.request.outbound, self.families, self.floor.present)


def plan(request: CaptureRequest, floor: HostFloor) -> Ruleset:
    """Return the rules for `request` that `floor` allows.

    What the floor forbids is left out and reported in `refused`; the rest of the request still holds.

    Raises:
        PlanError: a port, a prefix or a rule is no such thing, or Envoy would run as root.
    """
    if floor.envoy_uid <= 0:
        raise PlanError(
            f"Envoy must have a user of its own; uid {floor.envoy_uid} would exempt the system from capture"
        )
    _check_rules(request)
    inbound_ports, refused = _allowed_ports(request.inbound_ports, floor)
    if request.scope is Scope.ALL and floor.max_scope is not Scope.ALL:
        why = "the host's own configuration captures what is known to the mesh at most (capture.max_scope)"
        request, refused = replace(request, scope=Scope.MESH), (*refused, Refusal("scope all", why))
    request, floor, refused = _transparency(request, floor, refused)
    if floor.backend is Backend.IPTABLES and request.dns:
        request, refused = replace(request, dns=False), (*refused, _NO_NAMES)
    parts = _Parts(
        request=request,
        floor=floor,
        inbound_ports=inbound_ports,
        mesh=_by_family(request.mesh_prefixes),
        virtual=_by_family(request.virtual_prefixes),
        families=(4, 6) if floor.ipv6 else (4,),
        transparent=floor.uses_clients or request.transparent,
    )
    return _fitting(
        floor.backend,
        Ruleset(
            table=Table(sets=_sets(parts), chains=_chains(parts)),
            virtual_prefixes=tuple(str(prefix) for version in parts.families for prefix in parts.virtual[version]),
            loopback_addresses=_loopback_addresses(parts) if floor.ipv6 else (),
            refused=refused,
            missing=tuple(sorted(parts.outbound.missing())),
            marked_home=frozenset(parts.families if parts.transparent else ()),
        ),
    )


def _fitting(backend: Backend, ruleset: Ruleset) -> Ruleset:
    if backend is Backend.NFTABLES:
        return ruleset
    try:
        return translated(ruleset)
    except UntranslatableError as error:
        raise PlanError(f"without nf_tables this cannot be captured: {error}") from error


def _transparency(
    request: CaptureRequest, floor: HostFloor, refused: tuple[Refusal, ...]
) -> tuple[CaptureRequest, HostFloor, tuple[Refusal, ...]]:
    """Leave out that programs see who calls, where that cannot be."""
    why = floor.not_transparent
    if floor.backend is Backend.IPTABLES:
        why, floor = "the iptables back end has no such rules: it needs nf_tables", replace(floor, uses_clients=False)
    if request.transparent and why:
        request = replace(request, transparent=False)
        refused = (*refused, Refusal("inbound mode tproxy", why, "used, but redirect"))
    return request, floor, refused


def _check_rules(request: CaptureRequest) -> None:
    for direction, narrowing in ((Direction.INBOUND, request.inbound), (Direction.OUTBOUND, request.outbound)):
        for name, matches in (("include", narrowing.include), ("exclude", narrowing.exclude)):
            for number, match in enumerate(matches, start=1):
                problem = who.problem(match, direction)
                if problem:
                    raise PlanError(f"rule {number} of {direction}.{name}: {problem}")


def _loopback_addresses(parts: _Parts) -> tuple[str, ...]:
    return wire.INBOUND_SOURCE_V6, wire.OUTBOUND_V6, *sorted({str(each.addresses[6]) for each in parts.request.callers})


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


def _sets(parts: _Parts) -> tuple[NamedSet, ...]:
    untouched = CONTROLLER_PORTS | {SSH_PORT} | parts.floor.ssh_ports
    closed = parts.closed_ports
    sets = [
        NamedSet("inbound_ports", KeyType.PORT, _ports(parts.inbound_ports | closed), intervals=False),
        NamedSet("untouched_ports", KeyType.PORT, _ports(untouched), intervals=False),
    ]
    for version in parts.families:
        sets += [
            NamedSet(f"mesh{version}", _KEY[version], ranges(parts.mesh[version]), intervals=True),
            NamedSet(f"virtual{version}", _KEY[version], ranges(parts.virtual[version]), intervals=True),
        ]
    if parts.inbound or closed:
        sets.append(NamedSet(bypass.PORTS, KeyType.PORT, _ports(closed), intervals=False))
    if parts.request.dns:
        unanswered = frozenset() if parts.floor.names_answered else frozenset({names.DNS_PORT})
        sets.append(NamedSet(names.UNANSWERED, KeyType.PORT, _ports(unanswered), intervals=False))
    sets += [*parts.inbound.sets(), *parts.outbound.sets()]
    return tuple(sorted(sets, key=lambda each: each.name))


def _ports(numbers: frozenset[int]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((number.to_bytes(2, "big"), number.to_bytes(2, "big")) for number in sorted(numbers))


def _chains(parts: _Parts) -> tuple[Chain, ...]:
    chains = [
        Chain("inbound", "nat", Hook.PREROUTING, BEFORE_DOCKER, tuple(_inbound(parts))),
        Chain("outbound", "nat", Hook.OUTPUT, BEFORE_DOCKER, tuple(_outbound(parts))),
    ]
    if parts.closed_ports:
        # Where it knows cgroups of sockets it knows this of them, and otherwise may lack the part for it.
        knows_sockets = parts.floor.envoy_cgroup is not None and parts.floor.backend is Backend.NFTABLES
        chains.append(bypass.chain(parts.inbound.owners_passes(), knows_sockets=knows_sockets))
    if parts.outbound.names_who:
        chains.append(Chain("nowhere", "filter", Hook.OUTPUT, BEHIND_NAT, tuple(_nowhere(parts))))
    if parts.transparent:
        chains += transparent.chains()
    if parts.request.dns:
        chains.append(Chain("answers", "filter", Hook.OUTPUT, BEFORE_NAT, tuple(_answers(parts))))
    return tuple(sorted(chains, key=lambda each: each.name))


def _inbound(parts: _Parts) -> Iterator[Rule]:
    yield Rule((*words.from_loopback(), *words.RETURN))
    for version, to_it in _doorways(parts):
        yield Rule((*words.family(version), *to_it, *words.change_port(parts.floor.door_port or 0)), doors.TO_DOOR)
    # The owner's word holds for each port: who excludes an interface has said so of this host.
    yield from parts.inbound.owners_passes()
    if parts.inbound:
        for version in parts.families:
            yield _to_inbound(parts, version, bypass.PORTS, (), "mutual TLS alone")
    yield from parts.inbound.policys_passes()
    for version in parts.families:
        for condition in parts.inbound.conditions(version):
            yield _to_inbound(parts, version, "inbound_ports", condition)


def _to_inbound(parts: _Parts, version: int, ports: str, condition: Words, comment: str = "") -> Rule:
    return Rule(
        (
            *words.family(version),
            *condition,
            *words.to_local_address(),
            *words.tcp_port_in(ports),
            *words.change_port(parts.floor.inbound_port),
        ),
        comment,
    )


def _outbound(parts: _Parts) -> Iterator[Rule]:
    yield from _for_clients(parts)
    yield from _to_door(parts)
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
        yield from names.questions(parts.floor.dns_port)
    # A program that is excluded is so at virtual addresses too. What else is excluded has none of them.
    yield from parts.outbound.passes(by_who=True)
    for version in parts.families:
        for condition in parts.outbound.conditions(version, by_who=True):
            yield from _to_proxy(parts, version, "virtual", condition)
    yield Rule((*words.to_local_address(), *words.RETURN), "the host itself")
    yield from parts.outbound.passes(by_who=False)
    for version in parts.families:
        for condition in parts.outbound.conditions(version):
            yield from _to_proxy(parts, version, "mesh", condition)
    if parts.request.scope is Scope.ALL:
        for port in NAME_PORTS:
            yield Rule((*words.tcp_port(port), *words.RETURN), "resolvers outside the mesh")
        for version in parts.families:
            for condition in parts.outbound.conditions(version):
                yield from _to_proxy(parts, version, "", condition)


def _nowhere(parts: _Parts) -> Iterator[Rule]:
    """Nobody has a virtual address but Envoy: programs that it is not for are told so at once, and do not wait."""
    for version in parts.families:
        yield Rule(
            (
                *words.family(version),
                *words.to_set(version, f"virtual{version}"),
                *words.protocol(words.TCP),
                *words.RESET,
            ),
            "for programs that are not in the mesh",
        )


def _doorways(parts: _Parts) -> Iterator[tuple[int, words.Words]]:
    """Yield the family and the condition of connections to what Envoy itself listens on, if it is behind its door."""
    if parts.floor.door_port is None:
        return
    for text, port in sorted(parts.floor.doorways):
        for version in parts.families:
            if not text:
                yield version, (*words.to_local_address(), *words.tcp_port(port))
            elif (address := _address(text)).version == version:
                yield version, (*words.to_address(address), *words.tcp_port(port))


def _to_door(parts: _Parts) -> Iterator[Rule]:
    for version, to_it in _doorways(parts):
        # Envoy's calls to programs of this host have a source of their own, and are none of a doorway's.
        from_elsewhere = words.from_address(_INBOUND_SOURCE[version], inverted=True)
        yield Rule(
            (*words.family(version), *from_elsewhere, *to_it, *words.redirect(parts.floor.door_port or 0)),
            doors.TO_DOOR,
        )


def _for_clients(parts: _Parts) -> Iterator[Rule]:
    """Envoy's calls to a program for a client of this very host have the host's own address, and would come round."""
    if parts.transparent:
        envoy = callers.envoy(parts.floor.envoy_cgroup, parts.floor.envoy_uid)
        yield Rule((*envoy, *transparent.OF_CLIENTS, *words.RETURN), "Envoy, for a client")


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


def _to_proxy(parts: _Parts, version: int, set_prefix: str, condition: Words = ()) -> Iterator[Rule]:
    destination = words.to_set(version, f"{set_prefix}{version}") if set_prefix else ()
    where = (*words.family(version), *destination, *condition, *words.protocol(words.TCP))
    yield from callers.rules(parts.request.callers, version, where, parts.floor.outbound_port)
    yield Rule((*where, *_to_envoy(version, parts.floor.outbound_port)))


def _to_envoy(version: int, port: int) -> Words:
    return words.redirect(port) if version == 4 else words.change_destination(_OUTBOUND_V6, port)


def _answers(parts: _Parts) -> Iterator[Rule]:
    """Of both Envoys: what was asked before they took turns is answered after it."""
    yield from names.unanswered()
    for port in sorted({wire.DNS_PORT, wire.SECOND_DNS_PORT, parts.floor.dns_port}):
        yield from names.answers(port)


def _address(text: str) -> Address:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise PlanError(f"controller address {text!r} is not an IP address: {error}") from error
    return network.network_address
