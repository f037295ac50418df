"""Keeps every certificate of the host alive: the agent's own, and those that Envoy reads."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from hostmesh_agent import enrol
from hostmesh_agent.certs import Certificates, Held, Identity, Wanted
from hostmesh_agent.keyroom import standing
from hostmesh_agent.rotation import Renewal, Rotation, Validity
from hostmesh_agent.state import State
from hostmesh_agent.svid import Svid

AGENT: Final = "agent"
"""Name of the agent's own certificate among the renewals; the others are named by their SPIFFE ID."""
APPLY_WITHIN_S: Final = 20.0
"""How long a configuration waits for its certificates; what is missing then is fetched in the background."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Replaced:
    """A certificate whose place another one has taken on disk."""

    spiffe_id: str
    validity: Validity


class Identities:
    """Applies what a configuration wants and renews it.

    Args:
        changed: called after a certificate came or was replaced.
        host_renewed: called after the agent's own was: its connections should be opened anew.
        refused_replaced: called after all were replaced that others refuse: connections that were opened with one are
            of no use.
    """

    def __init__(
        self,
        state: State,
        certificates: Certificates,
        now: Callable[[], datetime],
        changed: Callable[[], None],
        host_renewed: Callable[[], None],
        refused_replaced: Callable[[], Awaitable[None]],
    ) -> None:
        self._state = state
        self._certificates = certificates
        self._now = now
        self._changed = changed
        self._host_renewed = host_renewed
        self._refused_replaced = refused_replaced
        self._rotation = Rotation(now)
        self._look_at_roots = asyncio.Event()
        self._missing: dict[str, str] = {}
        self._roots: tuple[str, ...] = ()
        self._replaced: dict[str, Replaced] = {}
        self._refused: frozenset[str] = frozenset()
        self._in_use: dict[str, str] = {}
        """The enrolment of each certificate, by SPIFFE ID."""
        self._were_in_use: set[str] = set()
        """Enrolments of certificates that Envoy may have connections of."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._rotation.run())
            group.create_task(self._follow_roots())

    async def tried(self) -> None:
        """Wait until each certificate that was missing at the start was asked for once."""
        await self._rotation.tried()

    def look_again(self) -> None:
        """Look at once at what is due, and at what was not good: the clock was set, or the machine has slept."""
        self._look_at_roots.set()
        self._rotation.look_again()

    def validities(self) -> Mapping[str, Validity]:
        """Return those that are in place and known, by SPIFFE ID; `AGENT` is the agent's own."""
        found = self._rotation.validities()
        return {name: each for name, each in found.items() if each is not None}

    def roots(self) -> tuple[str, ...]:
        """Return the roots that are trusted: SHA-256, hexadecimal."""
        return self._roots

    def replaced(self, presented: Callable[[str], bool] | None = None) -> Sequence[Replaced]:
        """Return certificates that Envoy may show still, though new ones are in their place.

        `presented` tells of a serial whether Envoy has it loaded: those that it has not are forgotten.
        """
        if presented is not None:
            self._replaced = {serial: each for serial, each in self._replaced.items() if presented(serial)}
        return tuple(self._replaced.values())

    def missing(self) -> Mapping[str, str]:
        """Return why certificates are missing, by SPIFFE ID."""
        here = self.validities()
        return {name: why for name, why in self._missing.items() if name not in here}

    def returned(self, svid: Svid) -> None:
        """Take note that the host came back under a new certificate of its own: what could not be renewed can be."""
        self._rotation.replaced(AGENT, _validity(svid))
        self._host_renewed()
        self._changed()

    async def apply(self, want: Wanted) -> None:
        """Put in place what can be had now, and keep trying for the rest.

        Raises:
            StateError: the disk refuses, or the host's own identity is damaged.
        """
        held = Held({}, {each.uri: "it was not issued in time" for each in want.identities})
        try:
            async with asyncio.timeout(APPLY_WITHIN_S):
                held = await self._certificates.apply(want)
        except TimeoutError:
            log.error("certificates took too long", within_s=APPLY_WITHIN_S)
        self._missing = dict(held.missing)
        self._roots = held.roots or self._roots
        own, enrolment = await asyncio.to_thread(self._own)
        before = self.validities()
        renewals = {AGENT: Renewal(own, self._renew_host)}
        for identity in want.identities:
            svid = held.svids.get(identity.uri)
            # Of a joining before this one: others may refuse it.
            known = None if svid is None else replace(_validity(svid), stale=svid.enrolment != enrolment)
            renewals[identity.uri] = Renewal(known, partial(self._renew, identity))
            self._note_replaced(identity, before.get(identity.uri), known)
        self._rotation.keep(renewals, want.tainted, want.renew_within)
        self._changed()
        self._refused = want.refused
        self._in_use = {uri: svid.enrolment for uri, svid in held.svids.items()}
        await self._let_go_of_refused()

    def _note_replaced(self, identity: Identity, before: Validity | None, now: Validity | None) -> None:
        if before is not None and now is not None and before.serial != now.serial:
            self._replaced[before.serial] = Replaced(identity.uri, before)

    def _own(self) -> tuple[Validity, str]:
        files = self._state.files()
        found = standing(files.chain_pem, files.bundle_pem)
        return Validity(found.serial, found.not_before, found.not_after, found.root), found.enrolment

    async def sweep(self, want: Wanted) -> None:
        """Remove the certificates that nobody uses any more; call it when Envoy has let go of them."""
        await self._certificates.sweep(want)

    async def _follow_roots(self) -> None:
        while True:
            await self._look_at_roots.wait()
            self._look_at_roots.clear()
            try:
                self._roots = await self._certificates.follow_refused_roots()
            except Exception as error:
                # Whatever it was: a loop that ends ends the host's identity.
                log.exception("roots not looked at", reason=str(error))
            self._changed()

    async def _renew(self, identity: Identity) -> Validity:
        before = self.validities().get(identity.uri)
        # Where there is none, one may be on disk that was not good by the clock of then.
        svid = None if before is not None else await self._certificates.found(identity)
        if svid is None:
            svid = await self._certificates.renew(identity)
            renewed = _validity(svid)
        else:
            _, enrolment = await asyncio.to_thread(self._own)
            renewed = replace(_validity(svid), stale=svid.enrolment != enrolment)
        self._note_replaced(identity, before, renewed)
        self._changed()
        self._in_use[identity.uri] = svid.enrolment
        await self._let_go_of_refused()
        return renewed

    async def _let_go_of_refused(self) -> None:
        """Once no certificate that others refuse is in use any more, have what was opened with one opened anew."""
        self._were_in_use |= set(self._in_use.values())
        if self._were_in_use & self._refused and not self._refused & set(self._in_use.values()):
            self._were_in_use -= self._refused
            await self._refused_replaced()

    async def _renew_host(self) -> Validity:
        svid = await enrol.renew_host(self._state, self._now)
        self._host_renewed()
        self._changed()
        return _validity(svid)


def _validity(svid: Svid) -> Validity:
    return Validity(svid.serial, svid.not_before, svid.not_after, svid.root)
