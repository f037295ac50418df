"""Whom all must refuse: enrolments that were denied, and where their hosts are."""

from collections.abc import Mapping
from dataclasses import replace

from hostmesh_controller.mesh.index import NO_HOST, Mesh
from hostmesh_controller.mesh.records import Expulsions, HostRuntime
from hostmesh_controller.mesh.step import EXPULSIONS, Step
from hostmesh_controller.mesh.take_hosts import hosts_that_differ


def take_expulsions(step: Step) -> None:
    denied: dict[str, frozenset[str] | None] = {}
    out = set(step.old.expulsions.hosts)
    old, new = step.old.runtime, step.mesh.runtime
    for host in hosts_that_differ(old, new) if new is not old else ():
        now = new.get(host, NO_HOST)
        if now.denied != old.get(host, NO_HOST).denied:
            denied[host] = now.denied or None
        (out.add if now.expelled else out.discard)(host)
    if not denied and not out and not step.old.expulsions.hosts:
        return
    table = step.mesh.denied.changed(denied)
    enrolments = tuple(sorted(each for ids in table.values() for each in ids))
    before = step.old.expulsions
    after = Expulsions(
        hosts=frozenset(out),
        enrolments=before.enrolments if enrolments == before.enrolments else enrolments,
        addresses=_addresses(step.mesh, out, new),
    )
    if denied or after != before:
        step.touched_services.add(EXPULSIONS)
    if after == before:
        after = before
    step.mesh = replace(step.mesh, denied=table, expulsions=after)


def _addresses(mesh: Mesh, out: set[str], runtime: Mapping[str, HostRuntime]) -> tuple[str, ...]:
    """Return the addresses of hosts that are out, and of nobody else."""
    found = {address for name in out if name in mesh.hosts for address in mesh.hosts[name].addresses}
    return tuple(
        sorted(
            address
            for address in found
            if all(runtime.get(host, NO_HOST).expelled for host in mesh.hosts_by_address.get(address, ()))
        )
    )
