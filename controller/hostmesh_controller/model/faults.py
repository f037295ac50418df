"""What is wrong with a document, in the words of its author: pydantic's errors translated."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hostmesh_controller.model.objects import Path
from hostmesh_controller.model.schema import Spec
from hostmesh_controller.suggest import did_you_mean


class Fault(NamedTuple):
    """One mistake: where in the document, what, and a short code for programs."""

    path: Path
    message: str
    code: str


def path_text(path: Path) -> str:
    """Return a path as users write it: spec.http[0].match[1].headers["x.y"]."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step.replace("-", "").replace("_", "").isalnum():
            text += f".{step}" if text else step
        else:
            text += f"[{step!r}]" if text else step
    return text


_WANTED = {
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "tuple_type": "a list",
    "list_type": "a list",
    "mapping_type": "a mapping",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def found_text(value: object) -> str:
    """Return what a value is, for "expected …, found …"."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"{str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {value[:40]!r}{'…' if len(value) > 40 else ''}"
        case Mapping():
            return "a mapping"
        case _:
            return "a list"


def _type_message(kind: str, value: object) -> str:
    message = f"expected {_WANTED[kind]}, found {found_text(value)}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f"{message}; put it in quotes"
    return message


def _limit_message(kind: str, context: Mapping[str, Any], value: object) -> str | None:
    match kind:
        case "greater_than_equal":
            return f"must be at least {context['ge']:.10g}, found {value}"
        case "greater_than":
            return f"must be more than {context['gt']:.10g}, found {value}"
        case "less_than_equal":
            return f"must be at most {context['le']:.10g}, found {value}"
        case "too_short":
            return f"at least {context['min_length']} needed, found {context['actual_length']}"
        case "too_long":
            return f"at most {context['max_length']} allowed"
        case "string_too_long":
            return f"at most {context['max_length']} characters allowed"
        case "string_too_short":
            return "must not be empty"
        case "string_pattern_mismatch":
            return f"must match {context['pattern']}"
    return None


def _inner(annotation: Any) -> Any:
    """Strip Annotated and `| None` off an annotation."""
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation = get_args(annotation)[0]
        elif origin is Union or type(annotation).__name__ == "UnionType":
            annotation = next((a for a in get_args(annotation) if a is not type(None)), None)
        else:
            return annotation


def _field(model: type[Spec], written: str) -> Any:
    for name, field in model.model_fields.items():
        if written in {field.alias, name}:
            return field.annotation
    return None


def _part_at(model: type[Spec], path: Sequence[str | int]) -> type[Spec] | None:
    """Return the model of the part at `path`, or None if there is none."""
    part: Any = model
    for step in path:
        part = _inner(part)
        if isinstance(part, type) and issubclass(part, Spec):
            part = _field(part, str(step))
        else:
            part = next((arg for arg in reversed(get_args(part)) if arg is not Ellipsis), None)
    part = _inner(part)
    return part if isinstance(part, type) and issubclass(part, Spec) else None


def field_names(model: type[Spec]) -> list[str]:
    """Return the fields of a model as users write them, those of `not_yet` and `refused` too."""
    known = [field.alias or name for name, field in model.model_fields.items()]
    return known + sorted(model.not_yet | model.refused.keys())


def _unknown(model: type[Spec], path: Path) -> Fault:
    name = str(path[-1])
    part = _part_at(model, path[:-1])
    if part is None:
        return Fault(path, f"unknown field {name!r}", "unknown-field")
    if name in part.refused:
        return Fault(path, f"not supported: {part.refused[name]}", "not-supported")
    if name in part.not_yet:
        return Fault(path, "not supported yet", "not-supported")
    hint = f": {part.meant[name]}" if name in part.meant else did_you_mean(name, field_names(part))
    return Fault(path, f"unknown field {name!r}{hint}", "unknown-field")


_ALSO_REAL: Mapping[tuple[str, str], str] = {
    ("resolution", "DYNAMIC_DNS"): "DYNAMIC_DNS",
    ("type", "ExternalName"): "ExternalName",
    ("mode", "ALLOW_ANY_DYNAMIC_DNS"): "ALLOW_ANY_DYNAMIC_DNS",
    ("sessionAffinity", "ClientIP"): "ClientIP",
    ("internalTrafficPolicy", "Local"): "Local",
    ("externalTrafficPolicy", "Local"): "Local",
}
"""Values that Istio or Kubernetes has and hostmesh does not implement yet."""


def _choice(path: Path, value: object, expected: str) -> Fault:
    if isinstance(value, str) and (str(path[-1]), value) in _ALSO_REAL:
        return Fault(path, f"{value}: not supported yet", "not-supported")
    choices = [part.strip().strip("'") for part in expected.replace(" or ", ",").split(",")]
    near = did_you_mean(value, choices) if isinstance(value, str) else ""
    return Fault(path, f"expected one of {', '.join(choices)}, found {found_text(value)}{near}", "value")


_NO_STEPS = frozenset({"[key]", "[value]", "[property]"})
"""What pydantic adds to a path: for the key of a mapping, and for the form of a value that has several."""


def _fault(model: type[Spec], error: ErrorDetails) -> Fault:
    path: Path = tuple(step for step in error["loc"] if step not in _NO_STEPS)
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "hostmesh":
        return Fault(path + tuple(context["at"]), str(context["message"]), str(context["code"]))
    if kind == "extra_forbidden":
        return _unknown(model, path)
    if kind == "missing":
        return Fault(path, f"required field {str(path[-1])!r} is missing", "missing")
    if kind == "literal_error":
        return _choice(path, value, str(context["expected"]))
    if kind in _WANTED:
        return Fault(path, _type_message(kind, value), "type")
    return Fault(path, _limit_message(kind, context, value) or error["msg"], "value")


def faults_of(model: type[Spec], error: ValidationError) -> Iterator[Fault]:
    """Yield the faults of a spec; paths start below it."""
    errors = error.errors(include_url=False)
    parents = {details["loc"][:end] for details in errors for end in range(len(details["loc"]))}
    for details in errors:
        # A list whose items are wrong counts as empty, too: that is no second mistake.
        if details["type"] != "too_short" or details["loc"] not in parents:
            yield _fault(model, details)
