"""Signing for hosts: for whose enrolment, on which record, and what a call is told that cannot have it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol, TypeVar

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from hostmesh_api.identity import HostIdentity, WorkloadIdentity
from hostmesh_controller.admission import Registry as Admitting
from hostmesh_controller.authority import LEAF_LIFE, Authority, AuthorityError, Issued
from hostmesh_controller.csr import CsrError, key_digest, public_key_of
from hostmesh_controller.enrolments import Enrolments
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.peers import CertificateStore, Context, RefusedError
from hostmesh_controller.reports import HostStates
from hostmesh_controller.store import CertificateRecord, EnrolmentRecord, StoreError
from hostmesh_controller.tokens import TokenStore

_log: Final = structlog.get_logger(__name__)
_T = TypeVar("_T")

_JOIN_AGAIN: Final = "it must join again with a new token (hostmesh token create)"


class Registry(Admitting, Protocol):
    """What enrolment needs of the registrar."""

    def addresses(self, host: str) -> Sequence[str]: ...
    async def left(self, host: str) -> None: ...


class EnrolStore(TokenStore, CertificateStore, Protocol):
    """What enrolment needs of the store."""

    def add_certificate(self, certificate: CertificateRecord) -> None: ...
    def forget_host(self, host: str) -> None: ...
    def add_event(self, action: str, key: ObjectKey, *, actor: str, now: datetime) -> None: ...


@dataclass(frozen=True, slots=True)
class Issuing:
    """What both servicers sign with.

    `life` is that of a leaf. `registry` knows the hosts, and takes members into groups.
    """

    authority: Authority
    store: EnrolStore
    states: HostStates
    registry: Registry
    enrolments: Enrolments
    now: Callable[[], datetime]
    life: timedelta = field(default=LEAF_LIFE)

    def issue(
        self,
        enrolment: EnrolmentRecord | None,
        csr_der: bytes,
        identity: HostIdentity | WorkloadIdentity,
        *,
        record: bool,
        for_latecomers: bool = False,
    ) -> Issued:
        """Sign for the key of a request; blocking.

        A host's own certificate is recorded before it leaves: only a recorded one can call the controller.

        Args:
            enrolment: the host's, as it was when the caller was recognised as that host: a moment later another may be.
            csr_der: of which the key is taken.
            identity: of the host, or of a workload on it.
            record: whether it is to be recorded.
            for_latecomers: see `Authority.issue`.
        """
        now, key = self.now(), requested_key(csr_der)
        if enrolment is None:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"the host has not joined: {_JOIN_AGAIN}")
        host = enrolment.host
        issued = self.authority.issue(
            key, identity, now, self.life, enrolment=enrolment.id, for_latecomers=for_latecomers
        )
        # Whoever was expelled while this was signed does not get it.
        if not self.enrolments.extend(enrolment, issued.not_after):
            refusal = self.enrolments.standing(host).refusal or f"it has joined anew, or left: {_JOIN_AGAIN}"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"host {host!r}: {refusal}")
        if record:
            self.store.add_certificate(
                CertificateRecord(
                    serial=issued.serial,
                    spiffe_id=identity.uri,
                    host=host,
                    not_after=issued.not_after,
                    issued_at=now,
                    key_sha256=key_digest(key),
                )
            )
        _log.info(
            "certificate_issued",
            host=host,
            spiffe_id=identity.uri,
            serial=issued.serial,
            not_after=issued.not_after.isoformat(),
        )
        return issued

    def refuse_denied(self, host: str) -> None:
        """Refuse a host that was expelled or quarantined.

        Raises:
            RefusedError: says what the operator can do.
        """
        refusal = self.enrolments.standing(host).refusal
        if refusal is not None:
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, f"host {host!r}: {refusal}")


def requested_key(csr_der: bytes) -> EllipticCurvePublicKey:
    """Return the key of a certificate request, whose holder has proven it.

    Raises:
        RefusedError: it is no good request.
    """
    try:
        return public_key_of(csr_der)
    except CsrError as error:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error


async def answered(context: Context, work: Awaitable[_T]) -> _T:
    """Return the answer, or end the call with what the peer must be told."""
    try:
        return await work
    except RefusedError as refused:
        _log.warning("call_refused", peer=context.peer(), code=refused.code.name, reason=refused.message)
        code, message = refused.code, refused.message
    except (AuthorityError, StoreError) as error:
        # The details are for the operator: they name files of the controller.
        _log.error("call_failed", peer=context.peer(), error=str(error))
        code, message = grpc.StatusCode.UNAVAILABLE, "the controller cannot issue now: its operator must see its log"
    await context.abort(code, message)
    raise AssertionError  # abort never returns
