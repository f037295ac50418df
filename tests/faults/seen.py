"""What the oracles saw during a fault, and whether that keeps the promise. No input, no output, no clock.

All times are of the machine's monotonic clock, which every namespace of the lab shares, in seconds.
"""

import difflib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

LATE_S: Final = 2.0
"""An answer that takes longer is late; the load sends on time whether answers come or not."""
LAG_S: Final = 0.5
"""The load is told to have been late itself if it was more than this."""
OK: Final = "ok"


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the load. `kind`: the way it went; `at_s`: when it was due; `fate`: OK, or what went wrong.

    `lag_s`: how much later than due it was sent, for want of a processor: of the machine, not of the mesh.
    """

    kind: str
    at_s: float
    took_s: float
    fate: str
    lag_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Login:
    """One probe of a host's sshd: the banner alone, or a whole login with a key."""

    host: str
    at_s: float
    fate: str


@dataclass(frozen=True, slots=True)
class Look:
    """The kernel's table on a host at one time: its digest, or "" where there is none.

    `text`: the table, where the digest was not seen before.
    """

    host: str
    at_s: float
    digest: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Wire:
    """The lab's bridge. `control`: the oracle's own plaintext, which proves that it sees."""

    packets: int = 0
    dropped: int = 0
    plaintext: int = 0
    control: int = 0


