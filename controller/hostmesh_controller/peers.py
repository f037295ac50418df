"""Who calls: the host named by the verified client certificate, if the store still knows that certificate.

TLS has proven the key and the chain before anything here runs. Here it is decided whom the certificate names, and
whether that host may still speak: it is registered, the certificate was issued to it, and no newer one of it is in use.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, Protocol

import grpc
import structlog
from cryptography import x509

from hostmesh_api.identity import HostIdentity, parse_identity
from hostmesh_controller.store import CertificateRecord, StoreError

Context = grpc.aio.ServicerContext[Any, Any]

SUPERSEDED_GRACE: Final = timedelta(minutes=5)
"""How long the old certificate of a host is good after the new one was first used: its open channels move over."""

_log: Final = structlog.get_logger(__name__)


class RefusedError(Exception):
    """The call ends here: the peer is told `message`, which says who must act."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class CertificateStore(Protocol):
    """What peers need of the store."""

    def certificates(self, host: str) -> list[CertificateRecord]: ...
    def certificates_epoch(self, host: str) -> int: ...
    def certificate_used(self, host: str, serial: str, now: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a client certificate says; `serial` as in CertificateRecord."""

    identity: HostIdentity
    serial: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class _Issued:
    """The certificates of one host, as they were in an epoch of the store; its workloads' are left out."""

    epoch: int
    records: tuple[CertificateRecord, ...]


class Peers:
    """Recognises callers. One per process: it remembers which certificate each host uses."""

    def __init__(
        self,
        store: CertificateStore,
        trust_domain: str,
        registered: Callable[[str], bool],
        now: Callable[[], datetime],
    ) -> None:
        """`registered` tells whether the registry has the host."""
        self._store = store
        self._trust_domain = trust_domain
        self._registered = registered
        self._now = now
        self._pins = Pins()
        self._issued: dict[str, _Issued] = {}

    async def host_of(self, context: Context) -> HostIdentity:
        """Return the host that calls, or end the call.

        It ends with UNAUTHENTICATED where there is no host certificate, with PERMISSION_DENIED where the host may not
        speak any more.
        """
        try:
            peer = peer_certificate(context, self._trust_domain, self._now())
            own = await self._issued_to(peer.identity)
            self._check(peer, own)
            await self._note_use(peer, own)
        except RefusedError as refused:
            _log.warning("peer_refused", peer=context.peer(), reason=refused.message)
            await context.abort(refused.code, refused.message)
            raise  # abort never returns
        except StoreError as error:
            _log.error("peer_not_looked_up", peer=context.peer(), error=str(error))
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the controller's store fails: its operator must act")
            raise  # abort never returns
        return peer.identity

    async def name_of(self, context: Context) -> str:
        """Return the name of the host that calls; see `host_of`."""
        return (await self.host_of(context)).host

    async def _issued_to(self, identity: HostIdentity) -> Sequence[CertificateRecord]:
        """Return the host's own certificates. A thread and the database for each report were half of its cost."""
        epoch = self._store.certificates_epoch(identity.host)
        known = self._issued.get(identity.host)
        if known is None or known.epoch != epoch:
            found = await asyncio.to_thread(self._store.certificates, identity.host)
            known = _Issued(epoch, tuple(each for each in found if each.spiffe_id == identity.uri))
            self._issued[identity.host] = known
        return known.records

    async def _note_use(self, peer: PeerCertificate, own: Sequence[CertificateRecord]) -> None:
        """Keep, once for each certificate, that it is in use: what it replaced must not come back after a restart."""
        if any(each.serial == peer.serial and each.used_at is None for each in own):
            await asyncio.to_thread(self._store.certificate_used, peer.identity.host, peer.serial, self._now())

    def _check(self, peer: PeerCertificate, own: Sequence[CertificateRecord]) -> None:
        host = peer.identity.host
        if not self._registered(host):
            msg = f"host {host!r} is not registered: the operator must register it (hostmesh register)"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
        problem = self._pins.use(host, peer.serial, own, self._now())
        if problem:
            msg = f"host {host!r}: {problem}: the host must join again with a new token (hostmesh token create)"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)


@dataclass(frozen=True, slots=True)
class _Use:
    serial: str
    since: datetime


class Pins:
    """Which certificates of a host are good: the newest one it has used, and those issued after it.

    A renewed certificate whose answer was lost on the way does no harm: the old one stays good until a newer one is
    really used. What was used is in the records too, so that it outlives a restart of the controller.
    """

    def __init__(self) -> None:
        self._used: dict[str, _Use] = {}

    def use(self, host: str, serial: str, records: Sequence[CertificateRecord], now: datetime) -> str | None:
        """Take note that the host uses a certificate; return why it must not, or None if it may.

        Args:
            host: its name.
            serial: of the certificate it uses.
            records: the host's own certificates that the store knows, oldest first.
            now: aware.
        """
        serials = [each.serial for each in records]
        if serial not in serials:
            return "its certificate is not, or no longer, known to the controller"
        used = self._used.get(host) or _last_used(records)
        if used is None or used.serial not in serials or serials.index(serial) > serials.index(used.serial):
            self._used[host] = _Use(serial, now)
        elif serials.index(serial) < serials.index(used.serial) and now - used.since > SUPERSEDED_GRACE:
            return "its certificate was replaced by a newer one that is in use"
        return None


def _last_used(records: Sequence[CertificateRecord]) -> _Use | None:
    used = [_Use(each.serial, each.used_at) for each in records if each.used_at is not None]
    return used[-1] if used else None


def peer_certificate(context: Context, trust_domain: str, now: datetime) -> PeerCertificate:
    """Read the client certificate of a call that came over mutual TLS.

    Raises:
        RefusedError: there is none, it does not name exactly one host of the trust domain, or it has expired since the
            connection was made.
    """
    pem = [bytes(each) for each in context.auth_context().get("x509_pem_cert", ())]
    if len(pem) != 1:
        raise _not_a_host("no client certificate was presented")
    peer = _read(pem[0])
    if peer.identity.trust_domain != trust_domain:
        raise _not_a_host(f"the client certificate is not of the trust domain {trust_domain}")
    if peer.not_after <= now:
        raise _not_a_host("the client certificate expired while the connection was open")
    return peer


@lru_cache(4096)
def _read(pem: bytes) -> PeerCertificate:
    """Read a certificate; see `peer_certificate`. Kept: an agent calls with the same one every time."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        identity = parse_identity(uris[0]) if len(uris) == 1 else None
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise _not_a_host("the client certificate names no SPIFFE ID") from error
    if not isinstance(identity, HostIdentity):
        raise _not_a_host("the client certificate is not a host's")
    return PeerCertificate(identity, f"{certificate.serial_number:032x}", certificate.not_valid_after_utc)


def _not_a_host(why: str) -> RefusedError:
    msg = f"{why}: the agent must call with the certificate of its host"
    return RefusedError(grpc.StatusCode.UNAUTHENTICATED, msg)
