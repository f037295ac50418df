"""YAML and JSON text as plain values, with the place of every field.

Built on the parser's events and not on its constructors: no tag makes an object, nothing recurses deeper than the
limit, and what aliases expand to is counted while it grows. Only mappings, lists, text, numbers, booleans and null
come out; keys are always text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from hostmesh_controller.json_nodes import read_json
from hostmesh_controller.model.objects import Path, Place


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one text may cost. `values` counts mappings, lists and scalars once aliases are expanded.

    The parser takes about 10 s for a MiB of YAML in its worst form, and 1 s for one of JSON.
    """

    text_bytes: int = 4 * 2**20
    depth: int = 64
    values: int = 500_000
    documents: int = 20_000


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class YamlProblem:
    """What is wrong with the text itself; line and column from 1."""

    line: int
    column: int
    message: str
    code: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `flawed` means that a problem with it was yielded before: its value is not to be trusted."""

    value: Any
    places: dict[Path, Place]
    flawed: bool = False


def read_yaml(text: str | bytes, limits: Limits = DEFAULT_LIMITS) -> Iterator[Document | YamlProblem]:
    """Yield the documents of a text and all that is wrong with it; empty documents are left out.

    A mistake in one document does not hide the others: `---` at the start of a line divides documents wherever it
    stands, also inside quotes.
    """
    readable = _readable(text, limits)
    if isinstance(readable, YamlProblem):
        yield readable
        return
    found = read_json(readable, limits.depth)
    if found is not None:
        yield Document(*found)
        return
    budget = _Budget(limits.values)
    for count, (first_line, part) in enumerate(_parts(readable), 1):
        if count > limits.documents:
            yield YamlProblem(first_line, 1, f"more than {limits.documents} documents: divide the file", "too-big")
            return
        yield from _Reader(part, first_line, limits, budget).documents()


_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")


def _readable(text: str | bytes, limits: Limits) -> str | YamlProblem:
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > limits.text_bytes:
        return YamlProblem(1, 1, f"larger than {limits.text_bytes} bytes: divide it into several files", "too-big")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
            return YamlProblem(line, column, f"not UTF-8: byte 0x{error.object[error.start]:02x}", "encoding")
    text = text.removeprefix("\ufeff")
    bad = _FORBIDDEN.search(text)
    if bad:
        line, column = text.count("\n", 0, bad.start()) + 1, bad.start() - text.rfind("\n", 0, bad.start())
        return YamlProblem(line, column, f"the character U+{ord(bad[0]):04X} is not allowed", "character")
    return text


_DIVIDER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_NO_CONTENT = re.compile(r"(?:---)?(?:[ \t]*(?:[#%].*)?(?:\r?\n|\Z))*")


def _parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield the parts between dividers, each with the line it starts on; directives and comments alone are none."""
    starts = [0, *(found.start() for found in _DIVIDER.finditer(text)), len(text)]
    line = 1
    for start, end in pairwise(starts):
        part = text[start:end]
        if part.strip() and not _NO_CONTENT.fullmatch(part):
            yield line, part
        line += part.count("\n")


@dataclass(slots=True)
class _Budget:
    values: int

    def spend(self, amount: int = 1) -> None:
        self.values -= amount
        if self.values < 0:
            raise _StopError("too-big", "too many values once its aliases are expanded")


class _StopError(Exception):
    """Nothing more can be read from this part."""

    def __init__(self, code: str, message: str, place: Place | None = None) -> None:
        self.code, self.message, self.place = code, message, place


@dataclass(slots=True, eq=False)
class _Node:
    place: Place
    scalar: Any = None
    items: list["_Node"] | None = None
    pairs: list[tuple[str, Place, "_Node"]] | None = None
    closed: bool = True
    """False while its own content is read: an alias to it from there would have no end."""


