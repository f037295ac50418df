"""Istio's mesh configuration as a file: the settings of a MeshConfig at the top level, with no object around them."""

from collections.abc import Mapping
from typing import Final

from hostmesh_controller.load import STDIN, Problem
from hostmesh_controller.model import Fault, Origin, path_text
from hostmesh_controller.model.documents import read_spec
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.yaml_nodes import DEFAULT_LIMITS, Document, Limits, YamlProblem, read_yaml

_NESTED: Final = ("meshConfig", "mesh", "spec", "data")
"""Where IstioOperator, Helm's values, an object and a ConfigMap have the settings."""


def read_mesh_file(
    text: str | bytes, source: str, *, limits: Limits = DEFAULT_LIMITS
) -> tuple[MeshConfigSpec | None, list[Problem]]:
    """Return the settings, or None and all that is wrong with the file. An empty file sets nothing.

    Args:
        text: YAML or JSON, one document.
        source: what problems call it: a file's name; "-" becomes "<stdin>".
        limits: how much may be read.
    """
    file = STDIN if source == "-" else source
    documents: list[Document] = []
    problems: list[Problem] = []
    for found in read_yaml(text, limits):
        if isinstance(found, YamlProblem):
            problems.append(Problem(file, found.line, found.column, "", found.message, found.code))
        else:
            documents.append(found)
    if problems:
        return None, problems
    if not documents:
        return MeshConfigSpec(), []
    if len(documents) > 1:
        line, column = Origin(file, documents[1].places).place(())
        return None, [Problem(file, line, column, "", "a mesh file is one document; remove this one", "shape")]
    spec, faults = _read(documents[0].value)
    origin = Origin(file, documents[0].places)
    problems = [_problem(origin, fault) for fault in faults]
    return spec, sorted(problems, key=lambda problem: (problem.line, problem.column))


def _read(value: object) -> tuple[MeshConfigSpec | None, list[Fault]]:
    if isinstance(value, Mapping):
        if "kind" in value:
            message = "this is an object: write the settings at the top level of the file, or `hostmesh apply` it"
            return None, [Fault(("kind",), message, "shape")]
        nested = [name for name in _NESTED if name in value]
        if nested:
            message = f"write the settings at the top level of the file, not under {nested[0]!r}"
            return None, [Fault((nested[0],), message, "shape")]
    return read_spec(value, MeshConfigSpec)


def _problem(origin: Origin, fault: Fault) -> Problem:
    line, column = origin.place(fault.path)
    return Problem(origin.file, line, column, path_text(fault.path), fault.message, fault.code)
