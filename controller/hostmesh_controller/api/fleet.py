"""Hosts as the API tells of them: what is configured, what they reported, what their proxies acknowledged. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict

from hostmesh_api.v1.hostmesh_pb2 import HostReport, WorkloadLease
from hostmesh_controller.api.bodies import moment
from hostmesh_controller.enrolments import Denial, Standing
from hostmesh_controller.proxy_states import ProxyState
from hostmesh_controller.store import CertificateRecord, HostState

_DAY_S = 86_400.0
_SLACK_S = 10.0


@dataclass(frozen=True, slots=True)
class HostView:
    """One registered host.

    `proxy` is None while it is not connected, `workloads` are "namespace/name", `group` is the WorkloadGroup that it is
    a member of, "namespace/name", None for none. `lease` is what is known of it (`leases.Sign`), `missing_since` the
    last sign of life of one that has no stream. `overdue`: reports are missing though it lives.
    """

    name: str
    spec: Mapping[str, Any]
    labels: Mapping[str, str]
    state: HostState
    proxy: ProxyState | None
    workloads: tuple[str, ...]
    group: str | None = None
    standing: Standing = field(default_factory=Standing)
    lease: str = ""
    missing_since: datetime | None = None
    envoy_down: bool = False
    overdue: bool = False

    @property
    def unhealthy(self) -> Mapping[str, str]:
        """Workloads whose probe fails, and why."""
        leases = {f"{each.namespace}/{each.name}": each for each in self.report.leases}
        found = ((name, leases[name]) for name in self.workloads if name in leases)
        return {name: each.health_reason for name, each in found if each.health == WorkloadLease.UNHEALTHY}

    @property
    def report(self) -> HostReport:
        return HostReport.FromString(self.state.report)

    @property
    def phase(self) -> str:
        """Registered (never joined), joined, left, expelled or quarantined."""
        if self.standing.denial is not Denial.NONE:
            return str(self.standing.denial)
        joined, left = self.state.joined_at, self.state.left_at
        if joined is None:
            return "registered"
        return "left" if left is not None and left >= joined else "joined"

    @property
    def ready(self) -> tuple[str, ...]:
        names = {f"{namespace}/{name}" for namespace, name in self.state.ready}
        return tuple(each for each in self.workloads if each in names)

    @property
    def waiting(self) -> tuple[str, ...]:
        """Workloads that callers may not reach by mutual TLS yet."""
        return tuple(each for each in self.workloads if each not in self.ready)


def is_overdue(last_report_at: datetime | None, interval_s: int, now: datetime) -> bool:
    """Tell whether an agent should have reported: it hangs, or does not come through.

    gRPC's pings find the first after 127 s, and the agent's stream ends then; where hosts report more often than that
    it is known earlier.
    """
    return last_report_at is not None and (now - last_report_at).total_seconds() > 2 * interval_s + _SLACK_S


def host_body(view: HostView) -> dict[str, Any]:
    """A line of the list of hosts."""
    return {
        "name": view.name,
        "addresses": list(view.spec.get("addresses", ())),
        "labels": dict(view.labels),
        "state": view.phase,
        "connected": view.proxy is not None,
        "lease": view.lease,
        "missing_since": moment(view.missing_since),
        "envoy_down": view.envoy_down,
        "overdue": view.overdue,
        "workloads": list(view.workloads),
        "ready": list(view.ready),
        "unhealthy": dict(view.unhealthy),
        "group": view.group,
        "joined_at": moment(view.state.joined_at),
        "left_at": moment(view.state.left_at),
        "denied_at": moment(view.standing.since),
        "denied_because": view.standing.reason or None,
        "last_report_at": moment(view.state.last_report_at),
    }


def host_details(view: HostView, certificates: Sequence[CertificateRecord]) -> dict[str, Any]:
    """All that is known of one host."""
    return {
        **host_body(view),
        "spec": view.spec,
        "report": MessageToDict(view.report, preserving_proto_field_name=True),
        "certificates": [
            {
                "serial": each.serial,
                "spiffe_id": each.spiffe_id,
                "issued_at": moment(each.issued_at),
                "not_after": moment(each.not_after),
            }
            for each in certificates
        ],
    }


def proxy_body(view: HostView, now: datetime) -> dict[str, Any]:
    """What the proxy of one host has."""
    report, proxy = view.report, view.proxy
    expiry = report.host_certificate_not_after
    return {
        "host": view.name,
        "state": view.phase,
        "denied_because": view.standing.reason or None,
        "connected": proxy is not None,
        "lease": view.lease,
        "missing_since": moment(view.missing_since),
        "envoy_down": view.envoy_down,
        "peer": proxy.peer if proxy else None,
        "since": moment(proxy.since) if proxy else None,
        "settled": proxy.settled if proxy else False,
        "acked_at": moment(proxy.acked_at) if proxy else None,
        "types": {
            type_url: {"subscribed": each.subscribed, "held": each.held, "acked_at": moment(each.last_ack_at)}
            for type_url, each in (proxy.types if proxy else {}).items()
        },
        "nacks": [
            {"at": moment(each.at), "type": each.type_url, "names": list(each.names), "message": each.message}
            for each in (proxy.nacks if proxy else ())
        ],
        "workloads": list(view.workloads),
        "ready": list(view.ready),
        "envoy": report.envoy.state or None,
        "envoy_version": report.envoy.version or None,
        "capture": report.capture.state or None,
        "capture_error": report.capture.error or None,
        "problems": list(report.problems),
        "alarms": [{"code": each.code, "text": each.text} for each in report.alarms],
        "certificate_days_left": (expiry - now.timestamp()) / _DAY_S if expiry else None,
        "last_report_at": moment(view.state.last_report_at),
    }
