"""`[[admin.client]]` of controller.toml: which client certificates are whose, and what they may do. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from hostmesh_controller.grants import MAX_GRANTS, Grant, parse_grant

FIELDS: Final = ("cn", "ou", "uri", "dns", "email")
"""What of a certificate a rule may ask for: common name and unit of the subject, and names of the subjectAltName."""
_KNOWN: Final = (*FIELDS, "name", "grants")


@dataclass(frozen=True, slots=True)
class ClientRule:
    """A certificate fits that has, for each field of `wanted`, a value that the pattern (`*` for any text) covers.

    Who it is: `name`, or ("") the value of the first field that is asked for.
    """

    wanted: tuple[tuple[str, str], ...]
    grants: tuple[Grant, ...]
    name: str = ""

    def match(self, names: Sequence[tuple[str, str]]) -> str | None:
        """Return the value that names who it is, None if the certificate does not fit.

        Args:
            names: field and value of each name in the certificate.
        """
        found: list[str] = []
        for field, pattern in self.wanted:
            fitting = [value for each, value in names if each == field and _covers(pattern, value)]
            # Of two common names it cannot be known which one somebody else reads.
            if not fitting or (field == "cn" and sum(each == field for each, _ in names) > 1):
                return None
            found.append(fitting[0])
        return found[0]


def _covers(pattern: str, value: str) -> bool:
    # Square brackets and '?' would be wildcards too.
    literal = pattern.replace("[", "[[]").replace("?", "[?]")
    return value.isprintable() and fnmatchcase(value, literal)


def parse_clients(value: Sequence[object]) -> tuple[tuple[ClientRule, ...], list[str]]:
    """Read the list; return what was read and what is wrong, one sentence each."""
    rules: list[ClientRule] = []
    problems: list[str] = []
    for index, item in enumerate(value, 1):
        try:
            rules.append(_rule(item))
        except ValueError as error:
            problems.append(f"client {index}: {error}")
    return tuple(rules), problems


def _rule(item: object) -> ClientRule:
    if not isinstance(item, Mapping):
        raise ValueError("must be a table: write [[admin.client]]")
    unknown = sorted(set(item) - set(_KNOWN))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]!r}; known: {', '.join(_KNOWN)}")
    for field in (*FIELDS, "name"):
        if field in item and (not isinstance(item[field], str) or not item[field]):
            raise ValueError(f"{field} must be text")
    wanted = tuple((field, str(item[field])) for field in FIELDS if field in item)
    if not wanted:
        raise ValueError(f"say which certificates: one of {', '.join(FIELDS)}")
    if all(not pattern.strip("*") for _, pattern in wanted):
        raise ValueError("'*' alone is every certificate of the CA: name more of it")
    grants = item.get("grants")
    if not isinstance(grants, list) or not 1 <= len(grants) <= MAX_GRANTS:
        raise ValueError('grants must be a list such as ["viewer", "editor:shop"]')
    return ClientRule(wanted, tuple(parse_grant(str(each)) for each in grants), str(item.get("name", "")))
