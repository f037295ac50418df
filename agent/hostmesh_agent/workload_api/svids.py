"""The certificates that programs fetch: on this host's disk, so that a controller that is away stops nobody.

<state_dir>/workload-api/<slug>/svid.pem      0600 in 0700, root's alone
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final

import structlog

from hostmesh_agent.keyroom import read_one_file
from hostmesh_agent.rotation import Renewal, Rotation, Validity
from hostmesh_agent.state import State
from hostmesh_agent.svid import Svid, SvidError
from hostmesh_agent.tree import Tree
from hostmesh_api.identity import WorkloadIdentity, parse_identity

DIRECTORY: Final = "workload-api"
SVID_FILE: Final = "svid.pem"

Issue = Callable[[str], Awaitable[Svid]]

log = structlog.get_logger(__name__)


class WorkloadSvids:
    """Keeps a certificate for each identity of the host's workloads.

    Args:
        state: of this host.
        owner: (uid, gid) of the files: the agent's.
        issue: gets a new SVID for a SPIFFE ID from the controller, or raises EnrolError.
        now: aware time.
    """

    def __init__(
        self,
        state: State,
        owner: tuple[int, int],
        issue: Issue,
        now: Callable[[], datetime],
    ) -> None:
        self._state = state
        self._tree = Tree(state.directory, DIRECTORY, owner)
        self._issue = issue
        self._now = now
        self._rotation = Rotation(now)
        self._svids: dict[str, Svid] = {}
        self.identities: tuple[WorkloadIdentity, ...] | None = None
        """Of the host's workloads; None while no configuration is known."""
        self.bundle_pem = b""
        self.change = asyncio.Event()
        """Is set when what is served is another; the next change has another event."""

    async def apply(self, spiffe_ids: Sequence[str]) -> None:
        """Serve these identities from now on, and no others. What is not on disk is fetched in the background.

        Raises:
            StateError: the disk refuses.
        """
        identities = tuple(_workloads(spiffe_ids))
        bundle_pem = (await asyncio.to_thread(self._state.files)).bundle_pem
        svids = await asyncio.to_thread(self._read, identities, bundle_pem)
        self.identities, self.bundle_pem, self._svids = identities, bundle_pem, svids
        await asyncio.to_thread(self._tree.keep_only, {each.slug for each in identities})
        self._rotation.keep(
            {each.uri: Renewal(_validity(svids.get(each.uri)), partial(self._renew, each)) for each in identities}
        )
        self._changed()

    def held(self, identities: Sequence[WorkloadIdentity]) -> list[Svid]:
        """Return the certificates that are there and have not ended, in the order of the identities."""
        now = self._now()
        found = (self._svids.get(each.uri) for each in identities)
        return [each for each in found if each is not None and each.not_after > now]

    def validities(self) -> Mapping[str, Validity | None]:
        """Return what is known of each certificate; None: it is not there yet."""
        return self._rotation.validities()

    async def run(self) -> None:
        """Fetch and renew what is due, until cancelled."""
        await self._rotation.run()

    def look_again(self) -> None:
        """Look at once at what is due and at what is missing: the clock was set, or the machine has slept."""
        self._rotation.look_again()

    async def _renew(self, identity: WorkloadIdentity) -> Validity:
        svid = await self._found(identity)
        if svid is None:
            svid = await self._issue(identity.uri)
            await asyncio.to_thread(self._tree.write, identity.slug, SVID_FILE, svid.one_file)
        self.bundle_pem = (await asyncio.to_thread(self._state.files)).bundle_pem
        if self.identities is not None and identity in self.identities:
            self._svids[identity.uri] = svid
            self._changed()
        return Validity(svid.serial, svid.not_before, svid.not_after)

    async def _found(self, identity: WorkloadIdentity) -> Svid | None:
        """Return what is on disk and good by now, where there is none: it may not have been by the clock of then."""
        if self.validities().get(identity.uri) is not None:
            return None
        bundle_pem = (await asyncio.to_thread(self._state.files)).bundle_pem
        return (await asyncio.to_thread(self._read, [identity], bundle_pem)).get(identity.uri)

    def _changed(self) -> None:
        self.change.set()
        self.change = asyncio.Event()

    def _read(self, identities: Sequence[WorkloadIdentity], bundle_pem: bytes) -> dict[str, Svid]:
        found: dict[str, Svid] = {}
        for each in identities:
            data = self._tree.read(each.slug, SVID_FILE)
            if data is None:
                continue
            try:
                found[each.uri] = read_one_file(data, bundle_pem, each, self._now())
            except SvidError as error:
                log.warning("workload certificate not usable", spiffe_id=each.uri, reason=str(error))
        return found


def _workloads(spiffe_ids: Sequence[str]) -> list[WorkloadIdentity]:
    """Return the identities of workloads, without doubles: never the host's own, with which one is the agent."""
    parsed = map(parse_identity, dict.fromkeys(spiffe_ids))
    return [each for each in parsed if isinstance(each, WorkloadIdentity)]


def _validity(svid: Svid | None) -> Validity | None:
    return None if svid is None else Validity(svid.serial, svid.not_before, svid.not_after)
