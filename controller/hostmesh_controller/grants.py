"""What a caller of the admin API may do: roles, each within namespaces and kinds. Pure; `access` judges by them.

A grant is written `ROLE[:NAMESPACES[:KINDS]]`, lists with commas, `*` or nothing for all:
`editor:shop:VirtualService,DestinationRule`, `viewer`, `editor:*:Service`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

ALL: Final = "*"
MAX_GRANTS: Final = 32
MAX_NAMES: Final = 256
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_KIND: Final = re.compile(r"[A-Z][A-Za-z]{1,62}", re.ASCII)


class Role(IntEnum):
    """Each role may do all that the ones below it may."""

    VIEWER = 1
    """Reads."""
    EDITOR = 2
    """Applies and deletes configuration objects."""
    ADMIN = 3
    """Also hosts, join tokens and API tokens: whatever gives someone or something an identity."""

    @property
    def word(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Grant:
    """A role within namespaces and, for what is written, kinds; empty sets mean all.

    An administrator is one of the whole mesh: who may give identities in one namespace could give itself any.
    """

    role: Role
    namespaces: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    @property
    def everywhere(self) -> bool:
        """Whether it holds in all namespaces."""
        return not self.namespaces

    def covers(self, kind: str) -> bool:
        """Tell whether objects of a kind may be written, if the namespace is right."""
        return not self.kinds or kind in self.kinds

    def __str__(self) -> str:
        parts = [self.role.word, ",".join(sorted(self.namespaces)), ",".join(sorted(self.kinds))]
        while not parts[-1]:
            parts.pop()
        return ":".join(part or ALL for part in parts)


def parse_grant(text: str) -> Grant:
    """Read a grant.

    Raises:
        ValueError: it is none; the message says what would be.
    """
    role, *rest = text.split(":")
    if role.upper() not in Role.__members__ or role != role.lower() or len(rest) > 2:
        msg = f"{text[:100]!r} is no grant: write viewer, editor or admin, as in editor:shop:VirtualService"
        raise ValueError(msg)
    namespaces, kinds = (*rest, "", "")[:2]
    return checked(Role[role.upper()], _names(namespaces), _names(kinds))


def checked(role: Role, namespaces: Iterable[str], kinds: Iterable[str]) -> Grant:
    """Return a grant of these.

    Raises:
        ValueError: a name that is none, too many of them, or an administrator of less than all.
    """
    grant = Grant(role, frozenset(namespaces), frozenset(kinds))
    if len(grant.namespaces) > MAX_NAMES or len(grant.kinds) > MAX_NAMES:
        raise ValueError(f"a grant names at most {MAX_NAMES} namespaces and kinds")
    for name in grant.namespaces:
        if _NAMESPACE.fullmatch(name) is None:
            raise ValueError(f"{name[:63]!r} is not the name of a namespace")
    for kind in grant.kinds:
        if _KIND.fullmatch(kind) is None:
            raise ValueError(f"{kind[:63]!r} is not a kind; write it as in an object: VirtualService")
    if role is Role.ADMIN and (grant.namespaces or grant.kinds):
        raise ValueError("an admin is one of the whole mesh; make it an editor of the namespaces and kinds")
    if role is Role.VIEWER and grant.kinds:
        raise ValueError("kinds restrict what is written; a viewer reads all kinds of its namespaces")
    return grant


def parse_grants(text: str) -> tuple[Grant, ...]:
    """Read what `grants_text` wrote.

    Raises:
        ValueError: see `parse_grant`.
    """
    return tuple(parse_grant(each) for each in text.split())


def grants_text(grants: Sequence[Grant]) -> str:
    return " ".join(map(str, grants))


def role_of(grants: Iterable[Grant]) -> Role | None:
    """Return the highest role that any of the grants gives; None without grants."""
    return max((each.role for each in grants), default=None)


def readable(grants: Iterable[Grant]) -> frozenset[str] | None:
    """Return the namespaces that may be read; None: all, and what is in no namespace."""
    found: set[str] = set()
    for grant in grants:
        if grant.everywhere:
            return None
        found |= grant.namespaces
    return frozenset(found)


def _names(text: str) -> list[str]:
    return [] if text in {"", ALL} else text.split(",")
