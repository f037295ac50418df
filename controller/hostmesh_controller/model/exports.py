"""exportTo: what may be in it, and to which namespaces an object is visible."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from pydantic import AfterValidator, ValidationInfo

from hostmesh_controller.model.domains import is_label
from hostmesh_controller.model.schema import fault

ANNOTATION: Final = "networking.istio.io/exportTo"
"""It says for a Service what `exportTo` says for others."""
OWN: Final = "."
EVERY: Final = "*"
NONE: Final = "~"


def export_to(values: Sequence[str], namespace: str) -> frozenset[str]:
    """Return the namespaces that may see an object of a namespace; `*` stands for all, nothing is `*`, `~` nobody."""
    if not values or EVERY in values:
        return frozenset({EVERY})
    return frozenset(namespace if value == OWN else value for value in values if value != NONE)


def annotated(annotations: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a Service's annotations say about whom it is shown to."""
    return tuple(part.strip() for part in annotations.get(ANNOTATION, "").split(",") if part.strip())


def _own_namespace(info: ValidationInfo) -> str | None:
    return info.context.get("namespace") if isinstance(info.context, dict) else None


def _check(values: tuple[str, ...], info: ValidationInfo, special: Sequence[str]) -> tuple[str, ...]:
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value not in special and not is_label(value):
            raise fault("export-to", f"{value!r}: {_choices(special)} or the name of a namespace", index)
        namespace = _own_namespace(info) or OWN if value == OWN else value
        if namespace in seen:
            also = " ('.' is the object's own namespace)" if OWN in values and value not in values[:index] else ""
            raise fault("export-to", f"{value!r} is there twice{also}", index)
        seen.add(namespace)
    for value in (EVERY, NONE):
        if value in values and len(values) > 1:
            raise fault("export-to", f"{value!r} stands alone: remove it or the others", values.index(value))
    return values


def _choices(special: Sequence[str]) -> str:
    meaning = {OWN: "'.' (the own namespace)", EVERY: "'*' (all)", NONE: "'~' (nobody)"}
    return "expected " + ", ".join(meaning[each] for each in special)


def _of_rules(values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    if NONE in values:
        raise fault("export-to", "'~' (nobody) is for ServiceEntries only; delete the object", values.index(NONE))
    return _check(values, info, (OWN, EVERY))


def _of_services(values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    return _check(values, info, (OWN, EVERY, NONE))


def only_own_namespace(values: Sequence[str], info: ValidationInfo) -> bool:
    """Whether an exportTo names nothing beyond the object's own namespace."""
    return all(value in {OWN, _own_namespace(info)} for value in values)


RuleExportTo = Annotated[tuple[str, ...], AfterValidator(_of_rules)]
"""Of a VirtualService or DestinationRule."""
ServiceExportTo = Annotated[tuple[str, ...], AfterValidator(_of_services)]
"""Of a ServiceEntry."""
