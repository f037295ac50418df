"""The roots of a mesh and how one takes another's place. Pure.

    prepare ──▶ PREPARED ──activate──▶ ACTIVE ──(another is activated)──▶ OLD ──taint──▶ TAINTED ──revoke──▶ REVOKED
                    └──────────────────────────── revoke ─────────────────────────────────────────────────────┘

Hosts trust every root that is not revoked; only the active one signs. A prepared root signs once everybody trusts it,
an old one is taken from the bundles once nobody has a certificate of it: so no two hosts ever meet that do not trust
each other. `Roots` has exactly one active and at most one prepared root, in whatever order the steps are tried.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

ID_DIGITS: Final = 12
MAX_REVOKED: Final = 8
"""How many that are revoked are remembered: for people, and for hosts that come back with a certificate of one."""
MAX_RENEW_WITHIN: Final = timedelta(hours=1)
_FORMAT: Final = 1


class StepError(Exception):
    """A step that cannot be taken now; the message says what must come first."""


class RootState(StrEnum):
    PREPARED = "prepared"
    """Trusted by those who have heard of it; signs nothing yet."""
    ACTIVE = "active"
    """Signs."""
    OLD = "old"
    """Signs no more; its certificates are good, and are replaced as they come to their half."""
    TAINTED = "tainted"
    """Its certificates are replaced at once."""
    REVOKED = "revoked"
    """Trusted by nobody."""


class Source(StrEnum):
    """Who holds the key of a root."""

    SELF_SIGNED = "self-signed"
    FILES = "files"
    VAULT = "vault"


@dataclass(frozen=True, slots=True)
class Root:
    """One root.

    Attributes:
        id: the first digits of the fingerprint.
        fingerprint: SHA-256 of its certificate, hexadecimal.
        source: who holds its key.
        state: see above.
        certificate_pem: its certificate; others follow that came with it to be trusted beside it.
        file: what the names of its files have after `root` and `intermediate`; "" for the first of a mesh.
        prepared_at: when it came; aware, as all of these; the others are None until they happened.
        activated_at: since when it signs.
        replaced_at: until when it signed.
        tainted_at: since when its certificates are replaced.
        revoked_at: since when it is trusted no more.
        renew_within: over which time the renewals after the taint are spread.
        compromised: somebody else may have its key: nothing of it counts any more, for nobody.
    """

    id: str
    fingerprint: str
    source: Source
    state: RootState
    certificate_pem: str = field(repr=False)
    file: str
    prepared_at: datetime
    activated_at: datetime | None = None
    replaced_at: datetime | None = None
    tainted_at: datetime | None = None
    revoked_at: datetime | None = None
    renew_within: timedelta = timedelta()
    compromised: bool = False

    @property
    def trusted(self) -> bool:
        return self.state is not RootState.REVOKED


@dataclass(frozen=True, slots=True)
class Roots:
    """All roots of a trust domain, oldest first."""

    trust_domain: str
    items: tuple[Root, ...]

    @property
    def active(self) -> Root:
        return next(each for each in self.items if each.state is RootState.ACTIVE)

    @property
    def prepared(self) -> Root | None:
        return next((each for each in self.items if each.state is RootState.PREPARED), None)

    @property
    def trusted(self) -> tuple[Root, ...]:
        """Those in the bundles."""
        return tuple(each for each in self.items if each.trusted)

    @property
    def tainted(self) -> tuple[Root, ...]:
        return tuple(each for each in self.items if each.state is RootState.TAINTED)

    @property
    def retired(self) -> tuple[Root, ...]:
        """Those that are revoked because their time was over, and not because somebody got hold of a key."""
        return tuple(each for each in self.items if not each.trusted and not each.compromised)

    def by_fingerprint(self, fingerprint: str) -> Root | None:
        return next((each for each in self.items if each.fingerprint == fingerprint), None)

    def signing_at(self, moment: datetime) -> Root | None:
        """Return the root that signed at a moment; None if that is not known any more."""
        for each in reversed(self.items):
            since = each.activated_at
            if since is not None and since <= moment and (each.replaced_at is None or moment < each.replaced_at):
                return each
        return None


def first(trust_domain: str, root: Root, now: datetime) -> Roots:
    """Return the roots of a new mesh: one, which signs."""
    return Roots(trust_domain, (replace(root, state=RootState.ACTIVE, activated_at=now),))


def prepare(roots: Roots, root: Root) -> Roots:
    """Add a root that is to be the next one.

    Raises:
        StepError: there is one already, or the root was in the mesh before.
    """
    if roots.prepared is not None:
        msg = (
            f"root {roots.prepared.id} is prepared already: `hostmesh ca activate` makes it sign, "
            f"`hostmesh ca revoke {roots.prepared.id}` drops it"
        )
        raise StepError(msg)
    known = roots.by_fingerprint(root.fingerprint)
    if known is not None:
        msg = f"root {known.id} is {known.state} already: a new one must be another"
        raise StepError(msg)
    return replace(roots, items=(*roots.items, replace(root, state=RootState.PREPARED)))


def activate(roots: Roots, now: datetime) -> Roots:
    """Let the prepared root sign; the one that did is old.

    Raises:
        StepError: none is prepared.
    """
    new = roots.prepared
    if new is None:
        msg = "no root is prepared: run `hostmesh ca prepare` first"
        raise StepError(msg)
    before = roots.active
    return _with(
        _with(roots, replace(before, state=RootState.OLD, replaced_at=now)),
        replace(new, state=RootState.ACTIVE, activated_at=now),
    )


def taint(roots: Roots, root_id: str | None, now: datetime, within: timedelta) -> Roots:
    """Have every certificate of an old root renewed; without an ID, of the only one there is.

    Raises:
        StepError: it signs, or is not trusted, or there is none.
        ValueError: `within` is not from 0 to an hour.
    """
    if not timedelta() <= within <= MAX_RENEW_WITHIN:
        msg = f"the renewals can be spread over 0 to {MAX_RENEW_WITHIN}, not {within}"
        raise ValueError(msg)
    root = _chosen(roots, root_id, (RootState.OLD,), "taint")
    if root.state is RootState.ACTIVE:
        msg = f"root {root.id} signs: prepare another and activate that first (hostmesh ca prepare)"
        raise StepError(msg)
    if root.state is not RootState.OLD:
        msg = f"root {root.id} is {root.state}: only an old one, that has signed and does no more, can be tainted"
        raise StepError(msg)
    return _with(roots, replace(root, state=RootState.TAINTED, tainted_at=now, renew_within=within))


def revoke(roots: Roots, root_id: str | None, now: datetime, *, compromised: bool) -> Roots:
    """Take a tainted root, or one that was prepared in vain, from all bundles; without an ID, the only tainted one.

    One that is revoked already can become a compromised one.

    Raises:
        StepError: it signs, or its certificates were not replaced, or there is none.
    """
    root = _chosen(roots, root_id, (RootState.TAINTED,), "revoke")
    if root.state is RootState.ACTIVE:
        msg = f"root {root.id} signs: prepare another and activate that first (hostmesh ca prepare)"
        raise StepError(msg)
    if root.state is RootState.OLD:
        msg = f"root {root.id} is old: taint it first, so that its certificates are replaced (hostmesh ca taint)"
        raise StepError(msg)
    if root.state is RootState.REVOKED and (root.compromised or not compromised):
        msg = f"root {root.id} is revoked already"
        raise StepError(msg)
    revoked = replace(root, state=RootState.REVOKED, revoked_at=root.revoked_at or now, compromised=compromised)
    return _bounded(_with(roots, revoked))


def trusting(roots: Roots, fingerprint: str, certificate_pem: str) -> Roots:
    """Return the roots with what comes along with one of them exchanged."""
    found = roots.by_fingerprint(fingerprint)
    return roots if found is None else _with(roots, replace(found, certificate_pem=certificate_pem))


def _chosen(roots: Roots, root_id: str | None, states: tuple[RootState, ...], verb: str) -> Root:
    if root_id is None:
        found = [each for each in roots.items if each.state in states]
        what = f"{states[0]} root"
        if len(found) > 1:
            msg = f"there are several: name one of {', '.join(each.id for each in found)} (hostmesh ca {verb} ID)"
            raise StepError(msg)
    else:
        found = [each for each in roots.items if root_id and each.fingerprint.startswith(root_id.lower())]
        what = f"root {root_id!r}"
        if len(found) > 1:
            msg = f"{root_id!r} is the beginning of several: {', '.join(each.fingerprint for each in found)}"
            raise StepError(msg)
    if not found:
        first = ": first `hostmesh ca prepare` and `activate` another" if verb == "taint" and not root_id else ""
        msg = f"there is no {what} to {verb}{first}; see `hostmesh ca show`"
        raise StepError(msg)
    return found[0]


def _with(roots: Roots, root: Root) -> Roots:
    return replace(roots, items=tuple(root if each.id == root.id else each for each in roots.items))


def _bounded(roots: Roots) -> Roots:
    revoked = [each.id for each in roots.items if not each.trusted]
    forgotten = frozenset(revoked[: max(len(revoked) - MAX_REVOKED, 0)])
    return replace(roots, items=tuple(each for each in roots.items if each.id not in forgotten))


# On disk


def dumps(roots: Roots) -> str:
    """Return the roots as JSON; see `loads`."""
    items = [_plain(asdict(each)) for each in roots.items]
    return json.dumps({"format": _FORMAT, "trust_domain": roots.trust_domain, "roots": items}, indent=1) + "\n"


def loads(text: str) -> Roots:
    """Read what `dumps` wrote.

    Raises:
        ValueError: it is not that, or not a state that steps lead to.
    """
    try:
        document = json.loads(text)
        if document["format"] != _FORMAT:
            msg = f"its format {document['format']!r} is not known to this version"
            raise ValueError(msg)
        roots = Roots(str(document["trust_domain"]), tuple(map(_root, document["roots"])))
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"it lacks or misspells {error}"
        raise ValueError(msg) from error
    _check(roots.items)
    return roots


def _check(items: Iterable[Root]) -> None:
    states = [each.state for each in items]
    if states.count(RootState.ACTIVE) != 1 or states.count(RootState.PREPARED) > 1:
        msg = f"the states {', '.join(states) or 'of no root'} do not go together: one must be active"
        raise ValueError(msg)


_TIMES: Final = ("prepared_at", "activated_at", "replaced_at", "tainted_at", "revoked_at")


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    times = {name: None if document[name] is None else document[name].isoformat() for name in _TIMES}
    return {**document, **times, "renew_within": document["renew_within"].total_seconds()}


def _root(document: Mapping[str, Any]) -> Root:
    read: Callable[[str], datetime | None] = lambda name: (  # noqa: E731 - it is used once for each of the times
        None if document[name] is None else datetime.fromisoformat(document[name])
    )
    times: dict[str, Any] = {name: read(name) for name in _TIMES}
    return Root(
        id=str(document["id"]),
        fingerprint=str(document["fingerprint"]),
        source=Source(document["source"]),
        state=RootState(document["state"]),
        certificate_pem=str(document["certificate_pem"]),
        file=str(document["file"]),
        renew_within=timedelta(seconds=document["renew_within"]),
        compromised=bool(document["compromised"]),
        **times,
    )
