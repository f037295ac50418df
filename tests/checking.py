"""Documents, and what `hostmesh validate` and `apply` find in them."""

from collections.abc import Iterable

from hostmesh_controller.checks.world import World, world_of
from hostmesh_controller.load import Problem, load_documents
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.validate import validate, validate_deletion

REVIEWS = """\
apiVersion: v1
kind: Service
metadata: {name: reviews}
spec: {selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews}
spec: {host: reviews, subsets: [{name: v1, labels: {version: v1}}]}
"""
"""A service with a subset."""


def read(text: str, file: str = "f.yaml") -> list[ApiObject]:
    objects, problems = load_documents(text, file)
    assert problems == []
    return objects


def world(text: str) -> World:
    """The world of documents that are stored."""
    return world_of(read(text, "stored.yaml"))


def problems(text: str, existing: str = "") -> list[Problem]:
    """What is found in documents that are applied where others are stored."""
    return validate(read(text), world(existing))


def findings(text: str, existing: str = "") -> list[str]:
    """The same as text."""
    return [str(problem) for problem in problems(text, existing)]


def codes(text: str, existing: str = "") -> list[str]:
    """The same as codes with their places: `IST0101 unknown-host spec.host`."""
    return [_code(problem) for problem in problems(text, existing)]


def losses(keys: Iterable[ObjectKey], existing: str) -> list[str]:
    """What is found when objects are deleted."""
    return [str(problem) for problem in validate_deletion(keys, world(existing))]


def _code(problem: Problem) -> str:
    return " ".join(part for part in (problem.istio_code, problem.code, problem.path) if part)


def istio(kind: str, name: str, spec: str, namespace: str = "default") -> str:
    """One document of Istio's networking API; `spec` is a flow mapping without its braces."""
    return (
        f"apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        f"spec: {{{spec}}}\n---\n"
    )


def service(name: str, ports: str = "{name: http, port: 80}", namespace: str = "default", rest: str = "") -> str:
    """A Service that selects by its name."""
    return (
        f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}{rest}}}\n"
        f"spec: {{selector: {{app: {name}}}, ports: [{ports}]}}\n---\n"
    )


def workload(name: str, labels: str, address: str = "10.0.0.1", namespace: str = "default") -> str:
    """A WorkloadEntry with labels, written as a flow mapping without its braces."""
    return istio("WorkloadEntry", name, f"address: {address}, labels: {{{labels}}}", namespace)
