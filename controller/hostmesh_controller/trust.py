"""Which host trusts which root, and has certificates of which: what decides whether a step is safe. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from hostmesh_api.v1.hostmesh_pb2 import HostReport
from hostmesh_controller.authority_roots import Roots
from hostmesh_controller.store import CertificateRecord


@dataclass(frozen=True, slots=True)
class HostTrust:
    """One joined host.

    Attributes:
        host: its name.
        connected: whether it has a stream now.
        roots: fingerprints of those it trusts, as it last told; None if its agent never said.
        certificates: how many it has by the fingerprint of their root; expired ones do not count.
        until: when the last of those ends, by fingerprint; aware.
    """

    host: str
    connected: bool
    roots: frozenset[str] | None
    certificates: Mapping[str, int]
    until: Mapping[str, datetime]


def host_trust(
    host: str, report: HostReport, records: Sequence[CertificateRecord], roots: Roots, now: datetime, *, connected: bool
) -> HostTrust:
    """Return what is known of a host.

    Args:
        host: its name.
        report: its last one. An agent of an older version says nothing of roots.
        records: what was issued to it; looked at if the report says nothing.
        roots: of the mesh; they tell which one signed when.
        now: aware.
        connected: whether it has a stream now.
    """
    if report.HasField("trust"):
        told = [(each.root, datetime.fromtimestamp(each.not_after, UTC)) for each in report.trust.certificates]
        return _summed(host, connected, frozenset(report.trust.roots), told, now)
    newest: dict[str, CertificateRecord] = {}
    for record in records:
        newest[record.spiffe_id] = record
    signed = ((roots.signing_at(each.issued_at), each.not_after) for each in newest.values())
    guessed = [(root.fingerprint, end) for root, end in signed if root is not None]
    return _summed(host, connected, None, guessed, now)


def _summed(
    host: str,
    connected: bool,
    roots: frozenset[str] | None,
    certificates: Iterable[tuple[str, datetime]],
    now: datetime,
) -> HostTrust:
    living = [(root, end) for root, end in certificates if end > now]
    until: dict[str, datetime] = {}
    for root, end in living:
        until[root] = max(end, until.get(root, end))
    return HostTrust(host, connected, roots, Counter(root for root, _ in living), until)


def unacknowledged(hosts: Iterable[HostTrust], fingerprint: str) -> tuple[list[str], list[str]]:
    """Return the hosts that are not known to trust a root: those that are connected, and the others."""
    lacking = [each for each in hosts if each.roots is None or fingerprint not in each.roots]
    connected = sorted(each.host for each in lacking if each.connected)
    return connected, sorted(each.host for each in lacking if not each.connected)


def holders(hosts: Iterable[HostTrust], fingerprint: str) -> dict[str, int]:
    """Return how many certificates of a root each host has, of those that have any."""
    found = {each.host: each.certificates.get(fingerprint, 0) for each in hosts}
    return {host: count for host, count in sorted(found.items()) if count}
