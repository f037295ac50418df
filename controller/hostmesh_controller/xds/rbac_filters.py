"""AuthorizationPolicies as the rules of an RBAC filter: names of filters and of policies are Istio's."""

from collections.abc import Iterable
from typing import Final

from envoy.config.rbac.v3.rbac_pb2 import RBAC

from hostmesh_controller.mesh.authorization import spec_of
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.rbac import NEVER, policy_of
from hostmesh_controller.xds.trust_domains import TrustDomains

HTTP: Final = "envoy.filters.http.rbac"
NETWORK: Final = "envoy.filters.network.rbac"
TCP_STATISTICS: Final = "tcp."


def policy_name(item: ApiObject, index: int) -> str:
    """Return how Envoy calls a rule in logs and metadata: ns[NAMESPACE]-policy[NAME]-rule[INDEX]."""
    return f"ns[{item.key.namespace}]-policy[{item.key.name}]-rule[{index}]"


def rbac(
    items: Iterable[ApiObject],
    domains: TrustDomains,
    action: "RBAC.Action.ValueType",
    *,
    for_tcp: bool,
    prefix: str = "",
) -> RBAC:
    """Return the rules of some policies of one action; `prefix` is put before their names."""
    result = RBAC(action=action)
    for item in items:
        rules = spec_of(item).rules
        if not rules:
            result.policies[prefix + policy_name(item, 0)].CopyFrom(NEVER)
        for index, rule in enumerate(rules):
            made = policy_of(rule, item.key.namespace, domains, for_tcp=for_tcp, is_allow=action == RBAC.ALLOW)
            if made is not None:
                result.policies[prefix + policy_name(item, index)].CopyFrom(made)
    return result
