"""What iptables-restore and ipset are given to get from one table to another, and what they print as a table. Pure.

Several commits lead from one state to the other, and each state in between is safe: sets first, each changed at once by
a swap, those that are left alone before all others, and what is refused grows last and shrinks first; then the rules of
one family, at once; then those of the other; last the sets that no rule looks into any more. So a connection meets the
old rules or the new ones, and a set means the same in both. On the way to nothing the rules go first.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network, summarize_address_range
from itertools import pairwise
from typing import Final

from hostmesh_agent.capture import bypass
from hostmesh_agent.capture.rules import (
    Backend,
    Chain,
    Compare,
    Hook,
    KeyType,
    Meta,
    MetaKey,
    NamedSet,
    Rule,
    Table,
    Unknown,
)
from hostmesh_agent.capture.xt_words import PREFIX, Paths, line, name_of_set, rule_of, set_name, words_in, words_of
from hostmesh_agent.capture.xtables import FAMILIES, PRIORITIES, split

CALLED_BY: Final[dict[int, str]] = {
    Hook.PREROUTING: "PREROUTING",
    Hook.INPUT: "INPUT",
    Hook.OUTPUT: "OUTPUT",
}
_HOOKS: Final = {f"{PREFIX}INBOUND": Hook.PREROUTING, f"{PREFIX}{bypass.NAME.upper()}": Hook.INPUT}
"""Of our chains by their names; all others are asked about what programs of this host send."""
NEXT: Final = f"{PREFIX}T_"
"""How the names of sets begin that are filled and then swapped in."""
_MAX_SET_NAME: Final = 31
_MAX_ELEMENTS: Final = 1 << 20
_VERSION: Final = {KeyType.IPV4: 4, KeyType.IPV6: 6}
_FAMILY: Final = {"inet": KeyType.IPV4, "inet6": KeyType.IPV6}
_ALL: Final = "all"
"""hash:net cannot hold everything; a set with comments holds its two halves in place of it."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What is in the kernel, of one family: the rules by table and chain, as words."""

    chains: Mapping[tuple[str, str], tuple[tuple[str, ...], ...]] = field(default_factory=dict)

    def ours(self) -> Iterator[tuple[str, str]]:
        yield from (each for each in self.chains if each[1].startswith(PREFIX))


def saved(text: str) -> Saved:
    """Read what iptables-save prints."""
    chains: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    table = ""
    for each in text.splitlines():
        if each.startswith("*"):
            table = each[1:]
        elif each.startswith(":"):
            chains.setdefault((table, each[1:].split()[0]), [])
        elif each.startswith("-A "):
            _, chain, *rest = words_in(each)
            chains.setdefault((table, chain), []).append(tuple(rest))
    return Saved({key: tuple(rules) for key, rules in chains.items()})


# Rules


def chain_name(chain: Chain) -> str:
    return f"{PREFIX}{chain.name.upper()}"


def chains_of(table: Table | None, version: int, paths: Paths) -> dict[tuple[str, str], tuple[tuple[str, ...], ...]]:
    """Return our chains of one family as they are to be, as words."""
    found: dict[tuple[str, str], tuple[tuple[str, ...], ...]] = {}
    for chain in table.chains if table is not None else ():
        rules = tuple(words_of(rule, version, paths) for rule in chain.rules if _version(rule) == version)
        if rules:
            found[chain.kind, chain_name(chain)] = rules
    return found


def restore_text(now: Saved, wanted: Table | None, version: int, paths: Paths) -> str:
    """Return what iptables-restore is given for one family; "" if it is so already. Each table is one commit."""
    after = chains_of(wanted, version, paths)
    callers = {chain_name(chain): CALLED_BY[chain.hook] for chain in wanted.chains} if wanted is not None else {}
    before = {key: now.chains[key] for key in now.ours()}
    # What is captured is led to Envoy before it is refused, and is not refused any more before it passes again.
    found = {table for table, _ in (*after, *before)}
    tables = sorted(found, key=lambda each: (each == "nat") is (wanted is None))
    return "".join(_table_text(table, now, before, after, callers) for table in tables)


