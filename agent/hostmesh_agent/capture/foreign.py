"""Chains of other programs that take connections before our rules see them, told by name. Pure.

The kernel asks all chains of address translation at one place (priority -100), in the order of their priorities, and
the first one that translates ends it: a chain that only accepts changes nothing for ours. Chains of another kind with a
lower priority than that place are asked before: what they drop, hand to a transparent proxy or keep from being tracked
never meets ours. What a condition that is not understood here lets through is not known: such a rule "may" take
connections, and one that may drop is a firewall's, and is not told.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from hostmesh_agent.capture.plan import BEFORE_DOCKER
from hostmesh_agent.capture.rules import Header, Hook, KeyType, MetaKey, Table

PLACE_OF_TRANSLATION: Final = -100  # NF_IP_PRI_NAT_DST
FAMILIES: Final = {1: "inet", 2: "ip", 10: "ip6"}
_VERSIONS: Final = {1: (4, 6), 2: (4,), 10: (6,)}
_DROP, _JUMP, _GOTO = 0, -3, -4  # NF_DROP, NFT_JUMP, NFT_GOTO
_L4PROTO, _TCP = 16, 6
_DESTINATION_AT: Final = {4: (16, 4), 6: (24, 16)}
_DEEPEST: Final = 8
_MOST_RULES: Final = 10_000
_TARGETS: Final = {"DNAT": "redirects", "REDIRECT": "redirects", "TPROXY": "hands to a transparent proxy"}
_DOES: Final = {
    "redir": "redirects",
    "tproxy": "hands to a transparent proxy",
    "notrack": "keeps from being tracked",
    "reject": "refuses",
}

Expressions = Sequence[tuple[str, Mapping[str, Any]]]
"""Of one rule: the name of each expression in nf_tables, and its attributes."""


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A chain of another program's table. `hook` None: it is only called by others of the table."""

    family: int
    table: str
    name: str
    kind: str = ""
    hook: int | None = None
    priority: int = 0
    rules: tuple[Expressions, ...] = field(default=())

    @property
    def earlier(self) -> bool:
        """Whether the kernel asks it before ours."""
        if self.hook not in {Hook.PREROUTING, Hook.OUTPUT} or self.family not in FAMILIES:
            return False
        return self.priority < (BEFORE_DOCKER if self.kind == "nat" else PLACE_OF_TRANSLATION)

    @property
    def translates_arrivals(self) -> bool:
        """Whether it may lead what comes to this host elsewhere, before ours or behind."""
        return self.hook == Hook.PREROUTING and self.kind == "nat" and self.family in FAMILIES

    @property
    def versions(self) -> tuple[int, ...]:
        """Of IP, that it sees."""
        return _VERSIONS[self.family]


@dataclass(frozen=True, slots=True)
class Finding:
    """`chain` as nft names it; `certain` False: a condition is not understood here."""

    chain: str
    does: str
    rule: int
    certain: bool

    def __str__(self) -> str:
        may = "" if self.certain else "perhaps "
        return f"{self.chain} {may}{self.does} connections before capture sees them (rule {self.rule})"


def findings(chains: Iterable[ForeignChain], ours: Table | None) -> tuple[Finding, ...]:
    """Return what others do to connections that `ours` would capture, one for each chain and kind of deed."""
    if ours is None:
        return ()
    known = {(each.family, each.table, each.name): each for each in chains}
    found: dict[tuple[str, str], Finding] = {}
    for chain in sorted(known.values(), key=lambda each: (each.priority, each.table, each.name)):
        if not chain.earlier:
            continue
        name = place(chain)
        for number, does, certain in _deeds(chain, known, Whose.of(ours, chain)):
            if certain or does in {"redirects", "hands to a transparent proxy", "keeps from being tracked"}:
                before = found.get((name, does))
                if before is None or (certain and not before.certain):
                    found[(name, does)] = Finding(name, does, number, certain)
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Whose:
    """Which connections are asked about: any of `ports` (None: all) to any of `prefixes` (None: all)."""

    ports: frozenset[int] | None
    prefixes: Mapping[int, tuple[tuple[bytes, bytes], ...]] | None

    @classmethod
    def of(cls, ours: Table, chain: ForeignChain) -> "Whose":
        """Return those that `ours` would capture at the hook of a chain."""
        sets = {each.name: each for each in ours.sets}
        if chain.hook == Hook.PREROUTING:
            ports = sets["inbound_ports"].ranges if "inbound_ports" in sets else ()
            return cls(frozenset(int.from_bytes(first, "big") for first, _ in ports), None)
        addresses = {
            version: tuple(
                each
                for name, found in sets.items()
                if name in {f"mesh{version}", f"virtual{version}"} and found.key in {KeyType.IPV4, KeyType.IPV6}
                for each in found.ranges
            )
            for version in (4, 6)
        }
        return cls(None, addresses)

    def anything(self, versions: Iterable[int]) -> bool:
        return bool(self.ports) if self.prefixes is None else any(self.prefixes[each] for each in versions)


