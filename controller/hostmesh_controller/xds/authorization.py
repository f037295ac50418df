"""AuthorizationPolicy: Envoy's RBAC filters, and those that ask an external authorizer, in Istio's order.

CUSTOM comes first, before it is known who the end user is; then AUDIT, DENY and ALLOW. Hosts for which the same
policies hold have the same filters, made once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.rbac.v3.rbac_pb2 import RBAC
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac

from hostmesh_controller.mesh.authorization import is_dry_run, policies_for, spec_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.xds.custom_authorization import Asked, asked_of, custom_http, custom_tcp
from hostmesh_controller.xds.extension_types import NONE, Direction, Extensions, Traffic, faces_behind
from hostmesh_controller.xds.filters import http_filter, network_filter
from hostmesh_controller.xds.rbac_filters import HTTP, NETWORK, TCP_STATISTICS, rbac
from hostmesh_controller.xds.trust_domains import TrustDomains, trust_domains

KIND: Final = "AuthorizationPolicy"
ACTIONS: Final = (("AUDIT", RBAC.LOG), ("DENY", RBAC.DENY), ("ALLOW", RBAC.ALLOW))
"""In the order of their filters."""
DRY_RUN_PREFIXES: Final = {RBAC.ALLOW: "istio_dry_run_allow_", RBAC.DENY: "istio_dry_run_deny_"}
"""Before the names of the statistics, and the keys of the metadata, of policies that are only tried (Istio's)."""


def authorization_of(mesh: Mesh, host: Host, traffic: Traffic) -> Extensions:
    """Return the filters of the policies that hold for one port of a host's workload, or of a gateway's."""
    if traffic.direction is Direction.OUTBOUND:
        return NONE
    items = policies_for(mesh, faces_behind(mesh, host, traffic))
    if not items:
        return NONE
    asked = asked_of(mesh, host, items)
    keys = tuple(item.key for item in items)

    def make() -> Extensions:
        return _extensions(items, trust_domains(mesh), asked)

    return mesh.memo.get((KIND, keys, asked), items, make)


def _extensions(items: tuple[ApiObject, ...], domains: TrustDomains, asked: tuple[Asked, ...]) -> Extensions:
    http: list[HttpFilter] = []
    tcp: list[Filter] = []
    for action, what in ACTIONS:
        chosen = [item for item in items if spec_of(item).action == action]
        if chosen:
            http.append(http_filter(HTTP, _http(_rules(chosen, domains, what, for_tcp=False))))
            tcp.append(network_filter(NETWORK, _tcp(_rules(chosen, domains, what, for_tcp=True))))
    custom = [item for item in items if spec_of(item).action == "CUSTOM"]
    return Extensions(
        key=(KIND, *(item.key for item in items), asked),
        inputs=items,
        first=custom_http(custom, domains, asked),
        authz=tuple(http),
        tcp_first=custom_tcp(custom, domains, asked),
        tcp_authz=tuple(tcp),
    )


@dataclass(frozen=True, slots=True)
class _Rules:
    """Policies of one action: those that are enforced, and those that are only tried. None: there are none."""

    enforced: RBAC | None
    tried: RBAC | None


def _rules(
    items: Iterable[ApiObject], domains: TrustDomains, action: "RBAC.Action.ValueType", *, for_tcp: bool
) -> _Rules:
    split: dict[bool, list[ApiObject]] = {False: [], True: []}
    for item in items:
        split[is_dry_run(item)].append(item)
    made = {
        tried: rbac(chosen, domains, action, for_tcp=for_tcp) if chosen else None for tried, chosen in split.items()
    }
    return _Rules(made[False], made[True])


def _http(rules: _Rules) -> http_rbac.RBAC:
    prefix = DRY_RUN_PREFIXES[rules.tried.action] if rules.tried is not None else ""
    return http_rbac.RBAC(rules=rules.enforced, shadow_rules=rules.tried, shadow_rules_stat_prefix=prefix)


def _tcp(rules: _Rules) -> network_rbac.RBAC:
    prefix = DRY_RUN_PREFIXES[rules.tried.action] if rules.tried is not None else ""
    return network_rbac.RBAC(
        rules=rules.enforced,
        shadow_rules=rules.tried,
        shadow_rules_stat_prefix=prefix,
        stat_prefix=TCP_STATISTICS,
    )
