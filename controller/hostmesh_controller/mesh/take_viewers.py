"""What each host sees the mesh as, and which hosts a change of what is visible concerns."""

from dataclasses import replace
from typing import Final

from hostmesh_controller.mesh.compiled import EVERYWHERE
from hostmesh_controller.mesh.destination_rules import label_keys
from hostmesh_controller.mesh.scopes import patches_of, sidecar_of
from hostmesh_controller.mesh.step import Step, host_dependency
from hostmesh_controller.mesh.viewer import Viewer, faces_of, locality_of, namespace_of

SELECTING: Final = ("Sidecar", "EnvoyFilter")
"""Kinds that choose the hosts for which they hold."""


def take_viewers(step: Step) -> None:
    of_the_mesh = label_keys(step.mesh.config.locality_lb_setting)
    if step.mesh.caller_labels is not step.old.caller_labels or not of_the_mesh <= step.mesh.labels_in_use:
        keys = of_the_mesh.union(*step.mesh.caller_labels.values())
        if keys != step.mesh.labels_in_use:
            step.mesh = replace(step.mesh, labels_in_use=keys)
    if step.mesh.labels_in_use is not step.old.labels_in_use or step.has_changed(*SELECTING):
        concerned = set(step.mesh.hosts)
    else:
        concerned = {name for name in step.touched_hosts if name in step.mesh.hosts}
    viewers: dict[str, Viewer | None] = dict.fromkeys(
        step.old.hosts.keys() & step.touched_hosts - step.mesh.hosts.keys()
    )
    for name in concerned:
        viewer = _viewer(step, name)
        if viewer != step.old.viewers.get(name):
            viewers[name] = viewer
    for name in viewers:
        step.touched_services.add(host_dependency(name))
        step.touched_hosts.add(name)
    step.mesh = replace(step.mesh, viewers=step.mesh.viewers.changed(viewers))
    _touch_holders(step)
    _touch_hosts_that_see(step)


def _viewer(step: Step, name: str) -> Viewer:
    mesh = step.mesh
    host = mesh.hosts[name]
    faces = faces_of(mesh, host)
    labels = {frozenset((key, face.labels[key]) for key in mesh.labels_in_use & face.labels.keys()) for face in faces}
    viewer = Viewer(
        namespace=namespace_of(mesh, host),
        labels=tuple(sorted(labels - {frozenset()}, key=sorted)),
        locality=locality_of(mesh, host),
        sidecar=sidecar_of(mesh, faces),
        patches=patches_of(mesh, faces),
    )
    return mesh.memo.get(("viewer", viewer), (), lambda: viewer)


def _touch_holders(step: Step) -> None:
    """Touch the hosts for which a Sidecar or an EnvoyFilter holds whose content is different now."""
    changed = {key for key in step.changed if key.kind in SELECTING}
    if not changed:
        return
    for name, viewer in step.mesh.viewers.items():
        if viewer.sidecar in changed or changed.intersection(viewer.patches):
            step.touched_hosts.add(name)
            step.touched_services.add(host_dependency(name))


def _touch_hosts_that_see(step: Step) -> None:
    # A service adds a name to the DNS listener and a port or an address to others, wherever it is visible.
    seen: set[str] = set()
    for item, new in step.services.items():
        for service in (step.old.services.get(item), new):
            seen |= service.export_to if service else set()
    if not seen:
        return
    for mesh in (step.old, step.mesh):
        viewers = mesh.viewers
        step.touched_callers.update(
            viewers if seen & EVERYWHERE else (host for host, each in viewers.items() if each.namespace in seen)
        )
