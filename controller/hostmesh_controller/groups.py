"""WorkloadGroups and their members: hosts that joined by the token of a group. Pure.

A member is a Host whose annotation names the group. Its WorkloadEntry is made from the group's template and the host's
address, and from nothing else: it changes with the group, and is nobody's to edit.

    WorkloadGroup + Host ─▶ WorkloadEntry `<group>-<host>`
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hostmesh_api.identity import HostIdentity
from hostmesh_controller.adoption_rules import ADOPT, Listens, Rule, adopted_ports, parse_rules
from hostmesh_controller.load import Problem
from hostmesh_controller.model import ApiObject, ObjectKey, read_document
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.workloads import GROUP_ANNOTATION, WorkloadGroupSpec
from hostmesh_controller.names import canonical_address

MEMBER_OF: Final = "hostmesh.io/workload-group"
"""Annotation of a Host: the group that it joined, "namespace/name"."""
SEEN_AT: Final = "hostmesh.io/address-seen"
"""Annotation of a Host: the address at which the controller saw it, which follows it. Another one in its spec is an
operator's word, and stays."""
WITHIN: Final = "hostmesh.io/address-within"
"""Annotation of a Host: the blocks, by commas, in which an address that follows must be; without it, it may be any."""
HEALTH_CHECKS_ANNOTATION: Final = "proxy.istio.io/health-checks-enabled"
"""Annotation of a WorkloadEntry whose endpoints count only while its probe succeeds; Istio's name."""
MAX_NAME: Final = 253


class NotAdmittedError(Exception):
    """A host cannot become a member; the message says who must do what."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that wants to be a member of a group, under a name and at an address (canonical).

    `follows`: the address is where the controller sees it, and the host's own; it is to follow the host, `within` these
    blocks (none: anywhere).
    """

    group: ObjectKey
    name: str
    address: str
    follows: bool = False
    within: tuple[str, ...] = ()


def group_key(text: str) -> ObjectKey | None:
    """Return the group that "namespace/name" names, None if it names none."""
    namespace, slash, name = text.partition("/")
    return ObjectKey("WorkloadGroup", namespace, name) if slash and namespace and name and "/" not in name else None


def group_of(host: ApiObject) -> ObjectKey | None:
    """Return the group that a Host is a member of."""
    return group_key(host.metadata.annotations.get(MEMBER_OF, ""))


def entry_key(group: ObjectKey, host: str) -> ObjectKey:
    """Return the key of a member's WorkloadEntry."""
    return ObjectKey("WorkloadEntry", group.namespace, f"{group.name}-{host}"[-MAX_NAME:].lstrip("-."))


def member_entry(group: ApiObject, host: ApiObject, listening: Iterable[Listens] = ()) -> ApiObject:
    """Return a member's WorkloadEntry, as Istio's automatic registration makes it.

    `listening` is what was found on the host, for the rules by which the group adopts it.

    Its labels are those of the template and over them those of the group's metadata, in the entry's spec as in its
    metadata. Its address is the host's first; a template's own address means nothing, as in Istio.
    """
    spec, of_host = group.spec, host.spec
    assert isinstance(spec, WorkloadGroupSpec)
    assert isinstance(of_host, HostSpec)
    labels = {**spec.template.labels, **spec.metadata.labels}
    annotations = {**spec.metadata.annotations, GROUP_ANNOTATION: group.key.name}
    if spec.probe is not None:
        annotations[HEALTH_CHECKS_ANNOTATION] = "true"
    key = entry_key(group.key, host.key.name)
    metadata: dict[str, Any] = {"name": key.name, "namespace": key.namespace, "annotations": annotations}
    template = {name: value for name, value in spec.template.to_dict().items() if name not in {"address", "labels"}}
    if labels:
        metadata["labels"] = labels
        template["labels"] = labels
    if found := adopted_ports(rules_of(group), listening):
        template["ports"] = {**template["ports"], **found}
    if of_host.addresses:
        template["address"] = of_host.addresses[0]
    document = {"apiVersion": group.api_version, "kind": "WorkloadEntry", "metadata": metadata, "spec": template}
    made, faults = read_document(document, key.namespace)
    if made is None:
        reasons = "; ".join(each.message for each in faults)
        raise NotAdmittedError(f"{group.key} makes no WorkloadEntry for {host.key}: {reasons}")
    return made


