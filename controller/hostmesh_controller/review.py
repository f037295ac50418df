"""Documents read and checked as one set, against what is stored: the verdict before any change.

The registrar, the API and `hostmesh validate` judge by this alone, so that they cannot disagree.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hostmesh_controller.checks.world import World
from hostmesh_controller.load import Problem, Severity, load_documents
from hostmesh_controller.model import ApiObject, ObjectKey, path_text, read_document
from hostmesh_controller.validate import validate, validate_deletion
from hostmesh_controller.yaml_nodes import DEFAULT_LIMITS, Limits


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


def read(sources: Iterable[tuple[str, str]], namespace: str, limits: Limits = DEFAULT_LIMITS) -> Documents:
    """Read texts of YAML or JSON.

    Args:
        sources: name, for messages, and text.
        namespace: of objects that name none.
        limits: how much each may cost.
    """
    objects: list[ApiObject] = []
    problems: list[Problem] = []
    for name, text in sources:
        found, wrong = load_documents(text, name, namespace, limits=limits)
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


def review(documents: Documents, world: World, *, alternatives: bool = False) -> Review:
    """Check documents against each other and against what is stored.

    Args:
        documents: what is to be applied.
        world: what is stored; objects of the same key will be replaced. `World(domain)` where nothing is.
        alternatives: whether several files may have an object of one key, as in a folder of examples: that is a
            warning then.
    """
    problems = list(documents.problems)
    for item, other in _twice(documents.objects):
        apart = alternatives and item.origin and other.origin and item.origin.file != other.origin.file
        problems.append(_repeated(item, other, "warning" if apart else "error"))
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


def _twice(objects: Sequence[ApiObject]) -> Iterator[tuple[ApiObject, ApiObject]]:
    """Yield two documents of one key, the later one first: which of them is meant cannot be known."""
    first: dict[ObjectKey, ApiObject] = {}
    for item in objects:
        other = first.setdefault(item.key, item)
        if other is not item:
            yield item, other


def _repeated(item: ApiObject, other: ApiObject, severity: Severity) -> Problem:
    path, code = "metadata.name", "duplicate"
    if item.origin is None or other.origin is None:
        return Problem(str(item.key), 0, 0, path, "the object is there twice", code, severity, item.key)
    place, earlier = (each.place(("metadata", "name")) for each in (item.origin, other.origin))
    cure = "remove one of the two" if severity == "error" else "apply one of the two"
    message = f"{item.key} is already in {other.origin.file}:{earlier.line}; {cure}"
    return Problem(item.origin.file, place.line, place.column, path, message, code, severity, item.key)


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
