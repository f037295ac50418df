"""Which CapturePolicy holds for a host, and what it leaves of the host's ports."""

from collections.abc import Iterable
from typing import Final

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.mesh.scopes import is_for
from hostmesh_controller.mesh.viewer import faces_of
from hostmesh_controller.model.capture_policy import CapturePolicySpec, InboundCapture
from hostmesh_controller.model.objects import ApiObject

KIND: Final = "CapturePolicy"


def policy_of(mesh: Mesh, host: Host) -> ApiObject | None:
    """Return the policy that holds for a host, None for none.

    One with labels before one without, one of the host's own namespaces before one of the root namespace, the oldest.
    """
    if not mesh.keys_by_kind.get(KIND):
        return None
    faces = faces_of(mesh, host)
    root = mesh.settings.root_namespace
    found = [each for each in mesh.of_kind(KIND) if is_for(mesh, each, faces)]
    # Of equal ones the first is taken: they are sorted by age.
    return min(found, default=None, key=lambda each: precedence(policy_spec(each), each.key.namespace, root))


def spec_of(mesh: Mesh, host: Host) -> CapturePolicySpec | None:
    item = policy_of(mesh, host)
    return None if item is None else policy_spec(item)


def is_transparent(mesh: Mesh, host: Host) -> bool:
    """Tell whether programs of a host are to see the address of who calls."""
    spec = spec_of(mesh, host)
    return spec is not None and spec.inbound.mode == "tproxy"


def policy_spec(item: ApiObject) -> CapturePolicySpec:
    assert isinstance(item.spec, CapturePolicySpec)
    return item.spec


def precedence(spec: CapturePolicySpec, namespace: str, root_namespace: str) -> tuple[bool, bool]:
    """Return what decides between two policies before their age does: the lesser goes first."""
    has_labels = spec.selector is not None and bool(spec.selector.match_labels)
    return not has_labels, namespace == root_namespace


def left_out(inbound: InboundCapture, ports: Iterable[int]) -> frozenset[int]:
    """Return those of a host's ports on which no connection is captured at all; callers are told so."""
    return frozenset(port for port in ports if not _may_be_captured(inbound, port))


def _may_be_captured(inbound: InboundCapture, port: int) -> bool:
    if any(port in each.port_numbers and not each.cidrs and not each.interfaces for each in inbound.exclude):
        return False
    return not inbound.include or any(not each.ports or port in each.port_numbers for each in inbound.include)
