"""Rules of WorkloadGroups that adopt what members listen on: which port a member's workload has. Pure.

The annotation `hostmesh.io/adopt` of a group says for a port of its template whose port it is:

    hostmesh.io/adopt: http=unit:tomcat@9.service, admin=program:java

On a member on which exactly one port of that unit or program was found listening, that is the number of the workload's
port; elsewhere the template's own number holds. So a member decides about nothing but where it is called itself.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

ADOPT: Final = "hostmesh.io/adopt"
MAX_RULES: Final = 32
_KINDS: Final = ("unit", "program")
_MESH_PORTS: Final = range(15000, 15100)
_NEVER: Final = 22


class Listens(NamedTuple):
    """A program that listens where others may reach it."""

    port: int
    program: str
    unit: str


class Rule(NamedTuple):
    """`port` is the name of the template's port; `kind` is unit or program, `name` its name."""

    port: str
    kind: str
    name: str


def parse_rules(text: str, ports: Iterable[str]) -> tuple[Rule, ...]:
    """Read the annotation of a group whose template has ports of these names.

    Raises:
        ValueError: it does not say what it may say; the message has the cure.
    """
    known, rules = set(ports), []
    for part in text.split(","):
        port, equals, what = part.strip().partition("=")
        kind, colon, name = what.partition(":")
        if not equals or not colon or kind not in _KINDS or not name:
            raise ValueError(f"{part.strip()!r} is no rule: write PORT=unit:NAME or PORT=program:NAME")
        if port not in known:
            there = ", ".join(sorted(known)) or "none"
            raise ValueError(
                f"{port!r} is no port of spec.template.ports (there: {there}): name it there, with a number"
            )
        rules.append(Rule(port, kind, name))
    if len({each.port for each in rules}) != len(rules) or len(rules) > MAX_RULES:
        raise ValueError(f"a port has one rule, and there are at most {MAX_RULES}")
    return tuple(rules)


def adopted_ports(rules: Iterable[Rule], listening: Iterable[Listens]) -> Mapping[str, int]:
    """Return the numbers of those ports that were found, without doubt."""
    usable = [each for each in listening if each.port != _NEVER and each.port not in _MESH_PORTS]
    found: dict[str, int] = {}
    for rule in rules:
        numbers = {each.port for each in usable if rule.name == (each.unit if rule.kind == "unit" else each.program)}
        if len(numbers) == 1:
            found[rule.port] = numbers.pop()
    return found
