"""Who calls: the host named by the verified client certificate, if the store still knows that certificate.

TLS has proven the key and the chain before anything here runs. Here it is decided whom the certificate names, and
whether that host may still speak: it is registered, the certificate was issued to it, and no newer one of it is in use.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, Protocol
from urllib.parse import unquote

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from hostmesh_api.identity import HostIdentity, parse_identity
from hostmesh_controller.enrolments import Enrolments
from hostmesh_controller.quarantine import Quarantine
from hostmesh_controller.store import CertificateRecord, StoreError

Context = grpc.aio.ServicerContext[Any, Any]

SUPERSEDED_GRACE: Final = timedelta(minutes=5)
"""How long the old certificate of a host is good after the new one was first used: its open channels move over."""

_REUSED: Final = b"true"
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


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """What a client certificate says.

    `serial` and `key_sha256` as in CertificateRecord, `enrolment` as in EnrolmentRecord or "".
    """

    identity: HostIdentity
    serial: str
    not_after: datetime
    key_sha256: str
    enrolment: str = ""


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
        enrolments: Enrolments,
        quarantine: Quarantine,
    ) -> None:
        """`registered` tells whether the registry has the host."""
        self._store = store
        self._enrolments = enrolments
        self._quarantine = quarantine
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
            await self._admit(peer)
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

    async def _admit(self, peer: PeerCertificate) -> None:
        host, own = peer.identity.host, await self._issued_to(peer.identity)
        self._check_host(peer)
        # Others may have the key of a root, one that was retired or is a company's: a serial is no secret.
        own = [each for each in own if each.key_sha256 in {peer.key_sha256, ""} or each.serial != peer.serial]
        if not self._pins.knows(host):
            record = self._enrolments.current(host)
            if record is not None and record.used_at is not None:
                self._pins.remember(host, record.used_serial, record.used_at)
        used = self._pins.use(host, peer.serial, own, self._now())
        if used.superseded:
            await self._quarantine.superseded(host, peer.serial)
        if used.problem:
            msg = f"host {host!r}: {used.problem}: the host must join again with a new token (hostmesh token create)"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
        if used.first:
            try:
                await self._enrolments.used(host, peer.serial, self._now())
            except StoreError as error:
                # It is known until a restart; a full disk must not keep hosts out.
                _log.error("certificate_use_not_kept", host=host, error=str(error))
            # It may have been expelled meanwhile.
            self._check_host(peer)

    def _check_host(self, peer: PeerCertificate) -> None:
        """Refuse a host that is not registered or was expelled, and certificates of an earlier joining."""
        host = peer.identity.host
        if not self._registered(host):
            msg = f"host {host!r} is not registered: the operator must register it (hostmesh register)"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
        refusal, current = self._enrolments.standing(host).refusal, self._enrolments.current(host)
        if refusal is not None:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"host {host!r}: {refusal}")
        earlier = current is not None and (current.ended_at is not None or peer.enrolment not in {current.id, ""})
        if self._enrolments.is_out(host) or earlier:
            msg = f"host {host!r}: its certificate is of an earlier joining: it must join again with a new token"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"{msg} (hostmesh token create)")


@dataclass(frozen=True, slots=True)
class Use:
    """What the use of a certificate means: why it must not be, "" if it may; whether it is used for the first time.

    `superseded`: the host itself has replaced it, longer ago than its channels live.
    """

    problem: str = ""
    first: bool = False
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class _Use:
    serial: str
    since: datetime


class Pins:
    """Which certificates of a host are good: the newest one it has used, and those issued after it.

    A renewed certificate whose answer was lost on the way does no harm: the old one stays good until a newer one is
    really used.
    """

    def __init__(self) -> None:
        self._used: dict[str, _Use] = {}

    def knows(self, host: str) -> bool:
        """Tell whether it is known what a host used."""
        return host in self._used

    def remember(self, host: str, serial: str, since: datetime) -> None:
        """Go on from what an earlier process of the controller knew."""
        self._used[host] = _Use(serial, since)

    def use(self, host: str, serial: str, records: Sequence[CertificateRecord], now: datetime) -> Use:
        """Take note that the host uses a certificate, and say what that means.

        Args:
            host: its name.
            serial: of the certificate it uses.
            records: the host's own certificates that the store knows, oldest first.
            now: aware.
        """
        serials = [each.serial for each in records]
        if serial not in serials:
            return Use("its certificate is not, or no longer, known to the controller")
        used = self._used.get(host)
        if used is None or used.serial not in serials or serials.index(serial) > serials.index(used.serial):
            self._used[host] = _Use(serial, now)
            return Use(first=True)
        if serials.index(serial) < serials.index(used.serial) and now - used.since > SUPERSEDED_GRACE:
            return Use("its certificate was replaced by a newer one that is in use", superseded=True)
        return Use()


def peer_certificate(context: Context, trust_domain: str, now: datetime) -> PeerCertificate:
    """Read the client certificate of a call that came over mutual TLS.

    Raises:
        RefusedError: there is none, it is of a session that was resumed, it does not name exactly one host of the trust
            domain, or it has expired since the connection was made.
    """
    found = context.auth_context()
    pem = [bytes(each) for each in found.get("x509_pem_cert", ())]
    if len(pem) != 1:
        raise _not_a_host("no client certificate was presented")
    if _REUSED in found.get("ssl_session_reused", ()):
        # Its certificate was looked at by the roots of then. No agent resumes sessions.
        raise _not_a_host("the session was resumed, and its certificate not verified anew")
    peer = _read(pem[0])
    if peer.identity.trust_domain != trust_domain:
        raise _not_a_host(f"the client certificate is not of the trust domain {trust_domain}")
    if peer.not_after <= now:
        raise _not_a_host("the client certificate expired while the connection was open")
    return peer


def peer_address(peer: str) -> str:
    """Return the address in gRPC's name of a peer (`ipv4:10.0.0.1:52000`, `ipv6:%5B::1%5D:52000`), canonical.

    "" if there is none. An IPv4 address that came in through an IPv6 socket is an IPv4 address.
    """
    family, _, rest = unquote(peer).partition(":")
    text = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        parsed = ip_address(text)
    except ValueError:
        return ""
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return str(mapped or parsed) if family in {"ipv4", "ipv6"} else ""


def caller_of(context: Context) -> str:
    """Return for whom a call counts, before it is known whether they may: the host of the certificate, or its holder.

    Who kept certificates of an earlier joining does not use up what the host may ask now. "" where no certificate was
    shown.
    """
    pem = b"".join(bytes(each) for each in context.auth_context().get("x509_pem_cert", ()))
    try:
        found = _read(pem)
        return f"host {found.identity.host} {found.enrolment}"
    except RefusedError:
        return sha256(pem).hexdigest() if pem else ""


@lru_cache(4096)
def _read(pem: bytes) -> PeerCertificate:
    """Read a certificate; see `peer_certificate`. Kept: an agent calls with the same one every time."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        identity = parse_identity(uris[0]) if len(uris) == 1 else None
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.InvalidVersion) as error:
        raise _not_a_host("the client certificate names no SPIFFE ID") from error
    if not isinstance(identity, HostIdentity):
        raise _not_a_host("the client certificate is not a host's")
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    enrolment = str(found[0].value) if found else ""
    digest = sha256(spki).hexdigest()
    return PeerCertificate(
        identity, f"{certificate.serial_number:032x}", certificate.not_valid_after_utc, digest, enrolment
    )


def _not_a_host(why: str) -> RefusedError:
    msg = f"{why}: the agent must call with the certificate of its host"
    return RefusedError(grpc.StatusCode.UNAUTHENTICATED, msg)