Chains = Mapping[tuple[str, str], tuple[tuple[str, ...], ...]]


def _table_text(table: str, now: Saved, before: Chains, after: Chains, callers: Mapping[str, str]) -> str:
    wanted = {name: rules for (where, name), rules in after.items() if where == table}
    there = {name: rules for (where, name), rules in before.items() if where == table}
    jumps = {name: ("-j", name) for name in wanted}
    right = {name for name in wanted if called_first(now, table, callers[name], name)}
    if wanted == there and right == set(wanted):
        return ""
    lines = [f"*{table}", *(f":{name} - [0:0]" for name in wanted)]
    gone = set(there) - set(wanted)
    for (where, chain), rules in now.chains.items():
        if where == table and not chain.startswith(PREFIX):
            stale = [rule for rule in rules if _target(rule) in (set(there) | set(wanted)) - right]
            lines += [line(("-D", chain, *rule)) for rule in stale]
    lines += [line(("-I", callers[name], "1", *jumps[name])) for name in wanted if name not in right]
    lines += [line(("-A", name, *rule)) for name, rules in wanted.items() for rule in rules]
    lines += [f"{verb} {name}" for verb in ("-F", "-X") for name in sorted(gone)]
    return "\n".join([*lines, "COMMIT", ""])


def _target(rule: tuple[str, ...]) -> str:
    return rule[rule.index("-j") + 1] if "-j" in rule[:-1] else ""


def called_first(now: Saved, table: str, caller: str, name: str) -> bool:
    """Tell whether the built-in chain asks ours before all others, and nobody else asks it."""
    asked = [
        (chain, at)
        for (where, chain), rules in now.chains.items()
        if where == table
        for at, rule in enumerate(rules)
        if _target(rule) == name
    ]
    return asked == [(caller, 0)] and now.chains[table, caller][0] == ("-j", name)


# Sets


def sets_text(now: Iterable[NamedSet], wanted: Table) -> str:
    """Return what `ipset restore` is given before the rules."""
    there = {each.name: each for each in now}
    lines: list[str] = [f"destroy {set_name(name)}" for name in there if _is_next(name)]
    refused = there.get(bypass.PORTS)
    if refused is not None and (fewer := _still_refused(refused, wanted)) != refused:
        # Before it is not captured any more: in between, and until the rules follow, callers would be sent away.
        lines += _changed(fewer)
        there[bypass.PORTS] = fewer
    # What is left alone first: no set may grow before it. What is refused last: it is captured by then.
    for each in sorted(
        wanted.sets, key=lambda each: (each.name != "untouched_ports", each.name == bypass.PORTS, each.name)
    ):
        if there.get(each.name) == each:
            continue
        lines += _changed(each) if each.name in there else _filled(set_name(each.name), each)
    return "\n".join([*lines, ""]) if lines else ""


def _still_refused(now: NamedSet, wanted: Table) -> NamedSet:
    kept = {port for each in wanted.sets if each.name == bypass.PORTS for port in each.ranges}
    return replace(now, ranges=tuple(each for each in now.ranges if each in kept))


def _changed(wanted: NamedSet) -> list[str]:
    name = set_name(wanted.name)
    following = f"{NEXT}{name.removeprefix(PREFIX)}"
    return [*_filled(following, wanted), f"swap {following} {name}", f"destroy {following}"]


def unneeded_text(now: Iterable[NamedSet], wanted: Table | None) -> str:
    """Return what `ipset restore` is given behind the rules."""
    kept = {each.name for each in wanted.sets} if wanted is not None else set()
    return "".join(f"destroy {set_name(each.name)}\n" for each in now if each.name not in kept)


def _is_next(name: str) -> bool:
    return name.startswith(NEXT.removeprefix(PREFIX))