def rules_of(group: ApiObject) -> tuple[Rule, ...]:
    """Return the rules by which a group adopts what its members listen on; those that make no sense mean nothing."""
    text = group.metadata.annotations.get(ADOPT)
    if text is None or not isinstance(group.spec, WorkloadGroupSpec):
        return ()
    try:
        return parse_rules(text, group.spec.template.ports)
    except ValueError:
        return ()


def _rule_problems(item: ApiObject) -> Iterator[Problem]:
    text = item.metadata.annotations.get(ADOPT)
    if text is None or not isinstance(item.spec, WorkloadGroupSpec):
        return
    try:
        parse_rules(text, item.spec.template.ports)
    except ValueError as error:
        yield replace(_problem(item, ("metadata", "annotations", ADOPT), str(error)), code="adopt-rule")


def host_document(candidate: Candidate) -> dict[str, Any]:
    """Return the Host that a candidate becomes."""
    annotations = {MEMBER_OF: f"{candidate.group.namespace}/{candidate.group.name}"}
    if candidate.follows:
        annotations[SEEN_AT] = candidate.address
        if candidate.within:
            annotations[WITHIN] = ",".join(candidate.within)
    return {
        "apiVersion": "hostmesh.io/v1",
        "kind": "Host",
        "metadata": {"name": candidate.name, "annotations": annotations},
        "spec": {"addresses": [candidate.address]},
    }


def candidate(
    group: ObjectKey,
    name: str,
    hostname: str,
    address: str,
    peer: str,
    own: Iterable[str] = (),
    within: Sequence[str] = (),
) -> Candidate:
    """Return whom a request to join is from.

    Args:
        group: that of the token.
        name: that the host asked for; "" for its host name.
        hostname: the host's own, in any case.
        address: that the host asked for; "" for the one that it calls from.
        peer: where it calls from.
        own: the addresses that it says it has: one that is translated on the way is not among them.
        within: the blocks in which its address must be; none: anywhere.

    Raises:
        NotAdmittedError: no usable name or address.
    """
    chosen = name or hostname.lower()
    try:
        HostIdentity("cluster.local", chosen)
    except ValueError as error:
        cure = "join with --name NAME" if not name else "choose another one for --name"
        raise NotAdmittedError(f"{chosen!r} cannot be the name of a host ({error}): {cure}") from None
    found = canonical_address(address or peer)
    if found is None:
        raise NotAdmittedError(f"{address or peer!r} is not an IP address: join with --address IP")
    follows = not address and found in map(canonical_address, own)
    return Candidate(group, chosen, found, follows, tuple(within))


@dataclass(slots=True)
class Membership:
    """Which hosts are members of which group: kept with every change, so that nothing is searched."""

    _group: dict[str, ObjectKey] = field(default_factory=dict)
    _members: dict[ObjectKey, set[str]] = field(default_factory=dict)
    listening: dict[str, tuple[Listens, ...]] = field(default_factory=dict)
    """What was found listening on members of groups that adopt it."""

    def note(self, key: ObjectKey, item: ApiObject | None) -> None:
        """Take note that an object is (now) as given, or gone."""
        if key.kind != "Host":
            return
        old = self._group.pop(key.name, None)
        if item is None:
            self.listening.pop(key.name, None)
        if old is not None:
            self._members[old].discard(key.name)
            if not self._members[old]:
                del self._members[old]
        group = None if item is None else group_of(item)
        if group is not None:
            self._group[key.name] = group
            self._members.setdefault(group, set()).add(key.name)

    def group(self, host: str) -> ObjectKey | None:
        """Return the group of a host."""
        return self._group.get(host)

    def members(self, group: ObjectKey) -> list[str]:
        """Return the names of a group's members, sorted."""
        return sorted(self._members.get(group, ()))

    def owner(self, entry: ObjectKey, objects: Mapping[ObjectKey, ApiObject]) -> str | None:
        """Return the member whose WorkloadEntry an object is; None for all others."""
        item = objects.get(entry)
        group = None if item is None else item.metadata.annotations.get(GROUP_ANNOTATION)
        if group is None:
            return None
        key = ObjectKey("WorkloadGroup", entry.namespace, group)
        names = (host for host in self._members.get(key, ()) if entry_key(key, host) == entry)
        return next(names, None)


