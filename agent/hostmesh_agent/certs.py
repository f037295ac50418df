"""Certificates for Envoy, as files: one directory for each identity of the host, below Envoy's working directory.

    certs/<slug>/{svid.pem,sds.json}     a workload's identity, or the host's own (slug "host")
    certs/roots/{bundle.pem,sds.json}    every root to trust

Envoy watches the directories: a rename of svid.pem into one of them is the whole rotation. What is on disk and good is
kept whether or not the controller answers.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent.enrol import EnrolError
from hostmesh_agent.keyroom import checked, read_one_file, roots, standing
from hostmesh_agent.state import State, StateError
from hostmesh_agent.svid import Svid, SvidError
from hostmesh_agent.tree import Tree
from hostmesh_api.identity import HostIdentity, WorkloadIdentity, parse_identity
from hostmesh_api.v1.hostmesh_pb2 import HostConfig
from hostmesh_api.wire import ROOTS, ROOTS_SECRET, SVID_SECRET

SVID_FILE: Final = "svid.pem"
BUNDLE_FILE: Final = "bundle.pem"
SDS_FILE: Final = "sds.json"
CERTS: Final = "certs"

_SECRET_TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a type's name
_ROOTS: Final = ROOTS.removeprefix(f"{CERTS}/")
_PARALLEL: Final = 8
"""Certificates asked for at once: a host with many workloads must not wait for each in turn, nor storm."""

Identity = WorkloadIdentity | HostIdentity
Issue = Callable[[str], Awaitable[Svid]]

_log: Final = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What Envoy needs on this host. `identities` has no doubles and always holds the host's own.

    Certificates of the `tainted` roots (SHA-256, hexadecimal) are renewed soon, spread over `renew_within`. `refused`
    are joinings of the host whose certificates others refuse.
    """

    identities: tuple[Identity, ...]
    bundle_pem: bytes = field(repr=False, default=b"")
    tainted: tuple[str, ...] = ()
    renew_within: timedelta = timedelta()
    refused: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Held:
    """What Envoy has: good SVIDs by SPIFFE ID, why others are missing, and the roots (SHA-256, hexadecimal)."""

    svids: Mapping[str, Svid]
    missing: Mapping[str, str]
    roots: tuple[str, ...] = ()


def wanted(config: HostConfig, host: HostIdentity) -> Wanted:
    """Read what a HostConfig asks for.

    Raises:
        ValueError: it names an identity outside of the host's trust domain, or another host's.
    """
    outbound = config.outbound_spiffe_id or host.uri
    uris = dict.fromkeys([host.uri, *(each.spiffe_id for each in config.workloads), outbound])
    return Wanted(
        tuple(_own(uri, host) for uri in uris),
        config.bundle_pem,
        tuple(config.tainted_roots),
        timedelta(milliseconds=config.renew_within_ms),
        frozenset(config.refused_enrolments),
    )


