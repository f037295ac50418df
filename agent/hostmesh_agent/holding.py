"""What may be captured while capture is held: what was captured before and is still wanted, and nothing else. Pure.

A policy that has become narrower holds at once, one that has become wider does not yet: of two policies what both
capture. What may pass by Envoy while there is none is what is wanted now: what has come to need mutual TLS since must
not go out in plain text for a hold's sake. And a port that takes mutual TLS alone stays closed whatever the two leave
out.
"""

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from hostmesh_api.v1.hostmesh_pb2 import Capture, CaptureDirection, CaptureRule, HostConfig

_NOTHING = CaptureRule()


def within(config: HostConfig, held: bytes) -> HostConfig:
    """Return the configuration with no more capture than in `held` (a serialized `Capture`).

    What was captured and is no longer wanted goes all the same: its listeners go too.

    Raises:
        ValueError: `held` is no such thing.
    """
    limit, wanted = _parsed(held), config.capture
    found = HostConfig()
    found.CopyFrom(config)
    kept = found.capture
    kept.CopyFrom(limit)
    kept.policy = wanted.policy
    kept.ClearField("open_prefixes")
    kept.open_prefixes.extend(wanted.open_prefixes)
    if wanted.scope != limit.scope:
        kept.scope = Capture.MESH
    kept.dns = wanted.dns and limit.dns
    for each in ("outbound_prefixes", "virtual_prefixes"):
        both = sorted(set(_inside_both(getattr(limit, each), getattr(wanted, each))))
        kept.ClearField(each)
        getattr(kept, each).extend(both)
    if not _narrow(kept, "outbound", limit, wanted):
        for each in ("outbound_prefixes", "virtual_prefixes"):
            kept.ClearField(each)  # type: ignore[arg-type]
        kept.scope, kept.dns = Capture.MESH, False
    ports = set(limit.inbound_ports) & set(wanted.inbound_ports)
    if not _narrow(kept, "inbound", limit, wanted):
        ports &= set(config.strict_ports)
    kept.ClearField("inbound_ports")
    kept.inbound_ports.extend(sorted(ports))
    return found


def _narrow(kept: Capture, direction: str, limit: Capture, wanted: Capture) -> bool:
    """Have one direction capture what both capture; return whether there may be anything."""
    kept.ClearField(direction)  # type: ignore[arg-type]
    if not limit.HasField(direction) and not wanted.HasField(direction):  # type: ignore[arg-type]
        return True
    before: CaptureDirection = getattr(limit, direction)
    after: CaptureDirection = getattr(wanted, direction)
    made: CaptureDirection = getattr(kept, direction)
    made.SetInParent()
    made.open = after.open
    made.exclude.extend(_distinct((*before.exclude, *after.exclude)))
    if before.include and after.include and before.include != after.include:
        pairs = (_both(one, other) for one in before.include for other in after.include)
        made.include.extend(_distinct(each for each in pairs if each != _NOTHING))
        # No include would be everything.
        return bool(made.include)
    made.include.extend(before.include or after.include)
    return True


def _both(one: CaptureRule, other: CaptureRule) -> CaptureRule:
    """Return the rule for what both are about, an empty one if that is nothing."""
    made = CaptureRule()
    for name in ("ports", "cidrs", "users", "units", "interfaces"):
        first, second = getattr(one, name), getattr(other, name)
        if not first or not second:
            values = set(first or second)
        else:
            values = set(_inside_both(first, second)) if name == "cidrs" else set(first) & set(second)
            if not values:
                return _NOTHING
        getattr(made, name).extend(sorted(values))
    return made


def _inside_both(some: Iterable[str], others: Iterable[str]) -> Iterator[str]:
    """Yield the prefixes of those addresses that are in a prefix of each of the lists."""
    parsed = [ip_network(each) for each in others]
    for each in map(ip_network, some):
        for other in parsed:
            if each.version == other.version and each.overlaps(other):
                yield str(max(each, other, key=lambda prefix: prefix.prefixlen))


def _distinct(rules: Iterable[CaptureRule]) -> list[CaptureRule]:
    found: list[CaptureRule] = []
    for each in rules:
        if each not in found:
            found.append(each)
    return found


def _parsed(held: bytes) -> Capture:
    try:
        return Capture.FromString(held)
    except Exception as error:  # protobuf's own classes of it differ with its implementation
        raise ValueError(f"not a configuration of capture: {error}") from error