@dataclass(frozen=True, slots=True)
class Derived:
    """What a change means for members: entries to put and to delete, and what is not possible."""

    puts: tuple[ApiObject, ...] = ()
    deletes: tuple[ObjectKey, ...] = ()
    problems: tuple[Problem, ...] = ()


def derive(changed: Sequence[ApiObject], existing: Mapping[ObjectKey, ApiObject], membership: Membership) -> Derived:
    """Return what applying objects means for the WorkloadEntries of members.

    Args:
        changed: the objects to apply.
        existing: what is stored.
        membership: of what is stored.
    """
    new = {item.key: item for item in changed}
    hosts = {item.key.name for item in changed if item.key.kind == "Host"}
    for item in changed:
        if item.key.kind == "WorkloadGroup":
            hosts.update(membership.members(item.key))
    wanted: dict[ObjectKey, ApiObject] = {}
    gone: list[ObjectKey] = []
    problems: list[Problem] = []
    for name in sorted(hosts):
        host_key = ObjectKey("Host", "", name)
        host = new.get(host_key) or existing[host_key]
        before, group = membership.group(name), group_of(host)
        if before is not None and before != group:
            gone.append(entry_key(before, name))
        if group is None:
            problems += _unreadable(host)
            continue
        made = new.get(group) or existing.get(group)
        if made is None:
            problems.append(_problem(host, ("metadata", "annotations", MEMBER_OF), f"there is no {group}"))
            continue
        try:
            entry = member_entry(made, host, membership.listening.get(name, ()))
        except NotAdmittedError as error:
            problems.append(_problem(made, ("spec", "template"), str(error)))
            continue
        # Hosts choose their names, and `a` in group `b-c` has the entry that `c-a` in group `b` would have.
        taken = entry.key in existing and membership.owner(entry.key, existing) != name
        if taken or entry.key in wanted:
            message = f"{entry.key} is there and not of {group}: delete or rename it, or let the host have another name"
            problems.append(_problem(host, ("metadata", "name"), message))
            continue
        wanted[entry.key] = entry
    problems += _edits(changed, existing, wanted, membership)
    problems += [warning for item in changed for warning in _probes_elsewhere(item)]
    problems += [problem for item in changed for problem in _rule_problems(item)]
    puts = tuple(entry for key, entry in wanted.items() if key not in new)
    return Derived(puts, tuple(key for key in gone if key not in wanted), tuple(problems))


def _probes_elsewhere(item: ApiObject) -> Iterator[Problem]:
    """Yield a warning for a probe that no agent will do: of a name, which is not the member's own address."""
    probe = item.spec.probe if isinstance(item.spec, WorkloadGroupSpec) else None
    for way, looks in () if probe is None else (("httpGet", probe.http_get), ("tcpSocket", probe.tcp_socket)):
        host = None if looks is None else looks.host
        if host and host.lower() != "localhost" and canonical_address(host) is None:
            message = (
                f"members look at themselves alone, by an address or localhost: {host!r} counts as a failure; leave it "
                "out (and set the header Host with httpHeaders)"
            )
            path = ("spec", "probe", way, "host")
            yield replace(_problem(item, path, message), code="probe-elsewhere", severity="warning")


def _unreadable(host: ApiObject) -> Iterator[Problem]:
    if MEMBER_OF in host.metadata.annotations:
        text = host.metadata.annotations[MEMBER_OF]
        path = ("metadata", "annotations", MEMBER_OF)
        yield _problem(host, path, f"{text!r} names no group; write NAMESPACE/NAME, or leave the annotation out")


def _edits(
    changed: Iterable[ApiObject],
    existing: Mapping[ObjectKey, ApiObject],
    wanted: Mapping[ObjectKey, ApiObject],
    membership: Membership,
) -> Iterator[Problem]:
    """Yield a problem for each WorkloadEntry of a member that is applied with another text than its group gives it."""
    for item in changed:
        if item.key.kind != "WorkloadEntry":
            continue
        owner = membership.owner(item.key, existing)
        if owner is None and item.key not in wanted:
            continue
        should = wanted.get(item.key) or existing[item.key]
        if item.to_dict() != should.to_dict():
            group = item.key._replace(kind="WorkloadGroup", name=should.metadata.annotations[GROUP_ANNOTATION])
            message = f"it is made from {group}: edit the group, and all its members follow"
            yield _problem(item, _first_difference(item, should), message)


