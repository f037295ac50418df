"""What every object has, whatever its kind: a key, metadata, a spec, and the place it was read from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from hostmesh_controller.model.schema import Spec


class ObjectKey(NamedTuple):
    """The name of one object: `namespace` is "" for kinds that have none (Namespace, Host)."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


Path = tuple[str | int, ...]
"""Steps from the document's root to a field: ("spec", "http", 0, "match")."""


class Place(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The file an object was read from, and where in it each field stands."""

    file: str
    places: Mapping[Path, Place]

    def place(self, path: Path) -> Place:
        """Return where `path` stands, or its nearest parent that was written down."""
        for end in range(len(path), -1, -1):
            found = self.places.get(path[:end])
            if found is not None:
                return found
        return Place(1, 1)


@dataclass(frozen=True, slots=True)
class Metadata:
    """The parts of Kubernetes' metadata that mean something here.

    `uid` and `creation_timestamp` are the store's facts: None until the object was stored.
    """

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    uid: str | None = None
    creation_timestamp: datetime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the user's part: no uid, no creation time, nothing that is empty."""
        written: dict[str, Any] = {"name": self.name}
        if self.namespace:
            written["namespace"] = self.namespace
        if self.labels:
            written["labels"] = dict(self.labels)
        if self.annotations:
            written["annotations"] = dict(self.annotations)
        return written


@dataclass(frozen=True, slots=True)
class ApiObject:
    """One object of the configuration API.

    `spec` is the frozen model of the kind (`KINDS[key.kind].spec_model`). `origin` is known only for what was read
    from a file and takes no part in equality.
    """

    key: ObjectKey
    api_version: str
    metadata: Metadata
    spec: Spec
    origin: Origin | None = field(default=None, compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the user's form, ready for JSON: what was written, without what the store adds."""
        document: dict[str, Any] = {
            "apiVersion": self.api_version,
            "kind": self.key.kind,
            "metadata": self.metadata.to_dict(),
        }
        spec = self.spec.to_dict()
        if self.spec.at_top:
            document |= spec
        elif spec:
            document["spec"] = spec
        return document
