"""In what two tables differ, by name: which set, chain or rule. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from hostmesh_agent.capture import bypass
from hostmesh_agent.capture.names import UNANSWERED
from hostmesh_agent.capture.rules import Chain, NamedSet, Table
from hostmesh_agent.capture.text import range_text, rule_text


def difference(now: Table | None, wanted: Table | None) -> tuple[str, ...]:
    """Return a line for each thing that must come ("+") or go ("-") so that `now` becomes `wanted`; none if nothing.

    None is no table.
    """
    if now == wanted:
        return ()
    before, after = now or Table((), ()), wanted or Table((), ())
    lines: list[str] = []
    if now is None:
        lines.append("+ table inet hostmesh")
    elif wanted is None:
        lines.append("- table inet hostmesh")
    elif now.flags != wanted.flags:
        lines.append(f"- table inet hostmesh: flags {now.flags:#x} instead of {wanted.flags:#x}")
    sets = {each.name: each for each in before.sets}, {each.name: each for each in after.sets}
    for name in sorted({*sets[0], *sets[1]}):
        lines += _set_lines(sets[0].get(name), sets[1].get(name))
    chains = {each.name: each for each in before.chains}, {each.name: each for each in after.chains}
    for name in sorted({*chains[0], *chains[1]}):
        lines += _chain_lines(chains[0].get(name), chains[1].get(name))
    return tuple(lines) or ("- table inet hostmesh: the same parts in another order",)


def widens(now: Table | None, wanted: Table | None) -> bool:
    """Tell whether `wanted` may meet a connection that `now` lets pass, or meet it in another way.

    Fewer elements in the same sets, under the same chains, meet less, and so does a refusal less. Anything else counts
    as more.
    """
    if wanted is None or now == wanted:
        return False
    if now is not None and bypass.NAME not in {each.name for each in wanted.chains}:
        now = _without_refusals(now, wanted)
    if now is None or now.chains != wanted.chains or now.flags != wanted.flags:
        return True
    shapes = [[replace(each, ranges=()) for each in table.sets] for table in (now, wanted)]
    if shapes[0] != shapes[1]:
        return True
    # The set of what is left alone narrows by growing; and whose questions fail is asked of others.
    return any(
        bool(set(after.ranges) - set(before.ranges))
        if before.name != "untouched_ports"
        else bool(set(before.ranges) - set(after.ranges))
        for before, after in zip(now.sets, wanted.sets, strict=True)
        if before.name != UNANSWERED
    )


def _without_refusals(now: Table, wanted: Table) -> Table:
    """Return the table without the chain that refuses what came past Envoy, and the set that nobody else needs."""
    kept = {each.name for each in wanted.sets} | {each.name for each in now.sets} - {bypass.PORTS}
    return replace(
        now,
        sets=tuple(each for each in now.sets if each.name in kept),
        chains=tuple(each for each in now.chains if each.name != bypass.NAME),
    )


def _set_lines(now: NamedSet | None, wanted: NamedSet | None) -> Iterator[str]:
    name = (now or wanted or _NOTHING).name
    if now is None or wanted is None or replace(now, ranges=()) != replace(wanted, ranges=()):
        if now is not None:
            yield f"- set {name}"
        if wanted is not None:
            yield f"+ set {name}"
    before, after = set(now.ranges if now else ()), set(wanted.ranges if wanted else ())
    yield from (f"- set {name}: {range_text(*each)}" for each in sorted(before - after) if wanted is not None)
    yield from (f"+ set {name}: {range_text(*each)}" for each in sorted(after - before))


def _chain_lines(now: Chain | None, wanted: Chain | None) -> Iterator[str]:
    name = now.name if now is not None else wanted.name if wanted is not None else ""
    if now is None or wanted is None or replace(now, rules=()) != replace(wanted, rules=()):
        if now is not None:
            yield f"- chain {name} ({now.kind}, hook {int(now.hook)}, priority {now.priority})"
        if wanted is not None:
            yield f"+ chain {name} ({wanted.kind}, hook {int(wanted.hook)}, priority {wanted.priority})"
    before, after = (now.rules if now else ()), (wanted.rules if wanted else ())
    yield from (f"- chain {name}: {rule_text(each)}" for each in before if each not in after and wanted is not None)
    yield from (f"+ chain {name}: {rule_text(each)}" for each in after if each not in before)
    if now and wanted and before != after and set(before) == set(after):
        yield f"- chain {name}: its rules are in another order, or more than once"


_NOTHING = NamedSet("", 0, (), intervals=False)
