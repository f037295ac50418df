"""Documents read and checked as one set, against what is stored: the verdict before any change.

The registrar, the API and `hostmesh validate` judge by this alone, so that they cannot disagree.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hostmesh_controller.checks.world import World
from hostmesh_controller.load import Problem, load_documents
from hostmesh_controller.model import ApiObject, ObjectKey, path_text, read_document
from hostmesh_controller.validate import validate, validate_deletion


@dataclass(frozen=True, slots=True)
class Documents:
    """What was read: well-formed objects, and what is wrong with the others."""

    objects: tuple[ApiObject, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Review:
    """The verdict. Errors refuse everything; warnings (and what is only worth knowing) are told and refuse nothing."""

    errors: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def problems(self) -> tuple[Problem, ...]:
        return (*self.errors, *self.warnings)


class UnreadableError(Exception):
    """The store holds an object that this version does not understand."""


def read(sources: Iterable[tuple[str, str]], namespace: str) -> Documents:
    """Read texts of YAML or JSON.

    Args:
        sources: name, for messages, and text.
        namespace: of objects that name none.
    """
    objects: list[ApiObject] = []
    problems: list[Problem] = []
    for name, text in sources:
        found, wrong = load_documents(text, name, namespace)
        objects += found
        problems += wrong
    return Documents(tuple(objects), tuple(problems))


def read_one(document: Mapping[str, Any], name: str, namespace: str) -> Documents:
    """Read a document that is parsed already."""
    made, faults = read_document(document, namespace)
    problems = (Problem(name, 0, 0, path_text(each.path), each.message, each.code) for each in faults)
    return Documents(() if made is None else (made,), tuple(problems))


def read_stored(key: ObjectKey, document: Mapping[str, Any]) -> ApiObject:
    """Read an object as the store has it.

    Raises:
        UnreadableError: this version refuses what another one stored.
    """
    made, faults = read_document(document, key.namespace or "default")
    if made is None:
        reasons = "; ".join(f"{path_text(each.path)}: {each.message}" for each in faults)
        raise UnreadableError(f"the stored {key} cannot be read by this version: {reasons}")
    return made


def review(documents: Documents, world: World) -> Review:
    """Check documents against each other and against what is stored.

    Args:
        documents: what is to be applied.
        world: what is stored; objects of the same key will be replaced. `World(domain)` where nothing is.
    """
    problems = list(documents.problems)
    problems += _twice(documents.objects)
    problems += validate(documents.objects, world)
    return _verdict(problems)


def review_deletion(keys: Iterable[ObjectKey], world: World) -> Review:
    """Tell what others will miss when objects of what is stored are deleted: warnings alone."""
    return _verdict(validate_deletion(keys, world))


def _verdict(problems: Sequence[Problem]) -> Review:
    return Review(
        errors=tuple(each for each in problems if each.is_error),
        warnings=tuple(each for each in problems if not each.is_error),
    )


def _twice(objects: Sequence[ApiObject]) -> list[Problem]:
    """Two documents of one key: which of them is meant cannot be known."""
    first: dict[ObjectKey, ApiObject] = {}
    problems: list[Problem] = []
    for item in objects:
        other = first.setdefault(item.key, item)
        if other is not item:
            problems.append(_repeated(item, other))
    return problems


def _repeated(item: ApiObject, other: ApiObject) -> Problem:
    path = ("metadata", "name")
    if item.origin is None or other.origin is None:
        return Problem(str(item.key), 0, 0, "metadata.name", "the object is there twice", "duplicate", key=item.key)
    place, earlier = item.origin.place(path), other.origin.place(path)
    message = f"{item.key} is already in {other.origin.file}:{earlier.line}; remove one of the two"
    return Problem(item.origin.file, place.line, place.column, "metadata.name", message, "duplicate", key=item.key)


def problem_body(problem: Problem) -> dict[str, object]:
    """Return a problem as the API and `-o json` give it.

    `line` and `column` are None where there is no file; `istio_code` is "" where `istioctl analyze` has no code for it.
    """
    return {
        "file": problem.file,
        "line": problem.line or None,
        "column": problem.column if problem.line else None,
        "path": problem.path,
        "message": problem.message,
        "code": problem.code,
        "istio_code": problem.istio_code,
        "severity": problem.severity,
    }
