"""Who trusts which root and has certificates of which, as reports and records tell."""

from datetime import UTC, datetime, timedelta

from hostmesh_api.v1.hostmesh_pb2 import HeldCertificate, HostReport, TrustState
from hostmesh_controller import authority_roots as steps
from hostmesh_controller.authority_roots import Root, RootState, Source
from hostmesh_controller.store import CertificateRecord
from hostmesh_controller.trust import HostTrust, holders, host_trust, unacknowledged

NOW = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
OLD, NEW = "a" * 64, "b" * 64


def root(whole: str, at: datetime) -> Root:
    return Root(whole[:12], whole, Source.SELF_SIGNED, RootState.PREPARED, "PEM", "", at)


ROOTS = steps.activate(steps.prepare(steps.first("m", root(OLD, NOW - 9 * DAY), NOW - 9 * DAY), root(NEW, NOW)), NOW)


def held(root: str, end: datetime) -> HeldCertificate:
    return HeldCertificate(spiffe_id="spiffe://m/host/a", serial="1", root=root, not_after=int(end.timestamp()))


def told(report: HostReport, *records: CertificateRecord, connected: bool = True, host: str = "a") -> HostTrust:
    return host_trust(host, report, records, ROOTS, NOW, connected=connected)


def test_a_report_tells_what_is_trusted_and_held_and_what_has_ended_does_not_count() -> None:
    trust = TrustState(roots=[OLD, NEW], certificates=[held(OLD, NOW + DAY), held(NEW, NOW + 2 * DAY), held(OLD, NOW)])
    found = told(HostReport(trust=trust))
    assert found.roots == frozenset({OLD, NEW})
    assert dict(found.certificates) == {OLD: 1, NEW: 1}
    assert found.until == {OLD: NOW + DAY, NEW: NOW + 2 * DAY}


def record(uri: str, issued: datetime, end: datetime) -> CertificateRecord:
    return CertificateRecord(f"{issued:%s}", uri, "a", end, issued)


def test_of_a_silent_agent_the_newest_of_each_identity_counts_by_who_signed_then() -> None:
    found = told(
        HostReport(),
        record("spiffe://m/host/a", NOW - 2 * DAY, NOW + DAY),
        record("spiffe://m/ns/n/sa/s", NOW - 2 * DAY, NOW + DAY),
        record("spiffe://m/ns/n/sa/gone", NOW - 4 * DAY, NOW - DAY),
        record("spiffe://m/ns/n/sa/s", NOW, NOW + 3 * DAY),
    )
    assert found.roots is None
    assert dict(found.certificates) == {OLD: 1, NEW: 1}


def test_who_has_not_acknowledged_a_root_is_told_apart_by_whether_it_is_there() -> None:
    knows = HostReport(trust=TrustState(roots=[OLD, NEW]))
    lacks = HostReport(trust=TrustState(roots=[OLD]))
    hosts = [
        told(knows, host="a"),
        told(lacks, host="c"),
        told(HostReport(), host="b"),
        told(lacks, host="d", connected=False),
        told(knows, host="e", connected=False),
    ]
    assert unacknowledged(hosts, NEW) == (["b", "c"], ["d"])
    assert unacknowledged(hosts, OLD) == (["b"], [])


def test_holders_are_those_that_have_any() -> None:
    some = HostReport(trust=TrustState(certificates=[held(OLD, NOW + DAY), held(OLD, NOW + DAY)]))
    hosts = [told(some, host="b"), told(HostReport(trust=TrustState()), host="a")]
    assert holders(hosts, OLD) == {"b": 2}
    assert holders(hosts, NEW) == {}
