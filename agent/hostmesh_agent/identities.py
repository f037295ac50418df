"""Keeps every certificate of the host alive: the agent's own, and those that Envoy reads."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from hostmesh_agent import enrol
from hostmesh_agent.certs import Certificates, Held, Identity, Wanted
from hostmesh_agent.keyroom import validity
from hostmesh_agent.rotation import Renewal, Rotation, Validity
from hostmesh_agent.state import State
from hostmesh_agent.svid import Svid

AGENT: Final = "agent"
"""Name of the agent's own certificate among the renewals; the others are named by their SPIFFE ID."""
APPLY_WITHIN_S: Final = 20.0
"""How long a configuration waits for its certificates; what is missing then is fetched in the background."""

log = structlog.get_logger(__name__)


class Identities:
    """Applies what a configuration wants and renews it.

    Args:
        changed: called after a certificate came or was replaced.
        host_renewed: called after the agent's own was: its connections should be opened anew.
    """

    def __init__(
        self,
        state: State,
        certificates: Certificates,
        now: Callable[[], datetime],
        changed: Callable[[], None],
        host_renewed: Callable[[], None],
    ) -> None:
        self._state = state
        self._certificates = certificates
        self._now = now
        self._changed = changed
        self._host_renewed = host_renewed
        self._rotation = Rotation(now)
        self._missing: dict[str, str] = {}

    async def run(self) -> None:
        await self._rotation.run()

    def validities(self) -> Mapping[str, Validity]:
        """Return those that are in place and known, by SPIFFE ID; `AGENT` is the agent's own."""
        found = self._rotation.validities()
        return {name: each for name, each in found.items() if each is not None}

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
        serial, not_before, not_after = await asyncio.to_thread(self._own)
        renewals = {AGENT: Renewal(Validity(serial, not_before, not_after), self._renew_host)}
        for identity in want.identities:
            svid = held.svids.get(identity.uri)
            renewals[identity.uri] = Renewal(None if svid is None else _validity(svid), partial(self._renew, identity))
        self._rotation.keep(renewals)
        self._changed()

    def _own(self) -> tuple[str, datetime, datetime]:
        return validity(self._state.files().chain_pem)

    async def sweep(self, want: Wanted) -> None:
        """Remove the certificates that nobody uses any more; call it when Envoy has let go of them."""
        await self._certificates.sweep(want)

    async def _renew(self, identity: Identity) -> Validity:
        svid = await self._certificates.renew(identity)
        self._changed()
        return _validity(svid)

    async def _renew_host(self) -> Validity:
        svid = await enrol.renew_host(self._state, self._now)
        self._host_renewed()
        self._changed()
        return _validity(svid)


def _validity(svid: Svid) -> Validity:
    return Validity(svid.serial, svid.not_before, svid.not_after)
