"""What a scrape of /metrics is told of the hub, the revisions and the key sets."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from hostmesh_controller.hub import Hub
from hostmesh_controller.key_fetcher import KeyFetcher
from hostmesh_controller.leases import Leases
from hostmesh_controller.metrics import Reading

_KNOWN_TYPES: Final = frozenset(
    {"HostConfig", "Listener", "Cluster", "ClusterLoadAssignment", "RouteConfiguration", "VirtualHost", "Secret"}
)


def readings(hub: Hub, revision: Callable[[], int], keys: KeyFetcher | None = None) -> Iterable[Reading]:
    """What the hub tells at a scrape, the store's newest revision, and how many key sets there are."""
    prefix = "hostmesh_controller"
    counts = hub.counts
    by_type = {
        "pushes": ("Responses sent to proxies.", counts.pushes),
        "push_bytes": ("Bytes of responses sent to proxies.", counts.push_bytes),
        "acks": ("Responses that proxies acknowledged.", counts.acks),
        "nacks": ("Responses that proxies refused.", counts.nacks),
        "faults": ("Resources that could not be made: a mistake of the controller.", counts.faults),
    }
    yield Reading(f"{prefix}_connected_proxies", "Hosts with an open stream.", (), {(): hub.connected()})
    yield Reading(f"{prefix}_store_revision", "Newest revision of the store.", (), {(): revision()})
    yield Reading(f"{prefix}_published_revision", "Revision that proxies are shown.", (), {(): hub.revision})
    if keys is not None:
        states = Counter(each.state for each, _ in keys.states())
        text = "Key sets of RequestAuthentications by URL: ok, stale (older keys count), none (every token is refused)."
        yield Reading(f"{prefix}_jwks", text, ("state",), {(each,): states[each] for each in ("ok", "stale", "none")})
    for name, (text, values) in by_type.items():
        yield Reading(f"{prefix}_{name}", text, ("type",), _short(values), total=True)


def lease_readings(leases: Leases) -> Iterable[Reading]:
    """What the leases tell at a scrape."""
    prefix = "hostmesh_controller"
    by_sign: dict[tuple[str, ...], float] = {(str(sign),): float(count) for sign, count in leases.counts().items()}
    text = "Hosts that have joined, by what is known of them; endpoints of withdrawn ones are called by nobody."
    yield Reading(f"{prefix}_hosts", text, ("lease",), by_sign)
    text = "1 while so many hosts are missing that none is withdrawn."
    yield Reading(f"{prefix}_panic_guard", text, (), {(): float(leases.panic)})
    text = "Hosts whose Envoy is down."
    yield Reading(f"{prefix}_hosts_envoy_down", text, (), {(): float(leases.stalled_count())})


def _short(values: Mapping[str, int]) -> Mapping[tuple[str, ...], float]:
    """Sum by the message's name; types that peers made up are one, so that they cannot make up series."""
    summed: dict[tuple[str, ...], float] = {}
    for type_url, value in values.items():
        name = type_url.rpartition(".")[2]
        label = (name if name in _KNOWN_TYPES else "other",)
        summed[label] = summed.get(label, 0) + value
    return summed