@dataclass(frozen=True, slots=True)
class Gauge:
    """Numbers that are read about once a second: certificate seconds left by host, endpoints at the callers."""

    certificate_s: Mapping[str, float] = field(default_factory=dict)
    endpoints: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    calls: Sequence[Call]
    logins: Sequence[Login]
    looks: Sequence[Look]
    wire: Wire
    gauge: Gauge


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a promise allows.

    Attributes:
        gap_s: for each kind of call, how long it may fail without a success; 0: no call may fail.
        gaps: how many such outages each kind may have.
        late: answers that may take longer than LATE_S.
        ssh_gap_s: the same for SSH, by host; a host that is not named has 0.
        rules_gap_s: how long the kernel's table may be gone, by host; "" stands for every other host.
        rules_same: the table at the end is the one of the start.
        certificates: certificates stay inside their life.
        plaintext: the owner of the host took the rules away: there is nothing that would keep it from the wire.
        endpoints: the least that the caller's Envoy may hold of the service; None: it may restart, ask nothing.
        unjudged: kinds of calls that may fail.
    """

    gap_s: float = 0.0
    gaps: int = 1
    late: int = 0
    ssh_gap_s: Mapping[str, float] = field(default_factory=dict)
    rules_gap_s: Mapping[str, float] = field(default_factory=dict)
    rules_same: bool = True
    certificates: bool = True
    plaintext: bool = False
    endpoints: int | None = 2
    unjudged: Collection[str] = ()


def outages(points: Iterable[tuple[float, bool]]) -> list[float]:
    """Return how long each run of failures lasted: from the last success before it to the first one after.

    An outage that the record begins or ends with counts from or to the failure itself.
    """
    found: list[float] = []
    last_good: float | None = None
    began: float | None = None
    at_s = 0.0
    for at_s, good in sorted(points):
        if good:
            if began is not None:
                found.append(at_s - began)
            began, last_good = None, at_s
        elif began is None:
            began = at_s if last_good is None else last_good
    if began is not None:
        found.append(at_s - began)
    return found


def judge(seen: Seen, bounds: Bounds) -> list[str]:
    """Return every way in which what was seen breaks the bounds; nothing: the promise held."""
    return [
        *_calls(seen.calls, bounds),
        *_logins(seen.logins, bounds),
        *_rules(seen.looks, bounds),
        *_wire(seen.wire, bounds),
        *_gauge(seen.gauge, bounds),
    ]


def _calls(calls: Sequence[Call], bounds: Bounds) -> Iterable[str]:
    if not calls:
        yield "the load sent nothing"
    by_kind: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_kind[call.kind].append(call)
    for kind, some in sorted(by_kind.items()):
        if kind in bounds.unjudged:
            continue
        bad = [call for call in some if call.fate != OK]
        lost = outages((call.at_s, call.fate == OK) for call in some)
        if not bad:
            continue
        if len(bad) == len(some):
            yield f"{kind}: none of {len(some)} calls succeeded, the first: {bad[0].fate}"
        elif not bounds.gap_s:
            yield f"{kind}: {len(bad)} of {len(some)} calls failed, {_when(some, bad)}, the first: {bad[0].fate}"
        elif max(lost) > bounds.gap_s:
            yield f"{kind}: without a success for {max(lost):.1f} s, more than {bounds.gap_s:g} s: {bad[0].fate}"
        elif len(lost) > bounds.gaps:
            yield f"{kind}: {len(lost)} outages, more than {bounds.gaps}"
    late = [call for call in calls if call.fate == OK and call.took_s - call.lag_s > LATE_S]
    if len(late) > bounds.late:
        worst = max(late, key=lambda call: call.took_s)
        yield f"{len(late)} answers came late, the worst after {worst.took_s:.1f} s ({worst.kind})"


def _when(some: Sequence[Call], bad: Sequence[Call]) -> str:
    """Return from when to when calls failed, counted from the first call."""
    began_s = min(call.at_s for call in some)
    times = [call.at_s - began_s for call in bad]
    return f"from {min(times):.1f} s to {max(times):.1f} s"


def _logins(logins: Sequence[Login], bounds: Bounds) -> Iterable[str]:
    if not logins:
        yield "SSH was not probed"
    by_host: dict[str, list[Login]] = defaultdict(list)
    for login in logins:
        by_host[login.host].append(login)
    for host, some in sorted(by_host.items()):
        bad = [login for login in some if login.fate != OK]
        allowed = bounds.ssh_gap_s.get(host, 0.0)
        longest = max(outages((login.at_s, login.fate == OK) for login in some), default=0.0)
        if bad and (not allowed or longest > allowed):
            yield f"ssh to {host}: {len(bad)} of {len(some)} probes failed, {longest:.1f} s long: {bad[0].fate}"


def _rules(looks: Sequence[Look], bounds: Bounds) -> Iterable[str]:
    if not looks:
        yield "the rules were not looked at"
    by_host: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        by_host[look.host].append(look)
    for host, some in sorted(by_host.items()):
        allowed = bounds.rules_gap_s.get(host, bounds.rules_gap_s.get("", 0.0))
        gone = [look for look in some if not look.digest]
        longest = max(outages((look.at_s, bool(look.digest)) for look in some), default=0.0)
        if gone and (not allowed or longest > allowed):
            yield f"rules of {host}: gone for {longest:.1f} s"
        if bounds.rules_same and some[0].digest != some[-1].digest:
            yield f"rules of {host}: {some[-1].digest or 'gone'} at the end, {some[0].digest or 'gone'} before"
            yield from _changed(some)


def _changed(looks: Sequence[Look]) -> Iterable[str]:
    """Return the lines by which the last table is not the first."""
    texts = {look.digest: look.text for look in looks if look.text}
    before, after = (texts.get(look.digest, "").splitlines() for look in (looks[0], looks[-1]))
    lines = [line.strip() for line in difflib.unified_diff(before, after, n=0, lineterm="")][2:]
    return (line for line in lines if not line.startswith("@@"))


def _wire(wire: Wire, bounds: Bounds) -> Iterable[str]:
    if wire.plaintext and not bounds.plaintext:
        yield f"plaintext on the bridge: {wire.plaintext} packets"
    if not wire.control:
        yield "the oracle of plaintext is blind: it did not see its own"


def _gauge(gauge: Gauge, bounds: Bounds) -> Iterable[str]:
    if not gauge.certificate_s:
        yield "no certificate was looked at"
    for host, left_s in sorted(gauge.certificate_s.items()):
        if bounds.certificates and left_s <= 0:
            yield f"a certificate of {host} had ended {-left_s:.0f} s ago"
    if bounds.endpoints is not None:
        if not gauge.endpoints:
            yield "the endpoints at the caller were not looked at"
        elif min(gauge.endpoints) < bounds.endpoints:
            yield f"the caller held {min(gauge.endpoints)} endpoints, less than {bounds.endpoints}"


def summary(seen: Seen) -> str:
    """Return one line on what the oracles saw."""
    failed = sum(call.fate != OK for call in seen.calls)
    took = sorted(call.took_s for call in seen.calls if call.fate == OK)
    p99_ms = took[int(len(took) * 0.99)] * 1000 if took else 0.0
    parts = [f"{len(seen.calls)} calls, {failed} failed, p99 {p99_ms:.0f} ms"]
    by_kind: dict[str, list[Call]] = defaultdict(list)
    for call in seen.calls:
        by_kind[call.kind].append(call)
    if failed:
        gaps = [max(outages((c.at_s, c.fate == OK) for c in some), default=0.0) for some in by_kind.values()]
        parts[0] += f", longest gap {max(gaps):.1f} s"
    if (lag_s := max((call.lag_s for call in seen.calls), default=0.0)) > LAG_S:
        parts[0] += f" (the machine was busy: sent up to {lag_s:.1f} s late)"
    lost = sum(login.fate != OK for login in seen.logins)
    parts.append(f"SSH {len(seen.logins)} probes, {lost} lost")
    rules = len({(look.host, look.digest) for look in seen.looks})
    gone = sum(not look.digest for look in seen.looks)
    parts.append(f"rules {len(seen.looks)} looks, {rules} states, {gone} without")
    parts.append(f"bridge {seen.wire.packets} packets, {seen.wire.plaintext} plaintext")
    if seen.gauge.certificate_s:
        parts.append(f"certificates ≥ {min(seen.gauge.certificate_s.values()) / 3600:.1f} h")
    if seen.gauge.endpoints:
        parts.append(f"endpoints {min(seen.gauge.endpoints)}-{max(seen.gauge.endpoints)}")
    return "; ".join(parts)
