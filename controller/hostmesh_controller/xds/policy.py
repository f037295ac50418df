"""DestinationRule: which traffic policy holds for a port and a subset, merged as Istio merges."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from hostmesh_controller.mesh.destination_rules import spec_of
from hostmesh_controller.model.destination_rule import (
    ClientTls,
    ConnectionPool,
    LoadBalancer,
    OutlierDetection,
    PortPolicy,
    ProxyProtocol,
    RetryBudget,
    Subset,
    TrafficPolicy,
    Tunnel,
)
from hostmesh_controller.model.objects import ApiObject


@dataclass(frozen=True, slots=True)
class Policy:
    """How to talk to one port of a service or subset. None is Istio's default."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    tunnel: Tunnel | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


NO_POLICY = Policy()


def subset_labels(rules: Iterable[ApiObject], name: str) -> Mapping[str, str] | None:
    """Return the labels of a subset ("" is all of the service), or None if no rule defines it."""
    if not name:
        return {}
    subset = subset_of(rules, name)
    return subset.labels if subset else None


def policy_for(rules: Iterable[ApiObject], subset: str, port: int) -> Policy:
    """Return the policy of a port: the subset's parts over the service's; a port's own replace all of them.

    Args:
        rules: the DestinationRules that hold, merged. The first with a policy for the whole service has it.
        subset: its name, or "".
        port: the service's port.
    """
    rules = tuple(rules)
    base = _of_whole(whole_policy(rules), port)
    found = subset_of(rules, subset) if subset else None
    return base if found is None or found.traffic_policy is None else _over(base, found.traffic_policy, port)


def whole_policy(rules: Iterable[ApiObject]) -> TrafficPolicy | None:
    """Return the policy for the whole service, or None."""
    policies = (spec_of(rule).traffic_policy for rule in rules)
    return next((policy for policy in policies if policy is not None), None)


def subset_of(rules: Iterable[ApiObject], name: str) -> Subset | None:
    """Return the subset of that name that comes first, or None."""
    subsets = (subset for rule in rules for subset in spec_of(rule).subsets)
    return next((subset for subset in subsets if subset.name == name), None)


def _of_whole(policy: TrafficPolicy | None, port: int) -> Policy:
    if policy is None:
        return NO_POLICY
    own = _port_policy(policy, port)
    if own is not None:
        return _of_port(own)
    return Policy(
        policy.load_balancer,
        policy.connection_pool,
        policy.outlier_detection,
        policy.tls,
        policy.tunnel,
        policy.proxy_protocol,
        policy.retry_budget,
    )


def _over(base: Policy, policy: TrafficPolicy, port: int) -> Policy:
    own = _port_policy(policy, port)
    if own is not None:
        # What a port leaves out is the default, not the service's; the three that a port cannot have stay.
        parts = _of_port(own)
        return replace(parts, tunnel=base.tunnel, proxy_protocol=base.proxy_protocol, retry_budget=base.retry_budget)
    return Policy(
        policy.load_balancer or base.load_balancer,
        policy.connection_pool or base.connection_pool,
        policy.outlier_detection or base.outlier_detection,
        policy.tls or base.tls,
        policy.tunnel or base.tunnel,
        policy.proxy_protocol or base.proxy_protocol,
        policy.retry_budget or base.retry_budget,
    )


def _port_policy(policy: TrafficPolicy, port: int) -> PortPolicy | None:
    return next((own for own in policy.port_level_settings if own.port.number == port), None)


def _of_port(own: PortPolicy) -> Policy:
    return Policy(own.load_balancer, own.connection_pool, own.outlier_detection, own.tls)
