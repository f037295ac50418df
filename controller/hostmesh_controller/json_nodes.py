"""JSON text as plain values, with the place of every field."""

import json
import re
from typing import Any

from hostmesh_controller.model.objects import Path, Place


class _NotPlainError(ValueError):
    """Valid for Python's reader, but not to be taken as it is."""


def read_json(text: str, depth: int) -> tuple[Any, dict[Path, Place]] | None:
    """Return the value of a JSON text and where its fields stand, or None if it is not JSON.

    None also for what the slower reader of YAML (of which JSON is a part) words better: a key that is there twice,
    nesting deeper than `depth`, numbers that are none.
    """
    if text.lstrip()[:1] not in {"{", "["}:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
        return value, _places(text, depth)
    except (ValueError, RecursionError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise _NotPlainError("a key is there twice")
    return made


def _refuse(constant: str) -> Any:
    raise _NotPlainError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if number in {float("inf"), float("-inf")}:
        raise _NotPlainError(text)
    return number


_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+|\n')


def _places(text: str, depth: int) -> dict[Path, Place]:
    """Return the place of every value (of a mapping's value: its key); the text is known to be valid."""
    places: dict[Path, Place] = {}
    path: list[str | int] = []
    # For each open bracket: True for a mapping. `path` has one step for each of them while inside.
    mappings: list[bool] = []
    line, line_start, key_follows = 1, 0, False
    for found in _WORD.finditer(text):
        word = found[0]
        if word == "\n":
            line, line_start = line + 1, found.end()
        elif word == ",":
            key_follows = mappings[-1]
            if not key_follows:
                path[-1] = int(path[-1]) + 1
        elif word in "}]":
            mappings.pop()
            path.pop()
            key_follows = False
        elif word != ":":
            place = Place(line, found.start() - line_start + 1)
            if key_follows:
                path[-1] = json.loads(word)
                places[tuple(path)] = place
                key_follows = False
                continue
            places.setdefault(tuple(path), place)
            if word in "{[":
                mappings.append(word == "{")
                path.append("" if word == "{" else 0)
                key_follows = word == "{"
                if len(mappings) > depth:
                    raise _NotPlainError("too deep")
    return places
