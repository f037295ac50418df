"""Certificates for hosts that have joined, over gRPC: their own renewed, those of their workloads, and leaving.

Whom a certificate names is decided by the caller's own verified certificate and the registry.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import grpc
import structlog

from hostmesh_api.identity import HostIdentity, WorkloadIdentity, parse_identity
from hostmesh_api.v1.hostmesh_pb2 import (
    CertificateResponse,
    IssueWorkloadRequest,
    LeaveRequest,
    LeaveResponse,
    RenewHostRequest,
)
from hostmesh_api.v1.hostmesh_pb2_grpc import IdentityServicer as IdentityBase
from hostmesh_controller.issuing import Issuing, answered
from hostmesh_controller.peers import Context, Peers, RefusedError

_log: Final = structlog.get_logger(__name__)


class IdentityServicer(IdentityBase):
    """RenewHost, IssueWorkload and Leave, on the port with mutual TLS."""

    def __init__(self, issuing: Issuing, peers: Peers, allowed_identities: Callable[[str], frozenset[str]]) -> None:
        """`allowed_identities` returns the SPIFFE IDs of the workloads that the registry places on a host."""
        self._issuing = issuing
        self._peers = peers
        self._allowed_identities = allowed_identities

    async def RenewHost(self, request: RenewHostRequest, context: Context) -> CertificateResponse:  # noqa: N802 - gRPC's name
        caller = await self._peers.host_of(context)
        return await answered(context, self._issue(caller.host, request.csr_der, caller, record=True))

    async def IssueWorkload(self, request: IssueWorkloadRequest, context: Context) -> CertificateResponse:  # noqa: N802 - gRPC's name
        caller = await self._peers.host_of(context)
        return await answered(context, self._issue_workload(caller, request))

    async def Leave(self, request: LeaveRequest, context: Context) -> LeaveResponse:  # noqa: ARG002, N802 - gRPC's name and arguments
        caller = await self._peers.host_of(context)
        return await answered(context, self._leave(caller.host))

    async def _issue_workload(self, caller: HostIdentity, request: IssueWorkloadRequest) -> CertificateResponse:
        identity = self._asked(caller, request.spiffe_id)
        # Envoy's copy of the host's identity is not recorded, hence no use against the controller: a program that
        # gets hold of Envoy's files does not become the agent.
        return await self._issue(caller.host, request.csr_der, identity, record=isinstance(identity, WorkloadIdentity))

    def _asked(self, caller: HostIdentity, spiffe_id: str) -> HostIdentity | WorkloadIdentity:
        allowed = self._allowed_identities(caller.host) | {caller.uri}
        if spiffe_id in allowed:
            try:
                return parse_identity(spiffe_id)
            except ValueError as error:
                raise RefusedError(
                    grpc.StatusCode.INTERNAL, f"the controller's registry is at fault: {error}"
                ) from error
        _log.warning("issue_refused", host=caller.host, asked=spiffe_id[:256], allowed=sorted(allowed))
        msg = (
            "the registry places no workload of the asked identity on this host: "
            "the operator must register it, or the agent must take its new configuration"
        )
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)

    async def _issue(
        self, host: str, csr_der: bytes, identity: HostIdentity | WorkloadIdentity, *, record: bool
    ) -> CertificateResponse:
        enrolment = self._issuing.enrolments.current(host)
        issued = await asyncio.to_thread(self._issuing.issue, enrolment, csr_der, identity, record=record)
        return CertificateResponse(chain_pem=issued.chain_pem, bundle_pem=self._issuing.authority.bundle_pem)

    async def _leave(self, host: str) -> LeaveResponse:
        await self._issuing.registry.left(host)
        _log.info("host_left", host=host)
        return LeaveResponse()
