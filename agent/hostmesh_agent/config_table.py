"""Typed values out of a table of TOML, each refused with its place. Pure."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from hostmesh_api.dialling import parse_blocks


class ConfigError(Exception):
    """The owner of the host must change agent.toml; the message names file and key."""


@dataclass(frozen=True, slots=True)
class Table:
    """One TOML table with the place it came from; every reader checks the type and names the key."""

    source: str
    prefix: str
    values: Mapping[str, object]

    def error(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self.source}: {self.prefix}{key}: {message}")

    def only(self, fields: tuple[dataclasses.Field[Any], ...]) -> None:
        self.only_keys([each.name for each in fields])

    def only_keys(self, known: Sequence[str]) -> None:
        for key in self.values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise self.error(key, f"unknown key; {hint}")

    def table(self, key: str) -> "Table":
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, f"must be a table, written [{self.prefix}{key}]")
        return Table(self.source, f"{self.prefix}{key}.", value)

    def text(self, key: str, default: str) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, is {value!r}")
        return value

    def one_of(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise self.error(key, f"must be one of {', '.join(choices)}; is {value!r}")
        return value

    def path(self, key: str, default: Path) -> Path:
        return self.optional_path(key) or default

    def optional_path(self, key: str) -> Path | None:
        text = self.text(key, "")
        if not text:
            return None
        if not Path(text).is_absolute():
            raise self.error(key, f"must be an absolute path, is {text!r}")
        return Path(text)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {value!r}")
        return value

    def number(self, key: str, default: int, low: int, high: int) -> int:
        value = self.values.get(key, default)
        if not _is_int(value) or not low <= value <= high:
            raise self.error(key, f"must be a whole number from {low} to {high}, is {value!r}")
        return value

    def texts(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        value = self.values.get(key, [*default])
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            raise self.error(key, f"must be a list of strings, is {value!r}")
        return tuple(value)

    def absolute_paths(self, key: str) -> tuple[str, ...]:
        paths = self.texts(key)
        for each in paths:
            if not each.startswith("/") or ".." in each.split("/"):
                raise self.error(key, f"must be a list of absolute paths, has {each!r}")
        return paths

    def numbers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(_is_int(each) and low <= each <= high for each in value):
            raise self.error(key, f"must be a list of whole numbers from {low} to {high}, is {value!r}")
        return tuple(value)

    def blocks(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list):
            raise self.error(key, f"must be a list of address blocks such as 10.0.0.0/8, is {value!r}")
        try:
            parse_blocks(map(str, value))
        except ValueError as error:
            raise self.error(key, f"is not a list of address blocks such as 10.0.0.0/8: {error}") from None
        return tuple(map(str, value))

    def ports(self, key: str) -> tuple[int, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(_is_int(each) and 1 <= each <= 65535 for each in value):
            raise self.error(key, f"must be a list of ports from 1 to 65535, is {value!r}")
        return tuple(sorted(set(value)))


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
