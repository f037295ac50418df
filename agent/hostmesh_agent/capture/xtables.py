"""What iptables makes of a ruleset: the same plan in the words that it has. Pure.

The result is a table again, equal for equal rules, and is what is read back from the kernel. It differs from what
nf_tables gets: iptables has each family for itself, sets of addresses and ports alone, conditions in its own order,
and its destination NAT where everybody's is (a chain of ours is called first there).
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Final

from hostmesh_agent.capture.rules import (
    Backend,
    Chain,
    Compare,
    DestinationType,
    Expression,
    Header,
    KeyType,
    Lookup,
    Mask,
    Meta,
    MetaKey,
    NamedSet,
    Payload,
    PayloadWrite,
    Rule,
    Ruleset,
    SocketCgroup,
    Table,
    Unknown,
)

FAMILIES: Final = {4: b"\x02", 6: b"\x0a"}  # NFPROTO_IPV4, NFPROTO_IPV6
PRIORITIES: Final = {"nat": -100, "filter": 0}
"""Where iptables' own tables are called; -100 is that of destination NAT."""
MAX_COMMENT: Final = 200

Condition = tuple[Expression, *tuple[Expression, ...], Compare | Lookup]
"""What is loaded, what is done with it (to TCP's flags alone), and how it is tested."""
OPENING: Final[Condition] = (Payload(Header.TRANSPORT, 13, 1), Mask(b"\x17", b"\0"), Compare(b"\x02"))
"""Of TCP's flags FIN, SYN, RST and ACK it is SYN: the one thing that is done with what was loaded."""
_EXPANDED: Final = frozenset({KeyType.UID, KeyType.INTERFACE, KeyType.CGROUP})
_NAMES: Final = {
    MetaKey.INPUT_INTERFACE_NAME: MetaKey.INPUT_INTERFACE,
    MetaKey.OUTPUT_INTERFACE_NAME: MetaKey.OUTPUT_INTERFACE,
}
_LOOPBACK_NAME: Final = b"lo".ljust(16, b"\0")
_LOOPBACK_INDEX: Final = struct.pack("=I", 1)


class UntranslatableError(ValueError):
    """iptables has no words for something; the message says for what."""


def translated(ruleset: Ruleset) -> Ruleset:
    """Return the ruleset as iptables can hold it.

    Raises:
        UntranslatableError: it cannot hold some rule, and leaving it out would be another policy.
    """
    return replace(ruleset, table=_table(ruleset.table))


def _table(table: Table) -> Table:
    sets = {each.name: each for each in table.sets}
    versions = [
        version
        for version, number in FAMILIES.items()
        if version == 4 or any(_is_of(rule, number) for chain in table.chains for rule in chain.rules)
    ]
    chains = tuple(_chain(chain, sets, versions) for chain in table.chains)
    return replace(
        table,
        sets=tuple(each for each in table.sets if each.key not in _EXPANDED),
        chains=tuple(each for each in chains if each.rules),
        backend=Backend.IPTABLES,
    )


def _is_of(rule: Rule, number: bytes) -> bool:
    return (Meta(MetaKey.FAMILY), Compare(number)) in split(rule.expressions)[0]


def _chain(chain: Chain, sets: Mapping[str, NamedSet], versions: Iterable[int]) -> Chain:
    rules = [expanded for rule in chain.rules for expanded in _expanded(rule, sets)]
    return replace(
        chain,
        priority=PRIORITIES[chain.kind],
        rules=tuple(found for version in versions for rule in rules for found in _of_family(rule, version)),
    )


def split(expressions: tuple[Expression, ...]) -> tuple[list[Condition], tuple[Expression, ...]]:
    """Return the conditions of a rule, each as what is loaded and how it is tested, and its action."""
    conditions: list[Condition] = []
    rest = expressions
    while len(rest) > 1:
        if rest[:3] == OPENING:
            conditions.append(OPENING)
            rest = rest[3:]
        elif isinstance(rest[1], Compare | Lookup):
            conditions.append((rest[0], rest[1]))
            rest = rest[2:]
        else:
            break
    return conditions, rest


def _expanded(rule: Rule, sets: Mapping[str, NamedSet]) -> Iterator[Rule]:
    """Yield the rules that say the same without sets of users, interfaces and cgroups: one for each combination."""
    conditions, action = split(rule.expressions)
    if any(isinstance(each, PayloadWrite | Mask | Unknown) for each in action):
        raise UntranslatableError("iptables cannot change what is in a packet")
    for chosen in product(*[list(_values(each, sets)) for each in conditions]):
        yield Rule((*(part for condition in chosen for part in condition), *action), comment(rule.comment))


def _values(condition: Condition, sets: Mapping[str, NamedSet]) -> Iterator[Condition]:
    load, *_, test = condition
    if condition == OPENING:
        yield condition
    elif isinstance(test, Lookup) and sets[test.set_name].key in _EXPANDED:
        for first, _ in sets[test.set_name].ranges:
            yield _plain(load, Compare(first))
    else:
        yield _plain(load, test)


def _plain(load: Expression, test: Compare | Lookup) -> Condition:
    """Return a condition; the loopback interface is known by its number, as elsewhere in the plan."""
    if not isinstance(load, Meta) or load.key not in _NAMES or not isinstance(test, Compare):
        return load, test
    if test.value == _LOOPBACK_NAME:
        return Meta(_NAMES[MetaKey(load.key)]), replace(test, value=_LOOPBACK_INDEX)
    if b"+" in test.value:
        raise UntranslatableError(f"to iptables an interface {test.value.rstrip(bytes(1)).decode()!r} is many of them")
    return load, test


def _of_family(rule: Rule, version: int) -> Iterator[Rule]:
    """Yield the rule for one family, with its conditions in the order in which they are read back; none for another."""
    conditions, action = split(rule.expressions)
    family: Condition = (Meta(MetaKey.FAMILY), Compare(FAMILIES[version]))
    others = [each for each in conditions if each[0] != Meta(MetaKey.FAMILY)]
    if len(others) == len(conditions) or family in conditions:
        yield ordered([family, *dict.fromkeys(others)], action, rule.comment)


def ordered(conditions: list[Condition], action: tuple[Expression, ...], said: str) -> Rule:
    """Return the rule with its conditions in the one order of this back end."""
    return Rule((*(part for each in sorted(conditions, key=_place) for part in each), *action), said)


def _place(condition: Condition) -> tuple[int, bool, bytes | str]:
    load, *_, test = condition
    what = test.set_name if isinstance(test, Lookup) else test.value
    return _rank(load), isinstance(test, Lookup), what


def _rank(load: Expression) -> int:
    match load:
        case Meta(key):
            return _META_RANKS.get(key, 9)
        case Payload(Header.NETWORK, offset, _):
            return 1 if offset in {12, 8} else 2
        case SocketCgroup():
            return 7
        case DestinationType():
            return 8
        case Payload(Header.TRANSPORT, 13, _):
            return 11
        case _:
            return 10


_META_RANKS: Final[dict[int, int]] = {
    MetaKey.FAMILY: 0,
    MetaKey.INPUT_INTERFACE: 3,
    MetaKey.INPUT_INTERFACE_NAME: 3,
    MetaKey.OUTPUT_INTERFACE: 4,
    MetaKey.OUTPUT_INTERFACE_NAME: 4,
    MetaKey.PROTOCOL: 5,
    MetaKey.SOCKET_UID: 6,
}


def comment(text: str) -> str:
    """Return what iptables keeps of a comment."""
    return "".join(each if each.isprintable() and each.isascii() else "?" for each in text)[:MAX_COMMENT]
