"""The rules without which nobody reaches what the second of two Envoys listens on, apart from all others. Pure.

It does not bind a Gateway's ports (the first does): connections to them are led to its door. That captures nothing:
nobody but Envoy is called there.
"""

from dataclasses import replace
from typing import Final

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.rules import Rule, Table

TO_DOOR: Final = "to Envoy's door"
"""The comment of each such rule."""

_FROM_LOOPBACK: Final = Rule((*words.from_loopback(), *words.RETURN))


def alone(table: Table | None) -> Table | None:
    """Return the table with those rules and no others; None: it has none."""
    chains = []
    for chain in () if table is None else table.chains:
        # The kernel asks the rule before them, too: what comes over loopback is led by the other chain.
        kept = [each for each in chain.rules if each.comment == TO_DOOR or each == _FROM_LOOPBACK]
        if any(each.comment == TO_DOOR for each in kept):
            chains.append(replace(chain, rules=tuple(kept)))
    return replace(table, sets=(), chains=tuple(chains)) if table is not None and chains else None
