"""Which workloads stand behind which services."""

from collections.abc import Mapping
from dataclasses import replace

from hostmesh_controller.mesh.destination_rules import may_be_dialled
from hostmesh_controller.mesh.index import NO_ENDPOINTS
from hostmesh_controller.mesh.records import Endpoints, Member, Resolution, Service, ServiceId, WorkloadKey
from hostmesh_controller.mesh.selection import member, services_of, workloads_behind
from hostmesh_controller.mesh.step import Step


def take_endpoints(step: Step) -> None:
    gone: dict[ServiceId, set[WorkloadKey]] = {}
    there: dict[ServiceId, set[WorkloadKey]] = {}
    for key in step.workloads.keys() | step.recheck:
        for mesh, affected in ((step.old, gone), (step.mesh, there)):
            workload = mesh.workloads.get(key)
            for behind in services_of(mesh, workload) if workload else ():
                affected.setdefault(behind.id, set()).add(key)
    endpoints: dict[ServiceId, Endpoints | None] = {}
    for item, service in step.services.items():
        endpoints[item] = _all_endpoints(step, service) if service else None
    for item in gone.keys() | there.keys():
        current = step.mesh.services.get(item)
        if item not in endpoints and current is not None:
            endpoints[item] = _changed_endpoints(step, current, gone.get(item, set()), there.get(item, set()))
    for item, new in endpoints.items():
        _touch_endpoints(step, item, new)
    step.mesh = replace(step.mesh, endpoints=step.mesh.endpoints.changed(endpoints))


def _all_endpoints(step: Step, service: Service) -> Endpoints:
    keys = sorted(workloads_behind(step.mesh, service))
    return _kept(
        step.old.endpoints.get(service.id, NO_ENDPOINTS),
        {key: member(step.mesh, service, step.mesh.workloads[key]) for key in keys},
    )


def _changed_endpoints(step: Step, service: Service, gone: set[WorkloadKey], there: set[WorkloadKey]) -> Endpoints:
    """Return the endpoints without the workloads of `gone`, and with those of `there` as they are now."""
    old = step.old.endpoints.get(service.id, NO_ENDPOINTS)
    members = dict(old.members)
    for key in gone - there:
        members.pop(key, None)
    for key in there:
        new = member(step.mesh, service, step.mesh.workloads[key])
        if new != members.get(key):
            members[key] = new
    return _kept(old, members)


def _touch_endpoints(step: Step, item: ServiceId, new: Endpoints | None) -> None:
    before, after = step.old.endpoints.get(item) or NO_ENDPOINTS, new or NO_ENDPOINTS
    if item in step.services:
        # What a service says of its ports is what its workloads' hosts listen for.
        for key in before.members.keys() | after.members.keys():
            found = (mesh.workloads.get(key) for mesh in (step.old, step.mesh))
            step.touched_hosts.update(workload.host for workload in found if workload and workload.host)
    if after is before:
        return
    service = step.mesh.services.get(item) or step.old.services[item]
    in_the_cluster = service.resolution in {Resolution.DNS, Resolution.DNS_ROUND_ROBIN}
    # How endpoints are called that callers dial themselves is the cluster's, too.
    if in_the_cluster or may_be_dialled(step.old, item.hostname) or before.identities != after.identities:
        step.touched_services.add(item.hostname)
    step.touched_endpoints.add(item.hostname)


def _kept(old: Endpoints, members: Mapping[WorkloadKey, Member]) -> Endpoints:
    """Return the endpoints of these members; what is equal to the old ones is the same object."""
    if members == old.members:
        return old
    if members.keys() != old.members.keys():
        members = {key: members[key] for key in sorted(members)}
    identities = tuple(sorted({each for item in members.values() for each in item.identities}))
    return Endpoints(members, old.identities if identities == old.identities else identities)
