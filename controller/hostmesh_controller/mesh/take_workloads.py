"""Workloads, of WorkloadEntries and inside ServiceEntries, and the hosts they are on."""

from dataclasses import replace

from hostmesh_controller.mesh.adoption import Adoption
from hostmesh_controller.mesh.compiled import compile_inline_workloads, compile_workload
from hostmesh_controller.mesh.records import Workload, WorkloadKey
from hostmesh_controller.mesh.selection import label_keys
from hostmesh_controller.mesh.step import Step
from hostmesh_controller.mesh.table import IndexEdit
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.workloads import Probe, WorkloadGroupSpec


def take_workloads(step: Step) -> None:
    placed: dict[WorkloadKey, Workload | None] = {}
    for key, _, after in step.before_and_after("WorkloadEntry"):
        placed[WorkloadKey(key.namespace, key.name)] = compile_workload(after) if after else None
    for key, _, after in step.before_and_after("ServiceEntry"):
        placed |= dict.fromkeys(step.old.workloads_by_owner.get(key, ()))
        if after is not None:
            placed |= {workload.key: workload for workload in compile_inline_workloads(after)}
    for moved in step.moved:
        placed.setdefault(moved, step.old.workloads.get(moved))
    adoption = Adoption(step.old, placed)
    for workload_key, workload in placed.items():
        new = adoption.adopted(_on_its_host(step, workload)) if workload else None
        if new != step.old.workloads.get(workload_key):
            step.workloads[workload_key] = new
    _index_workloads(step)
    _take_probes(step)


def _take_probes(step: Step) -> None:
    """Take note of groups whose probe changed: their members' agents have to know, and health may count anew."""
    for key, before, after in step.before_and_after("WorkloadGroup"):
        if _probe(before) == _probe(after):
            continue
        for mesh in (step.old, step.mesh):
            for member in mesh.workloads_by_group.get(key, ()):
                step.recheck.add(member)
                step.touched_hosts.update(filter(None, (mesh.workloads[member].host,)))


def _probe(group: ApiObject | None) -> Probe | None:
    return group.spec.probe if group is not None and isinstance(group.spec, WorkloadGroupSpec) else None


def _on_its_host(step: Step, workload: Workload) -> Workload:
    # Two hosts with one address is a mistake of the user; whoever comes first by name has the workload.
    return replace(workload, host=min(step.mesh.hosts_by_address.get(workload.address, ()), default=None))


def _index_workloads(step: Step) -> None:
    by_address: IndexEdit[str, WorkloadKey] = IndexEdit()
    by_host: IndexEdit[str, WorkloadKey] = IndexEdit()
    by_label: IndexEdit[tuple[str, str, str], WorkloadKey] = IndexEdit()
    by_group: IndexEdit[ObjectKey, WorkloadKey] = IndexEdit()
    by_owner: IndexEdit[ObjectKey, WorkloadKey] = IndexEdit()
    for key, new in step.workloads.items():
        for workload, gone in ((step.old.workloads.get(key), True), (new, False)):
            if workload is None:
                continue
            by_address.note(workload.address, key, gone=gone)
            if workload.host is not None:
                by_host.note(workload.host, key, gone=gone)
                step.touched_hosts.add(workload.host)
            if workload.group is not None:
                by_group.note(workload.group, key, gone=gone)
            if workload.owner is not None:
                by_owner.note(workload.owner, key, gone=gone)
                continue
            for label_key in label_keys(key.namespace, workload.labels):
                by_label.note(label_key, key, gone=gone)
    step.mesh = replace(
        step.mesh,
        workloads=step.mesh.workloads.changed(step.workloads),
        workloads_by_address=by_address.apply(step.mesh.workloads_by_address),
        workloads_by_host=by_host.apply(step.mesh.workloads_by_host),
        workloads_by_label=by_label.apply(step.mesh.workloads_by_label),
        workloads_by_group=by_group.apply(step.mesh.workloads_by_group),
        workloads_by_owner=by_owner.apply(step.mesh.workloads_by_owner),
    )