Known = Mapping[tuple[int, str, str], ForeignChain]


def _deeds(base: ForeignChain, known: Known, ours: Whose) -> Iterator[tuple[int, str, bool]]:
    if not ours.anything(base.versions):
        return
    for number, rules, certain in rules_met(base, known, ours):
        for name, data in rules[-1]:
            if does := _does(name, data):
                yield number, does, certain


def rules_met(base: ForeignChain, known: Known, ours: Whose) -> Iterator[tuple[int, tuple[Expressions, ...], bool]]:
    """Yield what connections can meet from `base` on, rule by rule.

    That is: the number of the rule in `base`, the rules that lead to a rule with that one at the end, and whether
    connections certainly get there. Chains that call each other in too many ways are not followed to their end.
    """
    found = (
        (number, *each)
        for number, rule in enumerate(base.rules, start=1)
        for each in _below(base, (rule,), known, ours, certain=True)
    )
    yield from islice(found, _MOST_RULES)


def _below(
    chain: ForeignChain, rules: tuple[Expressions, ...], known: Known, ours: Whose, *, certain: bool
) -> Iterator[tuple[tuple[Expressions, ...], bool]]:
    met = _meets(rules[-1], ours, chain.versions)
    if met is None:
        return
    yield rules, certain and met
    for target in called(rules[-1]):
        below = known.get((chain.family, chain.table, target))
        if below is not None and len(rules) <= _DEEPEST:
            for each in below.rules:
                yield from _below(below, (*rules, each), known, ours, certain=certain and met)


def place(chain: ForeignChain) -> str:
    """Return how a chain is named to people."""
    where = "prerouting" if chain.hook == Hook.PREROUTING else "output"
    return f"chain {chain.name} of table {FAMILIES[chain.family]} {chain.table} ({where}, {chain.priority})"


def _does(name: str, data: Mapping[str, Any]) -> str:
    if name == "immediate" and data.get("DATA", {}).get("VERDICT", {}).get("CODE") == _DROP:
        return "drops"
    if name == "nat":
        return "redirects" if data.get("TYPE") == 1 else ""
    if name == "target":
        return "keeps from being tracked" if data.get("NOTRACK") else _TARGETS.get(str(data.get("NAME")), "")
    return _DOES.get(name, "")


def called(rule: Expressions) -> Iterator[str]:
    """Yield the chains that a rule calls."""
    yield from filter(None, (_called(*each) for each in rule))


def _called(name: str, data: Mapping[str, Any]) -> str:
    verdict = data.get("DATA", {}).get("VERDICT", {}) if name == "immediate" else {}
    return str(verdict.get("CHAIN", "")) if verdict.get("CODE") in {_JUMP, _GOTO} else ""


def _meets(rule: Expressions, ours: Whose, versions: Sequence[int]) -> bool | None:
    """Return None if no connection of ours can be meant; True if some certainly are; False if it is not known."""
    certain = True
    loaded: tuple[str, Mapping[str, Any]] = ("", {})
    for name, data in rule:
        if name in {"meta", "payload"}:
            loaded = name, data
        elif name == "cmp":
            fits = _fits(*loaded, data, ours, versions)
            if fits is False and data.get("OP", 0) == 0:
                return None
            certain = certain and fits is not None and data.get("OP", 0) == 0
        elif name not in {"counter", "immediate", "log", "comment", *_DOES, "nat", "target"}:
            # What was loaded may be another value now.
            certain, loaded = False, ("", {})
    return certain


def _fits(
    name: str, data: Mapping[str, Any], compared: Mapping[str, Any], ours: Whose, versions: Sequence[int]
) -> bool | None:
    """Whether a value that is compared with can be that of a connection of ours; None: it is not known."""
    value: bytes = compared.get("DATA", {}).get("VALUE", b"")
    if name == "meta":
        key = data.get("KEY")
        if key == _L4PROTO:
            return value[:1] == bytes([_TCP])
        return value[:1] in {b"\2", b"\n"} if key == MetaKey.FAMILY else None
    place = (data.get("BASE"), data.get("OFFSET"))
    if place == (Header.TRANSPORT, 2) and len(value) == 2:
        return True if ours.ports is None else int.from_bytes(value, "big") in ours.ports
    if data.get("BASE") == Header.NETWORK and (data.get("OFFSET"), data.get("LEN")) == (9, 1):
        return value[:1] == bytes([_TCP])
    for version in versions:
        at, length = _DESTINATION_AT[version]
        if data.get("BASE") == Header.NETWORK and data.get("OFFSET") == at and 0 < len(value) <= length:
            if ours.prefixes is None:
                return None
            first, last = value.ljust(length, b"\0"), value.ljust(length, b"\xff")
            return any(low <= last and first <= high for low, high in ours.prefixes[version])
    return None
