"""PeerAuthentication: which mutual TLS mode holds for a workload's port."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hostmesh_controller.mesh.compiled import order_of
from hostmesh_controller.mesh.records import Mode, Order, Workload
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.model.security import Mtls, PeerAuthenticationSpec

DEFAULT_MODE: Final = Mode.PERMISSIVE


@dataclass(frozen=True, slots=True)
class PeerPolicy:
    """One PeerAuthentication; a mode of None inherits. `labels` None: it is for the whole namespace (or mesh)."""

    namespace: str
    order: Order
    labels: Mapping[str, str] | None
    mode: Mode | None
    ports: Mapping[int, Mode | None]


def compile_policy(item: ApiObject) -> PeerPolicy:
    spec = item.spec
    assert isinstance(spec, PeerAuthenticationSpec)
    labels = dict(spec.selector.match_labels) if spec.selector else {}
    return PeerPolicy(
        namespace=item.key.namespace,
        order=order_of(item),
        labels=labels or None,
        mode=_mode(spec.mtls),
        ports={port: _mode(mtls) for port, mtls in (spec.port_level_mtls or {}).items()},
    )


def _mode(mtls: Mtls | None) -> Mode | None:
    return None if mtls is None or mtls.mode == "UNSET" else Mode(mtls.mode)


def mode_of(policies: Mapping[str, tuple[PeerPolicy, ...]], root_namespace: str, workload: Workload, port: int) -> Mode:
    """Return the mode of a workload's own port: port, workload, namespace, mesh, in this order; the oldest wins.

    Args:
        policies: of each namespace, oldest first.
        root_namespace: where the policy of the whole mesh lives.
        workload: whose port it is.
        port: the number on which the workload listens.
    """
    own = policies.get(workload.key.namespace, ())
    selecting = next((policy for policy in own if policy.labels and selects(policy.labels, workload.labels)), None)
    if selecting is not None:
        mode = selecting.ports.get(port) or selecting.mode
        if mode is not None:
            return mode
    for candidates in (own, policies.get(root_namespace, ())):
        wide = next((policy for policy in candidates if policy.labels is None), None)
        if wide is not None and wide.mode is not None:
            return wide.mode
    return DEFAULT_MODE


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def by_age(policies: Iterable[PeerPolicy]) -> tuple[PeerPolicy, ...]:
    return tuple(sorted(policies, key=lambda policy: policy.order))
