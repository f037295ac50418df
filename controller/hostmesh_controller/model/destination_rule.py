"""DestinationRule: how to talk to a service once a route has chosen it."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from hostmesh_controller.model.client_tls import ClientTls
from hostmesh_controller.model.connection_pool import (
    ConnectionPool,
    Http2KeepAlive,
    HttpSettings,
    OutlierDetection,
    TcpKeepalive,
    TcpSettings,
)
from hostmesh_controller.model.domains import check_domain, check_wildcard_domain, is_ip
from hostmesh_controller.model.exports import RuleExportTo, only_own_namespace
from hostmesh_controller.model.load_balancing import (
    ConsistentHash,
    CookieAttribute,
    HttpCookie,
    LoadBalancer,
    Maglev,
    RingHash,
    Warmup,
)
from hostmesh_controller.model.localities import Distribute, Failover, LocalityLbSetting, ZoneAwareLbSetting
from hostmesh_controller.model.route_fields import subset_name
from hostmesh_controller.model.schema import (
    AnyDuration,
    LabelKey,
    LabelValue,
    Percent,
    Port,
    Spec,
    Unsigned,
    as_fault,
    fault,
    given,
)

__all__ = [
    "ClientTls",
    "ConnectionPool",
    "ConsistentHash",
    "CookieAttribute",
    "DestinationRuleSpec",
    "Distribute",
    "Failover",
    "Http2KeepAlive",
    "HttpCookie",
    "HttpSettings",
    "LoadBalancer",
    "LocalityLbSetting",
    "Maglev",
    "OutlierDetection",
    "PortPolicy",
    "PortSelector",
    "ProxyProtocol",
    "RetryBudget",
    "RingHash",
    "RuleSelector",
    "Subset",
    "TcpKeepalive",
    "TcpSettings",
    "TrafficPolicy",
    "Tunnel",
    "Warmup",
    "ZoneAwareLbSetting",
]


class PortSelector(Spec):
    """A port of the service by its number."""

    number: Port


class PortPolicy(Spec):
    """Settings of one port; they replace the ones of the whole service, they are not merged."""

    port: PortSelector
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None

    @model_validator(mode="after")
    def _something(self) -> "PortPolicy":
        if not given(self, "load_balancer", "connection_pool", "outlier_detection", "tls"):
            raise fault("empty", "give loadBalancer, connectionPool, outlierDetection or tls")
        return self


class Tunnel(Spec):
    """Reach the target through the service, a forward proxy. The protocol is CONNECT unless given."""

    protocol: Literal["", "CONNECT", "POST"] = ""
    target_host: str
    target_port: Port

    @model_validator(mode="after")
    def _target_is_somewhere(self) -> "Tunnel":
        if not is_ip(self.target_host):
            try:
                check_domain(self.target_host)
            except ValueError:
                message = f"{self.target_host!r} is neither a host name nor an IP address"
                raise fault("host-name", message, "targetHost") from None
        return self


class ProxyProtocol(Spec):
    """Tell the service the caller's address ahead of the connection."""

    version: Literal["V1", "V2"] = "V1"


class RetryBudget(Spec):
    """How many retries may be active: a share of the active requests in percent, and at least some.

    `budget_interval` is how long requests count. None is Envoy's default: 20 percent, 3 retries, 0 s.
    """

    percent: Percent | None = None
    min_retry_concurrency: Unsigned | None = None
    budget_interval: AnyDuration | None = None


class TrafficPolicy(Spec):
    """Settings of a service or a subset; a subset's settings replace the service's, part by part."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    port_level_settings: Annotated[tuple[PortPolicy, ...], Field(max_length=4096)] = ()
    tunnel: Tunnel | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None

    @model_validator(mode="after")
    def _something(self) -> "TrafficPolicy":
        parts = (name for name in type(self).model_fields if name != "port_level_settings")
        if not self.port_level_settings and not given(self, *parts):
            raise fault("empty", "give loadBalancer, connectionPool, outlierDetection, tls or another setting")
        if self.tunnel is not None and self.proxy_protocol is not None:
            raise fault("one-of", "only one of tunnel, proxyProtocol may be set", "proxyProtocol")
        return self


def _rule_host(value: str) -> str:
    with as_fault("host-name"):
        return check_wildcard_domain(value)


class Subset(Spec):
    """The endpoints whose labels have all of these."""

    name: Annotated[str, AfterValidator(subset_name)]
    labels: Mapping[LabelKey, LabelValue] = Field(default_factory=dict)
    traffic_policy: TrafficPolicy | None = None


class RuleSelector(Spec):
    """Labels of the calling workloads for which a rule is; without labels it is for all of the namespace."""

    match_labels: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=4096)] = Field(default_factory=dict)


class DestinationRuleSpec(Spec):
    """Settings of the service `host` (a short name resolves in the rule's namespace) and its subsets."""

    host: Annotated[str, AfterValidator(_rule_host)]
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: RuleExportTo = ()
    workload_selector: RuleSelector | None = None

    @model_validator(mode="after")
    def _subsets_are_told_apart(self) -> "DestinationRuleSpec":
        seen: set[str] = set()
        for index, subset in enumerate(self.subsets):
            if subset.name in seen:
                raise fault("duplicate-subset", f"subset {subset.name!r} is there twice", "subsets", index, "name")
            seen.add(subset.name)
        return self

    @model_validator(mode="after")
    def _selected_workloads_are_of_the_namespace(self, info: ValidationInfo) -> "DestinationRuleSpec":
        if self.workload_selector is not None and not only_own_namespace(self.export_to, info):
            message = "workloadSelector chooses workloads of the rule's own namespace: export to '.' only"
            raise fault("export-to", message, "exportTo")
        return self
