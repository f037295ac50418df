"""AuthorizationPolicies that would allow the calls that were seen, and no others: to be read, then applied.

They are made in dry-run form, so that applying one tells what it would refuse and refuses nothing. What cannot be seen
is not guessed: paths are left open, and callers without an identity are told as comments.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from hostmesh_api.call_stats import OTHER, Security
from hostmesh_controller.callers import addresses_of, service_behind, whence
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Workload, WorkloadKey
from hostmesh_controller.readiness import Seen, security_of
from hostmesh_controller.store import CallRecord

DRY_RUN: Final = "istio.io/dry-run"
_SCHEME: Final = "spiffe://"
_MAX_NAME_CHARS: Final = 253
_LIMITS: Final = (
    "Paths are not observed: each rule allows every path.",
    "A caller that was not seen in this time is not allowed.",
)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A policy for the workloads that one selector selects, None where nothing can be suggested; and what to know."""

    namespace: str
    workloads: tuple[str, ...]
    policy: Mapping[str, Any] | None
    comments: tuple[str, ...]


class _Group(NamedTuple):
    """Workloads that one selector is for. `name` is the service's, or the workload's where no service selects it."""

    namespace: str
    name: str
    selector: tuple[tuple[str, str], ...]


def suggest(mesh: Mesh, seen: Seen, now: datetime, wanted: Callable[[Workload], bool]) -> list[Suggestion]:
    """Suggest a policy for each set of workloads with the same selector that has one in it that is `wanted`."""
    groups: dict[_Group, list[Workload]] = {}
    for _, workload in sorted(mesh.workloads.items()):
        if workload.host is not None:
            groups.setdefault(_group(mesh, workload), []).append(workload)
    by_workload: dict[WorkloadKey, list[CallRecord]] = {}
    for key, record in sorted(seen.calls.items()):
        by_workload.setdefault(WorkloadKey(key.namespace, key.workload), []).append(record)
    result = []
    for group, workloads in sorted(
        groups.items(), key=lambda each: (each[0].namespace, each[0].name, each[0].selector)
    ):
        if any(map(wanted, workloads)):
            records = [record for workload in workloads for record in by_workload.get(workload.key, ())]
            result.append(_suggestion(mesh, seen, group, workloads, records, now))
    return _named_apart(result)


def _group(mesh: Mesh, workload: Workload) -> _Group:
    service = service_behind(mesh, workload)
    namespace = workload.key.namespace
    if service is not None and service.selector:
        return _Group(namespace, service.id.hostname.partition(".")[0], tuple(sorted(service.selector.items())))
    return _Group(namespace, workload.key.name, tuple(sorted(workload.labels.items())))


def _suggestion(
    mesh: Mesh, seen: Seen, group: _Group, workloads: list[Workload], records: list[CallRecord], now: datetime
) -> Suggestion:
    names = tuple("/".join(each.key) for each in workloads)
    allowed = [each for each in records if security_of(each.key) is Security.MUTUAL_TLS and each.key.caller]
    let_in = [each for each in allowed if not 0 < each.count <= each.denied]
    comments = [_window(seen, workloads, now), *_LIMITS]
    comments += [
        f"Refused by a policy until now, and not allowed here: {_principal(each)} on port {each.key.port}."
        for each in allowed
        if each not in let_in
    ]
    comments += _unidentified(mesh, workloads, records)
    comments += [
        f"Methods are left open for {_principal(each)} on port {each.key.port}: it uses some that are not told apart."
        for each in let_in
        if OTHER in each.methods
    ]
    policy = None
    if not group.selector:
        comments.append("No policy: the workload has no labels, so a selector cannot tell it from others.")
    elif not let_in:
        # An ALLOW policy without rules refuses everybody.
        comments.append("No policy: no call with an identity was seen.")
    else:
        policy = _policy(group, let_in)
    return Suggestion(group.namespace, names, policy, tuple(dict.fromkeys(comments)))


def _policy(group: _Group, records: Iterable[CallRecord]) -> Mapping[str, Any]:
    name = f"suggested-{group.name.replace('@', '-').replace(':', '-')}"[:_MAX_NAME_CHARS]
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": group.namespace, "annotations": {DRY_RUN: "true"}},
        "spec": {"selector": {"matchLabels": dict(group.selector)}, "action": "ALLOW", "rules": _rules(records)},
    }


Operations = tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]
"""What a caller does: methods (none for connections, or for any method) and the ports on which it uses them."""


def _rules(records: Iterable[CallRecord]) -> list[dict[str, Any]]:
    """Return one rule for all callers that do the same."""
    methods: dict[str, dict[int, set[str] | None]] = {}
    for each in records:
        on_port = methods.setdefault(_principal(each), {})
        port, known = each.key.port, each.methods if OTHER not in each.methods else frozenset()
        before = on_port.get(port, set())
        # Connections have no methods to ask for, and a caller that does both must be let in with both.
        on_port[port] = None if before is None or not known else before | known
    callers: dict[Operations, list[str]] = {}
    for principal, on_port in sorted(methods.items()):
        ports: dict[tuple[str, ...], list[int]] = {}
        for port, words in sorted(on_port.items()):
            ports.setdefault(tuple(sorted(words or ())), []).append(port)
        callers.setdefault(tuple(sorted((words, tuple(found)) for words, found in ports.items())), []).append(principal)
    return [
        {
            "from": [{"source": {"principals": principals}}],
            "to": [{"operation": _operation(words, ports)} for words, ports in operations],
        }
        for operations, principals in sorted(callers.items(), key=lambda each: each[1])
    ]


def _operation(methods: tuple[str, ...], ports: tuple[int, ...]) -> dict[str, list[str]]:
    result = {"ports": [str(port) for port in ports]}
    if methods:
        result["methods"] = list(methods)
    return result


def _principal(record: CallRecord) -> str:
    """Return a caller as policies name it: the SPIFFE ID without its scheme."""
    return record.key.caller.removeprefix(_SCHEME)


def _unidentified(mesh: Mesh, workloads: list[Workload], records: Iterable[CallRecord]) -> list[str]:
    known, by_key = addresses_of(mesh), {each.key: each for each in workloads}
    result = []
    for each in records:
        if security_of(each.key) is Security.MUTUAL_TLS and each.key.caller:
            continue
        workload = by_key[WorkloadKey(each.key.namespace, each.key.workload)]
        found = whence(mesh, known, each.key.caller, workload, each.key.port)
        who = each.key.caller or "Others"
        where = f" (host {found.host})" if found.host else ""
        result.append(f"Not allowed, for want of an identity: {who}{where} on port {each.key.port}: {found.why}.")
    return result


def _window(seen: Seen, workloads: Iterable[Workload], now: datetime) -> str:
    keys = {each.key for each in workloads}
    since = [each.since for key, each in seen.ports.items() if WorkloadKey(key.namespace, key.workload) in keys]
    if not since:
        return "Observed: none of its ports is watched now."
    return f"Observed from {max(since):%Y-%m-%d %H:%M} to {now:%Y-%m-%d %H:%M} UTC."


def _named_apart(found: list[Suggestion]) -> list[Suggestion]:
    """Give policies of one name in one namespace different names."""
    taken: set[tuple[str, str]] = set()
    for each in found:
        if each.policy is None:
            continue
        metadata, number = each.policy["metadata"], 1
        base = metadata["name"]
        while (each.namespace, metadata["name"]) in taken:
            number += 1
            metadata["name"] = f"{base[: _MAX_NAME_CHARS - 6]}-{number}"
        taken.add((each.namespace, metadata["name"]))
    return found