def _first_difference(item: ApiObject, should: ApiObject) -> tuple[str, ...]:
    mine, right = item.to_dict(), should.to_dict()
    for part in ("metadata", "spec"):
        one, other = mine.get(part, {}), right.get(part, {})
        for name in [*one, *other]:
            if one.get(name) != other.get(name):
                return (part, name)
    return ("spec",)


def refuse_deletion(
    keys: Sequence[ObjectKey], existing: Mapping[ObjectKey, ApiObject], membership: Membership
) -> tuple[list[ObjectKey], list[Problem]]:
    """Return what is deleted beside `keys`, and why it cannot be.

    With a member's Host its WorkloadEntry goes. A group with members that stay, and the WorkloadEntry of a member that
    stays, are not deleted.
    """
    going = set(keys)
    more: list[ObjectKey] = []
    problems: list[Problem] = []
    for key in dict.fromkeys(keys):
        item = existing.get(key)
        if item is None:
            continue
        if key.kind == "Host":
            group = membership.group(key.name)
            entry = None if group is None else entry_key(group, key.name)
            if entry is not None and entry not in going and entry in existing:
                more.append(entry)
        elif key.kind == "WorkloadGroup":
            staying = [name for name in membership.members(key) if ObjectKey("Host", "", name) not in going]
            if staying:
                names = ", ".join(staying)
                message = f"it has members: {names}; let them leave first (hostmesh host remove NAME)"
                problems.append(_problem(item, (), message))
        elif key.kind == "WorkloadEntry":
            owner = membership.owner(key, existing)
            if owner is not None and ObjectKey("Host", "", owner) not in going:
                group_name = item.metadata.annotations[GROUP_ANNOTATION]
                message = f"it is host {owner}'s as a member of WorkloadGroup {key.namespace}/{group_name}"
                problems.append(_problem(item, (), f"{message}; let it leave: hostmesh host remove {owner}"))
    return more, problems


def refusal_of(candidate: Candidate, existing: Mapping[ObjectKey, ApiObject]) -> str | None:
    """Return why a candidate cannot be admitted, as far as its name and its group tell; None if it can be.

    A member that comes again, from where it was, is welcome: a machine is installed anew.
    """
    if candidate.group not in existing:
        return f"there is no {candidate.group} any more: its operator must make it, and a new token"
    host = existing.get(ObjectKey("Host", "", candidate.name))
    if host is None:
        return None
    name, group = candidate.name, group_of(host)
    other = "join under another name (--name NAME)"
    if group is None:
        return (
            f"host {name!r} is registered, not as a member of a group: {other}, or join by a token of its own "
            f"(hostmesh token create {name}), or its operator must remove it (hostmesh host remove {name})"
        )
    if group != candidate.group:
        remove = f"its operator must remove it (hostmesh host remove {name})"
        return f"host {name!r} is a member of {group}: {other}, or {remove}"
    assert isinstance(host.spec, HostSpec)
    addresses = [canonical_address(each) for each in host.spec.addresses]
    if candidate.address not in addresses:
        return (
            f"host {name!r} is a member at {', '.join(host.spec.addresses)}, not at {candidate.address}: {other}, "
            f"or, if it has moved, its operator must remove it first (hostmesh host remove {name})"
        )
    return None


def is_member(candidate: Candidate, existing: Mapping[ObjectKey, ApiObject]) -> bool:
    """Tell whether the candidate has joined before and may join again as who it is."""
    return ObjectKey("Host", "", candidate.name) in existing and refusal_of(candidate, existing) is None


def _problem(item: ApiObject, path: tuple[str, ...], message: str) -> Problem:
    file, line, column = str(item.key), 0, 0
    if item.origin is not None:
        file, (line, column) = item.origin.file, item.origin.place(path)
    return Problem(file, line, column, ".".join(path), message, "group-member", key=item.key)
