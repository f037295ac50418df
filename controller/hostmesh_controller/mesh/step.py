"""One update under way: what every step of it reads and leaves for the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service, ServiceId, Touched, Workload, WorkloadKey
from hostmesh_controller.model.objects import ApiObject, ObjectKey

BLOCKS: Final = "blocks"
"""The dependency name of everything that is found by an address inside of a block, or not found there."""

EXPULSIONS: Final = "expulsions"
"""The dependency name of what says who was expelled."""

BY_NAME: Final = "by-name"
"""The dependency name of every name that nobody has: what happens to it changes with services that have no address."""


@dataclass(slots=True)
class Step:
    """`mesh` is the new revision as far as it is made, `old` the one before, `changed` the objects that differ."""

    old: Mesh
    changed: Mapping[ObjectKey, ApiObject | None]
    mesh: Mesh
    moved: set[WorkloadKey] = field(default_factory=set)
    """To be placed on a host again."""
    workloads: dict[WorkloadKey, Workload | None] = field(default_factory=dict)
    """Records that are different now."""
    recheck: set[WorkloadKey] = field(default_factory=set)
    """Endpoints may differ though the record does not."""
    services: dict[ServiceId, Service | None] = field(default_factory=dict)
    """Records that are different now."""
    everything: bool = False
    touched_hosts: set[str] = field(default_factory=set)
    touched_callers: set[str] = field(default_factory=set)
    touched_services: set[str] = field(default_factory=set)
    touched_endpoints: set[str] = field(default_factory=set)

    def touched(self) -> Touched:
        return Touched(
            frozenset(self.touched_hosts),
            frozenset(self.touched_services),
            frozenset(self.touched_endpoints),
            self.everything,
            frozenset(self.touched_callers - self.touched_hosts),
        )

    def before_and_after(self, *kinds: str) -> list[tuple[ObjectKey, ApiObject | None, ApiObject | None]]:
        return [(key, self.old.objects.get(key), new) for key, new in self.changed.items() if key.kind in kinds]

    def has_changed(self, *kinds: str) -> bool:
        return any(key.kind in kinds for key in self.changed)


def begin(mesh: Mesh, changed: Mapping[ObjectKey, ApiObject | None]) -> Step:
    """Return the update of `mesh`; what is stored again as it was changes nothing."""
    return Step(mesh, {key: new for key, new in changed.items() if mesh.objects.get(key) != new}, mesh)


def host_dependency(host: str) -> str:
    """Return the dependency name of a host's own view: it changes when its viewer does."""
    return f"host:{host}"


def object_dependency(key: ObjectKey) -> str:
    """Return the dependency name of one configuration object, for resources that are made from it."""
    return f"object:{key.kind}/{key.namespace}/{key.name}"
