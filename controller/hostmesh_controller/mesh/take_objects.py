"""The objects themselves, and an index of the kinds that are few."""

from dataclasses import replace
from typing import Final

from hostmesh_controller.mesh.step import Step
from hostmesh_controller.mesh.table import IndexEdit
from hostmesh_controller.model.objects import ObjectKey

MANY: Final = frozenset(
    {"DestinationRule", "Host", "Namespace", "Service", "ServiceAccount", "ServiceEntry"}
    | {"VirtualService", "WorkloadEntry"}
)
"""Kinds of which a mesh can have thousands: they have indexes of their own, by what they are looked up by."""


def take_objects(step: Step) -> None:
    edit: IndexEdit[str, ObjectKey] = IndexEdit()
    for key, new in step.changed.items():
        if key.kind not in MANY:
            edit.note(key.kind, key, gone=new is None)
    step.mesh = replace(
        step.mesh,
        objects=step.mesh.objects.changed(step.changed),
        keys_by_kind=edit.apply(step.mesh.keys_by_kind),
    )
