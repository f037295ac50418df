"""What our own annotations say of a WorkloadEntry: its probes, and how much it can take.

Istio has no field for either. A WorkloadGroup gives its members those of its `spec.metadata.annotations`.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from hostmesh_controller.model.documents import read_spec
from hostmesh_controller.model.faults import path_text
from hostmesh_controller.model.probes import NamedProbe, ProbeList
from hostmesh_controller.yaml_nodes import Document, read_yaml

PROBES: Final = "hostmesh.io/probes"
"""YAML: one probe as in a WorkloadGroup, or a list of named ones, of which all must succeed."""
CAPACITY: Final = "hostmesh.io/capacity"
LOAD: Final = "load"
"""Unless the entry has a weight it follows how much of its host's cores is free, as its agent measures it."""
CORES: Final = "cores"
"""Unless the entry has a weight it is the number of cores of its host, as its agent reports it."""


def probes(annotations: Mapping[str, str]) -> tuple[NamedProbe, ...]:
    """Return the probes of a workload; none where the annotation is missing or wrong (`problems` says so)."""
    text = annotations.get(PROBES)
    return () if text is None else _read(text)[0]


def by_cores(annotations: Mapping[str, str]) -> bool:
    """Tell whether the workload's weight follows its host's cores."""
    return annotations.get(CAPACITY) == CORES


def by_load(annotations: Mapping[str, str]) -> bool:
    """Tell whether the workload's weight follows how busy its host is."""
    return annotations.get(CAPACITY) == LOAD


def problems(annotations: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what is wrong: the annotation, and the message."""
    found = [(PROBES, message) for message in (_read(annotations[PROBES])[1] if PROBES in annotations else ())]
    capacity = annotations.get(CAPACITY, CORES)
    if capacity not in {CORES, LOAD}:
        known = f"{CORES!r} and {LOAD!r} are known"
        found.append((CAPACITY, f"{capacity!r}: of capacities {known}; or give the entry a weight"))
    return found


@lru_cache(4096)
def _read(text: str) -> tuple[tuple[NamedProbe, ...], tuple[str, ...]]:
    documents = list(read_yaml(text))
    wrong = tuple(f"line {each.line}: {each.message}" for each in documents if not isinstance(each, Document))
    values = [each.value for each in documents if isinstance(each, Document)]
    if wrong or len(values) != 1:
        return (), wrong or ("expected one probe, or one list of them",)
    (value,) = values
    spec, faults = read_spec({"probes": value if isinstance(value, list) else [value]}, ProbeList)
    if spec is None:
        beyond = 1 if isinstance(value, list) else 2
        return (), tuple(f"{path_text(each.path[beyond:])}: {each.message}".lstrip(": ") for each in faults)
    return spec.probes, ()