class Certificates:
    """The files. One task at a time may call `apply`, `renew` and `sweep` (they lock)."""

    def __init__(
        self,
        state: State,
        envoy_dir: Path,
        owner: tuple[int, int],
        issue: Issue,
        now: Callable[[], datetime],
        renew_own: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Nothing is touched yet.

        Args:
            state: of this host.
            envoy_dir: Envoy's working directory, which exists.
            owner: Envoy's (uid, gid).
            issue: gets a new SVID for a SPIFFE ID from the controller, or raises EnrolError.
            now: aware time.
            renew_own: gets a new certificate for the host itself, with the roots of today, or raises EnrolError.
        """
        self._state = state
        self._renew_own = renew_own
        self._tree = Tree(envoy_dir, CERTS, owner)
        self._issue = issue
        self._now = now
        self._lock = asyncio.Lock()
        self._refused_pem = b""
        """The roots that were offered last, where they were refused."""

    async def apply(self, want: Wanted) -> Held:
        """Make sure that every identity has a good SVID and the roots are those of the bundle.

        Good ones stay as they are. One that cannot be had is reported as missing and holds up no other.

        Raises:
            StateError: the disk refuses, or the host's own identity is damaged.
        """
        async with self._lock:
            await self._follow_roots(want.bundle_pem)
            svids, trusted = await asyncio.to_thread(self._good_ones, want)
            missing: dict[str, str] = {}
            slots = asyncio.Semaphore(_PARALLEL)

            async def fill(identity: Identity) -> None:
                try:
                    async with slots:
                        svid = await self._issue(identity.uri)
                    await asyncio.to_thread(self._put, identity, svid)
                except (EnrolError, StateError) as error:
                    missing[identity.uri] = str(error)
                    _log.error("certificate_missing", spiffe_id=identity.uri, reason=str(error))
                else:
                    svids[identity.uri] = svid

            async with asyncio.TaskGroup() as group:
                for identity in want.identities:
                    if identity.uri not in svids:
                        group.create_task(fill(identity))
            return Held(svids, missing, trusted)

    async def renew(self, identity: Identity) -> Svid:
        """Get a new SVID for the identity and put it in the old one's place; the old one stays if that fails.

        Raises:
            EnrolError: the controller did not give it.
            StateError: the disk refuses.
        """
        async with self._lock:
            svid = await self._issue(identity.uri)
            await asyncio.to_thread(self._put, identity, svid)
            return svid

    async def found(self, identity: Identity) -> Svid | None:
        """Return the SVID on disk if it is good by now, None if not. Nobody is asked.

        One that was not good when it was looked at first can be: the clock was wrong then.

        Raises:
            StateError: the disk refuses.
        """
        async with self._lock:
            return await asyncio.to_thread(lambda: self._good_one(identity, self._put_roots(self._refused_pem)))

    async def follow_refused_roots(self) -> tuple[str, ...]:
        """Take the roots that were refused, if they are usable by now; return those that are trusted.

        Raises:
            StateError: the host's own identity is damaged.
        """
        async with self._lock:
            return await asyncio.to_thread(lambda: roots(self._put_roots(self._refused_pem)))

    async def sweep(self, want: Wanted) -> tuple[str, ...]:
        """Remove the directories of identities that are wanted no more; return their names.

        To be called when Envoy has no listener and no cluster left that names them.
        """
        keep = {each.slug for each in want.identities} | {_ROOTS}
        async with self._lock:
            removed = await asyncio.to_thread(self._tree.keep_only, keep)
        if removed:
            _log.info("certificates_removed", slugs=removed)
        return removed

    async def _follow_roots(self, offered_pem: bytes) -> None:
        """Get a new certificate for the host if its own is of no root that is offered: it was away for too long."""
        if self._renew_own is None or await asyncio.to_thread(self._covers, offered_pem):
            return
        _log.warning("host_certificate_of_a_root_that_is_gone")
        try:
            await self._renew_own()
        except EnrolError as error:
            _log.error("host_certificate_not_renewed", reason=str(error))

    def _covers(self, offered_pem: bytes) -> bool:
        files = self._state.files()
        if not offered_pem or offered_pem == files.bundle_pem:
            return True
        try:
            return standing(files.chain_pem, offered_pem).root != ""
        except SvidError:
            return True  # it is not a bundle, which is told where it is refused

    def _good_ones(self, want: Wanted) -> tuple[dict[str, Svid], tuple[str, ...]]:
        """Write the roots; return the SVIDs that are on disk and good, with all that belongs to them written."""
        bundle_pem = self._put_roots(want.bundle_pem)
        svids: dict[str, Svid] = {}
        for identity in want.identities:
            svid = self._good_one(identity, bundle_pem)
            if svid is not None:
                svids[identity.uri] = svid
        return svids, roots(bundle_pem)

    def _good_one(self, identity: Identity, bundle_pem: bytes) -> Svid | None:
        svid = self._read(identity, bundle_pem)
        if svid is not None:
            try:
                # Also what a crash between two files left out.
                self._put(identity, svid)
            except StateError as error:
                # It is there and good: a full disk takes it from nobody.
                _log.error("certificate_not_written", spiffe_id=identity.uri, reason=str(error))
        return svid

    def _read(self, identity: Identity, bundle_pem: bytes) -> Svid | None:
        data = self._tree.read(identity.slug, SVID_FILE)
        if data is None:
            return None
        try:
            return read_one_file(data, bundle_pem, identity, self._now())
        except SvidError as error:
            _log.warning("certificate_not_usable", spiffe_id=identity.uri, reason=str(error))
            return None

    def _put(self, identity: Identity, svid: Svid) -> None:
        self._tree.write(identity.slug, SVID_FILE, svid.one_file)
        self._tree.write(identity.slug, SDS_FILE, svid_sds(f"{CERTS}/{identity.slug}"))

    def _put_roots(self, offered_pem: bytes) -> bytes:
        """Write the roots, the offered ones if they are usable; return what was written.

        A bundle by which this host's own certificate is not good would cut the host off: such a one is a mistake of
        the controller, and the old one stays.
        """
        files = self._state.files()
        bundle_pem = files.bundle_pem
        self._refused_pem = b""
        if offered_pem and offered_pem != bundle_pem:
            try:
                checked(files.key_pem, files.chain_pem, offered_pem, self._state.host().identity, self._now())
            except SvidError as error:
                _log.error("bundle_refused", reason=str(error))
                self._refused_pem = offered_pem
            else:
                bundle_pem = self._kept_bundle(offered_pem, files.bundle_pem)
        try:
            self._tree.write(_ROOTS, BUNDLE_FILE, bundle_pem)
            self._tree.write(_ROOTS, SDS_FILE, roots_sds(f"{CERTS}/{_ROOTS}"))
        except StateError as error:
            _log.error("roots_not_written", reason=str(error))
        return bundle_pem

    def _kept_bundle(self, offered_pem: bytes, before_pem: bytes) -> bytes:
        """Keep the roots that came; return those that count: where the disk refuses, the ones before."""
        try:
            self._state.save_bundle(offered_pem)
        except StateError as error:
            _log.error("bundle_not_written", reason=str(error))
            return before_pem
        return offered_pem


def svid_sds(directory: str) -> bytes:
    """Return sds.json of an SVID's directory, named relative to Envoy's working directory."""
    file = {"filename": f"{directory}/{SVID_FILE}"}
    certificate = {"certificate_chain": file, "private_key": file, "watched_directory": {"path": directory}}
    return _sds({"name": SVID_SECRET, "tls_certificate": certificate})


def roots_sds(directory: str) -> bytes:
    """Return sds.json of the roots' directory, named relative to Envoy's working directory."""
    context = {"trusted_ca": {"filename": f"{directory}/{BUNDLE_FILE}"}, "watched_directory": {"path": directory}}
    return _sds({"name": ROOTS_SECRET, "validation_context": context})


def _sds(secret: Mapping[str, Any]) -> bytes:
    return json.dumps({"resources": [{"@type": _SECRET_TYPE, **secret}]}, indent=1).encode() + b"\n"


def _own(uri: str, host: HostIdentity) -> Identity:
    identity = parse_identity(uri)
    if identity.trust_domain != host.trust_domain or (isinstance(identity, HostIdentity) and identity != host):
        msg = f"{uri} is not an identity of host {host.uri}: the controller is at fault"
        raise ValueError(msg)
    return identity
