"""DestinationRule: which traffic policy holds for a port and a subset, merged as Istio merges."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hostmesh_controller.mesh.rules import destination_rule_spec
from hostmesh_controller.model.destination_rule import (
    ClientTls,
    ConnectionPool,
    LoadBalancer,
    OutlierDetection,
    PortPolicy,
    Subset,
    TrafficPolicy,
)
from hostmesh_controller.model.objects import ApiObject


@dataclass(frozen=True, slots=True)
class Policy:
    """How to talk to one port of a service or subset. None is Istio's default."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None


NO_POLICY = Policy()


def subset_labels(rules: Iterable[ApiObject], name: str) -> Mapping[str, str] | None:
    """Return the labels of a subset ("" is all of the service), or None if no rule defines it."""
    if not name:
        return {}
    subset = _subset(rules, name)
    return subset.labels if subset else None


def policy_for(rules: Iterable[ApiObject], subset: str, port: int) -> Policy:
    """Return the policy of a port: the subset's parts over the service's; a port's own replace all of them.

    Args:
        rules: the DestinationRules that hold, oldest first. The oldest with a policy for the whole service has it.
        subset: its name, or "".
        port: the service's port.
    """
    rules = tuple(rules)
    policies = (destination_rule_spec(rule).traffic_policy for rule in rules)
    result = _of_port(NO_POLICY, next((policy for policy in policies if policy is not None), None), port)
    found = _subset(rules, subset) if subset else None
    return _of_port(result, found.traffic_policy if found else None, port)


def _subset(rules: Iterable[ApiObject], name: str) -> Subset | None:
    subsets = (subset for rule in rules for subset in destination_rule_spec(rule).subsets)
    return next((subset for subset in subsets if subset.name == name), None)


def _of_port(base: Policy, over: TrafficPolicy | None, port: int) -> Policy:
    if over is None:
        return base
    for own in over.port_level_settings:
        if own.port.number == port:
            return _parts(own)
    parts = _parts(over)
    return Policy(
        parts.load_balancer or base.load_balancer,
        parts.connection_pool or base.connection_pool,
        parts.outlier_detection or base.outlier_detection,
        parts.tls or base.tls,
    )


def _parts(policy: TrafficPolicy | PortPolicy) -> Policy:
    return Policy(policy.load_balancer, policy.connection_pool, policy.outlier_detection, policy.tls)
