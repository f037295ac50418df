"""Who is behind the address of a caller that speaks plaintext, and why it does, as far as the mesh can tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hostmesh_controller.mesh.destination_rules import destination_rules_for, spec_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host, Service, Workload
from hostmesh_controller.mesh.selection import endpoint_port, services_of
from hostmesh_controller.mesh.sidecars import captures_all
from hostmesh_controller.model.destination_rule import TrafficPolicy
from hostmesh_controller.names import canonical_address
from hostmesh_controller.observed import NOT_TOLD_APART


class Reason(StrEnum):
    """Why a caller speaks plaintext."""

    UNKNOWN = "not-told-apart"
    OUTSIDE = "outside-the-mesh"
    SAME_HOST = "same-host"
    NOT_JOINED = "not-joined"
    RULE = "destination-rule"
    NOT_SERVED = "not-served"
    NOT_CAPTURED = "not-captured"


@dataclass(frozen=True, slots=True)
class Whence:
    """`host` is the mesh's host of that address, None if there is none; `workloads` are "namespace/name"."""

    host: str | None
    workloads: tuple[str, ...]
    reason: Reason
    why: str


@dataclass(frozen=True, slots=True)
class Addresses:
    """Whose the mesh's addresses are: hosts', and those of workloads on machines that are no hosts."""

    hosts: Mapping[str, str]
    workloads: Mapping[str, tuple[str, ...]]


def addresses_of(mesh: Mesh) -> Addresses:
    hosts = {
        canonical_address(address) or address: host.name
        for _, host in sorted(mesh.hosts.items())
        for address in host.addresses
    }
    outside: dict[str, tuple[str, ...]] = {}
    for key, workload in sorted(mesh.workloads.items()):
        if workload.host is None and workload.owner is None:
            outside[workload.address] = (*outside.get(workload.address, ()), "/".join(key))
    return Addresses(hosts, outside)


def whence(mesh: Mesh, known: Addresses, caller: str, callee: Workload, port: int) -> Whence:
    """Tell who calls a workload's port from an address without the mesh's mutual TLS."""
    if caller == NOT_TOLD_APART:
        return Whence(None, (), Reason.UNKNOWN, "more callers than can be told apart")
    name = known.hosts.get(caller)
    if name is None:
        found = known.workloads.get(caller, ())
        why = "its machine is no Host of the mesh: register it" if found else "outside the mesh"
        return Whence(None, found, Reason.OUTSIDE, why)
    workloads = tuple("/".join(each.key) for each in mesh.workloads_of(name))
    reason, why = _why(mesh, mesh.hosts[name], callee, port)
    return Whence(name, workloads, reason, why)


def _why(mesh: Mesh, host: Host, callee: Workload, port: int) -> tuple[Reason, str]:
    if host.name == callee.host:
        return Reason.SAME_HOST, "a program of the same host, which calls by the host's own address"
    if not mesh.runtime_of(host.name).joined:
        return Reason.NOT_JOINED, "its agent has not joined the mesh"
    rule = _rule(mesh, host, callee, port)
    if rule:
        return Reason.RULE, f"{rule} turns mutual TLS off for its calls"
    if callee.host is None or not mesh.runtime_of(callee.host).serves(callee.key, port):
        return Reason.NOT_SERVED, "mutual TLS is not served on the port yet: see `hostmesh proxy status` of its host"
    if captures_all(mesh, host):
        return Reason.NOT_CAPTURED, "the program is left out of capture, or capture was off"
    return (
        Reason.NOT_CAPTURED,
        "the program dials the workload's own address, which is not captured: let it call the service by name, or set "
        "the Host's capture to all",
    )


def _rule(mesh: Mesh, host: Host, callee: Workload, port: int) -> str:
    """Return the DestinationRule that makes the host call the port in plaintext, "" for none."""
    viewer = mesh.viewer_of(host.name)
    for service in services_of(mesh, callee):
        numbers = [each.number for each in service.ports if endpoint_port(each, callee.ports) == port]
        for item in destination_rules_for(mesh, service, viewer):
            policy = spec_of(item).traffic_policy
            if policy is not None and any(_is_off(policy, number) for number in numbers):
                return f"DestinationRule {item.key.namespace}/{item.key.name}"
    return ""


def _is_off(policy: TrafficPolicy, port: int) -> bool:
    of_port = next((each for each in policy.port_level_settings if each.port.number == port), None)
    tls = policy.tls if of_port is None else of_port.tls
    return tls is not None and tls.mode == "DISABLE"


def service_behind(mesh: Mesh, workload: Workload) -> Service | None:
    """Return the oldest service that selects a workload by its labels."""
    return next((each for each in services_of(mesh, workload) if each.selector), None)
