"""Configuration files: YAML and JSON in, objects and problems out.

A problem names the file, line and field. One mistake does not hide another: each document is read by itself, and all
that is wrong with it is collected. No input raises, and none costs more than its size: see `yaml_nodes.Limits`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from hostmesh_controller.model import ApiObject, Fault, ObjectKey, Origin, Path, Place, path_text, read_document
from hostmesh_controller.yaml_nodes import DEFAULT_LIMITS, Document, Limits, YamlProblem, read_yaml

Severity = Literal["error", "warning", "info"]
"""An error refuses; a warning says what will not work as written; an info, what is worth knowing."""

STDIN: Final = "<stdin>"
_MAX_PROBLEMS: Final = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, where, in the words of the author.

    `line` and `column` count from 1; `line` is 0 where the object was not read from a file, and `file` then names the
    object. `path` is "" where the whole document is meant. Only an error stops anything. `istio_code` is what
    `istioctl analyze` calls it, "" where it has no name for it. `key` is the object's, if it has one.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    code: str
    severity: Severity = "error"
    key: ObjectKey | None = None
    istio_code: str = ""

    @property
    def is_error(self) -> bool:
        """Whether it stops the objects from being applied."""
        return self.severity == "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        severity = "" if self.is_error else f"{self.severity}: "
        path = f"{self.path}: " if self.path else ""
        return f"{place}: {severity}{path}{self.message}"


def load_documents(
    text: str | bytes, source: str, default_namespace: str = "default", *, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[ApiObject], list[Problem]]:
    """Read all documents of a text; of those with a problem there is no object.

    Args:
        text: YAML or JSON, one document or several divided by `---`; a `kind: List` counts as its items.
        source: what problems call it: a file's name; "-" becomes "<stdin>".
        default_namespace: of objects that name none.
        limits: how much may be read.
    """
    file = STDIN if source == "-" else source
    objects: list[ApiObject] = []
    problems: list[Problem] = []
    for found in read_yaml(text, limits):
        if len(problems) > _MAX_PROBLEMS:
            break
        if isinstance(found, YamlProblem):
            problems.append(Problem(file, found.line, found.column, "", found.message, found.code))
            continue
        for prefix, value, places in _items(found):
            made, faults = read_document(value, default_namespace)
            if made is not None and not found.flawed:
                objects.append(replace(made, origin=Origin(file, places)))
            found_here = [_problem(file, prefix, places, fault) for fault in faults]
            problems += sorted(found_here, key=lambda problem: (problem.line, problem.column))
    return objects, _bounded(problems)


def _bounded(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= _MAX_PROBLEMS:
        return problems
    message = f"more than {_MAX_PROBLEMS} problems: the rest is not told"
    return [*problems[:_MAX_PROBLEMS], replace(problems[_MAX_PROBLEMS], path="", message=message)]


def _items(document: Document) -> Iterator[tuple[Path, object, dict[Path, Place]]]:
    """Yield the objects of a document: the items of a List, or the document itself.

    With each come the path to it and the places of its fields, by the path below it.
    """
    value = document.value
    if not (isinstance(value, dict) and value.get("kind") == "List" and isinstance(value.get("items"), list)):
        yield (), value, document.places
        return
    below: list[dict[Path, Place]] = [{} for _ in value["items"]]
    for path, place in document.places.items():
        if len(path) > 1 and path[0] == "items" and isinstance(path[1], int):
            below[path[1]][path[2:]] = place
    for index, item in enumerate(value["items"]):
        yield ("items", index), item, below[index]


def _problem(file: str, prefix: Path, places: dict[Path, Place], fault: Fault) -> Problem:
    place = Origin(file, places).place(fault.path)
    return Problem(file, place.line, place.column, path_text(prefix + fault.path), fault.message, fault.code)