@dataclass(slots=True)
class _Reader:
    """Reads one part: events to nodes (depth bounded), nodes to values (size bounded)."""

    text: str
    first_line: int
    limits: Limits
    budget: _Budget
    anchors: dict[str, _Node] = field(default_factory=dict)
    problems: list[YamlProblem] = field(default_factory=list)

    def documents(self) -> Iterator[Document | YamlProblem]:
        try:
            events = iter(YAML(typ="safe", pure=True).parse(self.text))
            for event in events:
                if isinstance(event, DocumentStartEvent):
                    yield from self._document(events)
        except _StopError as stop:
            yield self._stopped(stop.place, stop.message, stop.code)
        except MarkedYAMLError as error:
            yield self._syntax(error)
        except (YAMLError, ValueError, OverflowError) as error:
            # An escape such as "\UFFFFFFFF" is no character; the parser says so without a place.
            yield self._stopped(None, f"not valid YAML: {error}".splitlines()[0], "syntax")

    def _stopped(self, place: Place | None, message: str, code: str) -> YamlProblem:
        place = place or Place(self.first_line, 1)
        return YamlProblem(place.line, place.column, message, code)

    def _document(self, events: Iterator[Event]) -> Iterator[Document | YamlProblem]:
        self.anchors.clear()
        self.problems.clear()
        root = self._node(next(events), events, 0)
        places: dict[Path, Place] = {}
        value = self._value(root, (), places, 0)
        yield from self.problems
        if value is not None:
            yield Document(value, places, flawed=bool(self.problems))

    def _place(self, event: Event) -> Place:
        return Place(event.start_mark.line + self.first_line, event.start_mark.column + 1)

    def _problem(self, place: Place, message: str, code: str) -> None:
        self.problems.append(YamlProblem(place.line, place.column, message, code))

    def _node(self, event: Event, events: Iterator[Event], depth: int) -> _Node:
        place = self._place(event)
        if depth > self.limits.depth:
            raise _StopError("too-deep", f"nested deeper than {self.limits.depth} levels", place)
        if isinstance(event, AliasEvent):
            return self._alias(event, place)
        self._check_tag(event, place)
        node = _Node(place)
        anchor = getattr(event, "anchor", None)
        if anchor:
            self.anchors[anchor] = node
        node.closed = False
        if isinstance(event, SequenceStartEvent):
            node.items = []
            while not isinstance(inner := next(events), SequenceEndEvent):
                node.items.append(self._node(inner, events, depth + 1))
        elif isinstance(event, MappingStartEvent):
            node.pairs = self._pairs(events, depth)
        elif isinstance(event, ScalarEvent):
            node.scalar = _scalar(event)
        node.closed = True
        return node

    def _alias(self, event: AliasEvent, place: Place) -> _Node:
        target = self.anchors.get(event.anchor)
        if target is None:
            raise _StopError("alias", f"alias *{event.anchor} has no anchor &{event.anchor} before it", place)
        if not target.closed:
            raise _StopError("alias", f"alias *{event.anchor} stands inside what it refers to", place)
        return _Node(place, target.scalar, target.items, target.pairs)

    def _check_tag(self, event: Event, place: Place) -> None:
        tag = getattr(event, "tag", None)
        if tag and str(tag) not in _TAGS:
            self._problem(place, f"the tag {str(tag)[:60]} is not allowed", "tag")

    def _pairs(self, events: Iterator[Event], depth: int) -> list[tuple[str, Place, _Node]]:
        pairs: list[tuple[str, Place, _Node]] = []
        lines: dict[str, int] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            key_node = self._node(event, events, depth + 1)
            value = self._node(next(events), events, depth + 1)
            place = key_node.place
            if key_node.items is not None or key_node.pairs is not None:
                self._problem(place, "a key must be a name (is this a template that was not rendered?)", "key")
                continue
            key = event.value if isinstance(event, ScalarEvent) else str(key_node.scalar)
            if key in lines:
                self._problem(place, f"key {key[:60]!r} is there twice (first on line {lines[key]})", "duplicate-key")
                continue
            lines[key] = place.line
            pairs.append((key, place, value))
        return pairs

    def _value(self, node: _Node, path: Path, places: dict[Path, Place], depth: int) -> Any:
        # A long text counts for more, since aliases can repeat it.
        self.budget.spend(1 + len(node.scalar) // 256 if isinstance(node.scalar, str) else 1)
        if depth > self.limits.depth:
            raise _StopError("too-deep", f"nested deeper than {self.limits.depth} levels by aliases", node.place)
        places.setdefault(path, node.place)
        if node.items is not None:
            return [self._value(item, (*path, index), places, depth + 1) for index, item in enumerate(node.items)]
        if node.pairs is None:
            return node.scalar
        value: dict[str, Any] = {}
        merged: list[_Node] = []
        for key, place, inner in node.pairs:
            if key == "<<":
                merged += inner.items if inner.items is not None else [inner]
                continue
            places[*path, key] = place
            value[key] = self._value(inner, (*path, key), places, depth + 1)
        for source in merged:
            self._merge(source, value, path, places, depth)
        return value

    def _merge(self, source: _Node, value: dict[str, Any], path: Path, places: dict[Path, Place], depth: int) -> None:
        """Add what `<<` brings: keys that are written out win, then earlier sources."""
        brought = self._value(source, path, {}, depth + 1)
        if not isinstance(brought, dict):
            self._problem(source.place, "'<<' needs a mapping", "merge")
            return
        for key, inner in brought.items():
            if key not in value:
                value[key] = inner
                places[*path, key] = source.place

    def _syntax(self, error: MarkedYAMLError) -> YamlProblem:
        mark = error.problem_mark or error.context_mark
        problem = str(error.problem or error.context or "cannot be read")
        for part, better in _BETTER.items():
            if part in problem.replace("\t", r"\t"):
                problem = better
        opened = error.context_mark
        if error.context and opened:
            problem += f" ({error.context} that starts on line {opened.line + self.first_line})"
        place = Place(mark.line + self.first_line, mark.column + 1) if mark else Place(self.first_line, 1)
        return YamlProblem(place.line, place.column, f"not valid YAML: {problem}", "syntax")


_BETTER: Final = {
    r"found character '\t'": "a tab stands where only spaces may (indent with spaces)",
    "mapping values are not allowed here": "a ':' where no value can start (indentation, or text that needs quotes?)",
    "could not find expected ':'": "a line without ':' (wrong indentation, or a missing colon?)",
    "found unexpected end of stream": "the text ends within quotes",
}
"""Parts of the parser's messages, and what to say instead."""
_CORE = "tag:yaml.org,2002:"
_TAGS: Final = frozenset({"!"} | {_CORE + name for name in ("str", "int", "float", "bool", "null", "map", "seq")})
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]{1,19}")
_BASED = re.compile(r"0o[0-7]{1,21}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,30}|[0-9]{1,30}(?:\.[0-9]{0,30})?)(?:[eE][-+]?[0-9]{1,2})?")


def _scalar(event: ScalarEvent) -> Any:
    """Return the value of a scalar by YAML 1.2's core schema; what is too long for a number stays text."""
    text: str = event.value
    if event.tag == _CORE + "str" or (not event.implicit[0] and event.tag is None):
        return text
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    return float(text) if _FLOAT.fullmatch(text) else text
