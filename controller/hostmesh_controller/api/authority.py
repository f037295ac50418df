"""The certificate authority: its roots, and the steps by which one takes another's place."""

from collections.abc import Awaitable
from datetime import timedelta
from http import HTTPStatus
from typing import Any, TypeVar

import structlog
from cryptography import x509
from fastapi import APIRouter

from hostmesh_controller.api.bodies import ActivateRequest, RevokeRequest, TaintRequest, moment
from hostmesh_controller.api.errors import ApiError
from hostmesh_controller.api.parts import Parts, Using
from hostmesh_controller.api.principals import Admin
from hostmesh_controller.authority import Authority, AuthorityError
from hostmesh_controller.authority_roots import Root, RootState, StepError
from hostmesh_controller.rotation import Taken
from hostmesh_controller.trust import HostTrust, holders, unacknowledged

router = APIRouter(prefix="/v1/ca", tags=["authority"])

_T = TypeVar("_T")

_log = structlog.stdlib.get_logger(__name__)


@router.get("")
async def show(parts: Using, _who: Admin) -> dict[str, Any]:
    """Every root, who trusts it, and who has certificates of it."""
    authority, hosts = parts.rotation.authority, await parts.rotation.hosts()
    return {
        "trust_domain": authority.trust_domain,
        "provider": parts.config.ca.provider,
        "signing_until": moment(authority.signing_until),
        "problem": authority.problem or None,
        "roots": [root_body(authority, each, hosts) for each in authority.roots.items],
        "away": sorted(each.host for each in hosts if not each.connected),
        # What these hold is told from what was issued to them; whether they trust a new root is not known.
        "silent": sorted(each.host for each in hosts if each.roots is None),
    }


@router.post("/prepare")
async def prepare(parts: Using, who: Admin) -> dict[str, Any]:
    """Have every host trust a new root, which signs nothing yet."""
    return taken_body(await _answered(parts.rotation.prepare(actor=who.actor)))


@router.post("/activate")
async def activate(request: ActivateRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Let the prepared root sign; refused while a connected host does not trust it, unless forced."""
    return taken_body(await _answered(parts.rotation.activate(actor=who.actor, force=request.force)))


@router.post("/taint")
async def taint(request: TaintRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Have every certificate of an old root renewed at once."""
    step = parts.rotation.taint(request.root, actor=who.actor, within=timedelta(seconds=request.within_s))
    body = taken_body(await _answered(step))
    return {**body, "holders": await _holders(parts, body["fingerprint"])}


@router.post("/revoke")
async def revoke(request: RevokeRequest, parts: Using, who: Admin) -> dict[str, Any]:
    """Take a root from all bundles; refused while a host has certificates of it, unless forced."""
    step = parts.rotation.revoke(request.root, actor=who.actor, force=request.force, compromised=request.compromised)
    return taken_body(await _answered(step))


async def _holders(parts: Parts, fingerprint: str) -> dict[str, int]:
    return holders(await parts.rotation.hosts(), fingerprint)


async def _answered(step: Awaitable[_T]) -> _T:
    try:
        return await step
    except StepError as error:
        raise ApiError(HTTPStatus.CONFLICT, "not_now", str(error)) from error
    except AuthorityError as error:
        # An administrator of the mesh may know how its authority fails: the text names no secret.
        _log.error("the authority failed", error=str(error))
        raise ApiError(HTTPStatus.SERVICE_UNAVAILABLE, "authority", str(error)) from error


def taken_body(taken: Taken) -> dict[str, Any]:
    root = taken.root
    return {
        "id": root.id,
        "fingerprint": root.fingerprint,
        "state": root.state.value,
        "compromised": root.compromised,
        "offline": list(taken.offline),
    }


def root_body(authority: Authority, root: Root, hosts: list[HostTrust]) -> dict[str, Any]:
    certificate = x509.load_pem_x509_certificate(root.certificate_pem.encode())
    intermediate = authority.intermediate(root.id)
    connected, offline = unacknowledged(hosts, root.fingerprint) if root.trusted else ([], [])
    return {
        "id": root.id,
        "fingerprint": root.fingerprint,
        "state": root.state.value,
        "source": root.source.value,
        "subject": certificate.subject.rfc4514_string(),
        "not_before": moment(certificate.not_valid_before_utc),
        "not_after": moment(certificate.not_valid_after_utc),
        "intermediate_not_after": None if intermediate is None else moment(intermediate.not_valid_after_utc),
        "signs": root.state is RootState.ACTIVE,
        "cross_signed": authority.crossed(root.id),
        "compromised": root.compromised,
        "prepared_at": moment(root.prepared_at),
        "activated_at": moment(root.activated_at),
        "tainted_at": moment(root.tainted_at),
        "revoked_at": moment(root.revoked_at),
        "holders": holders(hosts, root.fingerprint),
        "until": {
            each.host: moment(each.until.get(root.fingerprint)) for each in hosts if root.fingerprint in each.until
        },
        "unacknowledged": {"connected": connected, "offline": offline},
    }
