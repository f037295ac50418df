"""The generated table: which fields of Envoy's messages lead to paths and sockets."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

READ: Final = "read"
WRITE: Final = "write"
SECRETS: Final = "secrets"
SOCKET: Final = "socket"
TARGET: Final = "target"
SOURCE: Final = "source"
LEAVES: Final = frozenset({READ, WRITE, SECRETS, SOCKET, TARGET, SOURCE})
_MAP: Final = "map"
_FILE: Final = "envoy_fields.json"


@dataclass(frozen=True, slots=True)
class Field:
    """`leads_to` is the name of a message, or one of `LEAVES`; of a map it is that of its entries."""

    name: str
    leads_to: str
    is_map: bool = False


@dataclass(frozen=True)
class Table:
    """`leading`: messages that lead somewhere, with the fields that do, by number; `others` are known and do not."""

    leading: Mapping[str, Mapping[int, Field]]
    others: frozenset[str]

    def knows(self, message: str) -> bool:
        return message in self.leading or message in self.others

    @cached_property
    def by_name(self) -> Mapping[str, Mapping[str, Field]]:
        """The same by name: made when the first configuration comes as text."""
        return {name: {each.name: each for each in fields.values()} for name, fields in self.leading.items()}


def load() -> Table:
    """Read the table that is part of the package."""
    document = json.loads(Path(__file__).with_name(_FILE).read_bytes())
    shared: dict[tuple[str, ...], Field] = {}

    def field(parts: list[str]) -> Field:
        return shared.setdefault(tuple(parts), Field(parts[0], parts[1], parts[2:] == [_MAP]))

    leading = {
        name: {int(number): field(parts) for number, parts in fields.items()}
        for name, fields in document["leading"].items()
    }
    return Table(leading, frozenset(document["others"]))