def _filled(name: str, wanted: NamedSet) -> list[str]:
    if len(name) > _MAX_SET_NAME:
        raise ValueError(f"ipset takes no name as long as {name!r}")
    if wanted.key == KeyType.PORT:
        numbers = [int.from_bytes(first, "big") for first, _ in wanted.ranges]
        return [f"create {name} bitmap:port range 0-65535", *(f"add {name} {number}" for number in numbers)]
    family = {KeyType.IPV4: "inet", KeyType.IPV6: "inet6"}[KeyType(wanted.key)]
    create = f"create {name} hash:net family {family} maxelem {_MAX_ELEMENTS}"
    networks = [
        each for first, last in wanted.ranges for each in summarize_address_range(ip_address(first), ip_address(last))
    ]
    if any(each.prefixlen == 0 for each in networks):
        halves = [half for each in networks for half in each.subnets()]
        return [f"{create} comment", *(f"add {name} {half} comment {_ALL}" for half in halves)]
    return [create, *(f"add {name} {each}" for each in networks)]


def set_of(text: str) -> NamedSet | None:
    """Read what `ipset save NAME` prints; None if that is nothing."""
    named: NamedSet | None = None
    ranges: list[tuple[bytes, bytes]] = []
    whole = False
    for words in map(str.split, text.splitlines()):
        if words[:1] == ["create"]:
            named = _set(words)
            whole = "comment" in words
        elif words[:1] == ["add"] and named is not None:
            ranges.append(_range(named, words[2]))
    if named is None:
        return None
    ranges.sort()
    if whole and len(ranges) == 2:
        ranges = [(ranges[0][0], ranges[1][1])]
    return replace(named, ranges=tuple(ranges))


def _set(words: list[str]) -> NamedSet:
    name = name_of_set(words[1])
    options = dict(pairwise(words[3:]))
    if words[2] == "bitmap:port" and options.get("range") == "0-65535" and "timeout" not in options:
        return NamedSet(name, KeyType.PORT, (), intervals=False)
    if words[2] == "hash:net" and options.get("family") in _FAMILY and "timeout" not in options:
        return NamedSet(name, _FAMILY[options["family"]], (), intervals=True)
    return NamedSet(name, 0, (), intervals=False, other_flags=1)


def _range(named: NamedSet, value: str) -> tuple[bytes, bytes]:
    if named.key == KeyType.PORT:
        port = int(value).to_bytes(2, "big")
        return port, port
    if named.key in _VERSION:
        network = ip_network(value)
        return network[0].packed, network[-1].packed
    return value.encode(), value.encode()


# The whole


def table_of(by_version: Mapping[int, Saved], sets: Iterable[NamedSet], paths: Paths) -> Table | None:
    """Return what the kernel has of ours, None if nothing; what is not as we write it is an unknown expression."""
    chains: dict[str, Chain] = {}
    for version, kernel in by_version.items():
        for table, name in kernel.ours():
            chain = chains.setdefault(name, _empty(name, table))
            caller = CALLED_BY.get(chain.hook, "")
            rules = [] if called_first(kernel, table, caller, name) else [_not_first(version, caller)]
            rules += [rule_of(words, version, paths) for words in kernel.chains[table, name]]
            chains[name] = replace(chain, rules=(*chain.rules, *rules))
    found = tuple(sorted(sets, key=lambda each: each.name))
    if not chains:
        return None  # sets alone capture nothing
    ordered = tuple(sorted(chains.values(), key=lambda each: each.name))
    return Table(sets=found, chains=ordered, backend=Backend.IPTABLES)


def _empty(name: str, table: str) -> Chain:
    hook = _HOOKS.get(name, Hook.OUTPUT)
    return Chain(name.removeprefix(PREFIX).lower(), table, hook, PRIORITIES.get(table, 0), ())


def _not_first(version: int, caller: str) -> Rule:
    said = f"{caller} does not call this chain before all others"
    return Rule((Meta(MetaKey.FAMILY), Compare(FAMILIES[version]), Unknown("iptables", said)))


def _version(rule: Rule) -> int:
    conditions, _ = split(rule.expressions)
    return next(
        version for version, number in FAMILIES.items() if conditions[0] == (Meta(MetaKey.FAMILY), Compare(number))
    )
