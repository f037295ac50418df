"""Hosts, the addresses they have, and what is true of them now."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from hostmesh_controller.mesh.compiled import compile_host
from hostmesh_controller.mesh.index import NO_HOST
from hostmesh_controller.mesh.records import Host, HostRuntime
from hostmesh_controller.mesh.step import Step
from hostmesh_controller.mesh.table import IndexEdit, Table


def take_hosts(step: Step, runtime: Mapping[str, HostRuntime]) -> None:
    edit: IndexEdit[str, str] = IndexEdit()
    hosts: dict[str, Host | None] = {}
    for key, _, after in step.before_and_after("Host"):
        old, new = step.old.hosts.get(key.name), compile_host(after) if after else None
        hosts[key.name] = new
        step.touched_hosts.add(key.name)
        if old and new and old.locality != new.locality:
            # Its endpoints are where it is.
            step.recheck.update(step.old.workloads_by_host.get(key.name, ()))
        for address in old.addresses if old else ():
            edit.remove(address, key.name)
            step.moved.update(step.old.workloads_by_address.get(address, ()))
        for address in new.addresses if new else ():
            edit.add(address, key.name)
            step.moved.update(step.old.workloads_by_address.get(address, ()))
    step.mesh = replace(
        step.mesh,
        hosts=step.mesh.hosts.changed(hosts),
        hosts_by_address=edit.apply(step.mesh.hosts_by_address),
        runtime=runtime,
    )
    if runtime is not step.old.runtime:
        _take_runtime(step, runtime)


def _take_runtime(step: Step, runtime: Mapping[str, HostRuntime]) -> None:
    for host in hosts_that_differ(step.old.runtime, runtime):
        old, new = step.old.runtime.get(host, NO_HOST), runtime.get(host, NO_HOST)
        if old is new or old == new:
            continue
        moved = step.mesh.settings.reported_locality and old.locality != new.locality
        if old.ipv6 != new.ipv6 or moved or old.updates != new.updates:
            step.touched_hosts.add(host)
        here = step.old.workloads_by_host.get(host, frozenset())
        if moved or _of_all_workloads(old) != _of_all_workloads(new):
            step.recheck.update(here)
        else:
            differ = (old.ready ^ new.ready) | (old.certified ^ new.certified) | (old.healthy ^ new.healthy)
            differ |= {key for key, _ in old.presented ^ new.presented}
            step.recheck.update(key for key in here if key in differ)


def _of_all_workloads(runtime: HostRuntime) -> tuple[object, ...]:
    """Return what is true of every workload on a host, and decides about their endpoints."""
    away = (runtime.silent, runtime.stalled, runtime.withdrawn)
    return runtime.joined, runtime.captured, runtime.expelled, away, runtime.cpus, runtime.free_eighths


def hosts_that_differ(old: Mapping[str, HostRuntime], new: Mapping[str, HostRuntime]) -> Iterable[str]:
    """Return the hosts of which something else may be true now; few of tables that share what did not change."""
    if isinstance(old, Table) and isinstance(new, Table):
        return old.differing(new)
    return old.keys() | new.keys()
