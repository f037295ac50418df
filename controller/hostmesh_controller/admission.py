"""Letting hosts in: which host a token or evidence stands for, who has to wait, and where a host joins a group.

evidence ─▶ attestor ─▶ name and policy ─▶ (an operator approves) ─▶ group or registered host
"""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

import grpc
import structlog

from hostmesh_api.v1.hostmesh_pb2 import JoinRequest
from hostmesh_controller.attest import pending
from hostmesh_controller.attest.evidence import Attested, Attestor, EvidenceError, Shown, printable
from hostmesh_controller.attest.pending import FullError
from hostmesh_controller.attest.policy import address_problem, name_of
from hostmesh_controller.config_attest import Policy, Trust
from hostmesh_controller.groups import Candidate, NotAdmittedError, candidate, group_key
from hostmesh_controller.peers import RefusedError, peer_address
from hostmesh_controller.store import InstanceRecord, PendingRecord, TokenRecord
from hostmesh_controller.tokens import allows

_log: Final = structlog.get_logger(__name__)

_NO_PROOF: Final = (
    "the evidence is not accepted: the operator sees why in the controller's log, and must configure the attestor, or "
    "make a join token (hostmesh token create)"
)


class Registry(Protocol):
    """What admission needs of the registrar."""

    def registered(self, host: str) -> bool: ...
    def membership_problem(self, candidate: Candidate) -> str | None: ...
    def is_member(self, candidate: Candidate) -> bool: ...
    async def admit(self, candidate: Candidate, *, actor: str) -> None: ...


class AdmissionStore(Protocol):
    """What admission needs of the store."""

    def pending(self) -> list[PendingRecord]: ...
    def put_pending(self, entry: PendingRecord) -> None: ...
    def drop_pending(self, ids: list[str]) -> None: ...
    def claim_instance(self, instance: InstanceRecord) -> InstanceRecord: ...


class Admission:
    """Decides about hosts that show evidence. For one event loop."""

    def __init__(
        self,
        store: AdmissionStore,
        registry: Registry,
        attestors: Mapping[str, Attestor],
        trust: Mapping[str, Trust],
        now: Callable[[], datetime],
    ) -> None:
        """`attestors` and `trust` are by kind; one without trust needs the operator's word for each host."""
        self._store = store
        self._registry = registry
        self._attestors = attestors
        self._trust = trust
        self._now = now
        self._queue = asyncio.Lock()

    async def admit(self, request: JoinRequest, key_sha256: str, peer: str) -> "str | PendingRecord":
        """Return the name of a host that may join now, or the entry under which it waits.

        Args:
            request: whose nonce is spent.
            key_sha256: digest of the request's key, in hexadecimal.
            peer: gRPC's name of the caller.

        Raises:
            RefusedError: it may not.
        """
        kind = str(request.WhichOneof("evidence"))
        try:
            return await self._admit(kind, Shown(request), key_sha256, peer)
        except EvidenceError as error:
            _log.warning("join_refused", peer=peer, attestor=kind, reason=printable(str(error)))
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, _NO_PROOF) from error

    async def _admit(self, kind: str, shown: Shown, key_sha256: str, peer: str) -> "str | PendingRecord":
        attestor, trust = self._attestors.get(kind), self._trust.get(kind, _UNTRUSTED)
        if attestor is None:
            raise EvidenceError(f"[attest.{kind}] is not in controller.toml")
        attested = await asyncio.to_thread(attestor.verify, shown, self._now())
        name, address = name_of(attested, trust.policy, shown.wanted), peer_address(peer)
        problem = address_problem(trust.policy, address)
        if problem is not None:
            raise EvidenceError(problem)
        wanted = self._candidate(trust.policy, shown.request, name, peer)
        since = self._now()
        if trust.policy.manual and not attested.approved:
            entry = await self._wait(attested, name, key_sha256, address)
            if entry.decision != "approved":
                return entry
            since = entry.asked_at
        if attested.born is not None and since - attested.born > trust.max_age:
            raise EvidenceError(f"the instance began at {attested.born:%Y-%m-%d %H:%M} UTC, longer ago than max_age")
        self._require_admissible(name, wanted)
        if attested.subject:
            await self._claim(InstanceRecord(attested.subject, name, key_sha256, self._now()))
        if wanted is not None:
            await self._enter(wanted, actor=f"attest:{kind}")
        _log.info("host_attested", host=name, attestor=kind, peer=peer, summary=attested.summary)
        return name

    def _candidate(self, policy: Policy, request: JoinRequest, name: str, peer: str) -> Candidate | None:
        """Return the member that the policy makes of a host; None if it makes none."""
        if not policy.group:
            return None
        seen = peer_address(peer)
        return bounded_candidate(policy.group, request, name, seen, policy.allow_addresses)

    def _require_admissible(self, name: str, wanted: Candidate | None) -> None:
        """Raise RefusedError where what follows would: nothing is used up by it."""
        if wanted is not None:
            problem = self._registry.membership_problem(wanted)
        elif self._registry.registered(name):
            problem = None
        else:
            problem = f"host {name!r} is not registered: the operator must register it (hostmesh register)"
        if problem is not None:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, problem)

    async def _enter(self, wanted: Candidate, *, actor: str) -> None:
        try:
            await self._registry.admit(wanted, actor=actor)
        except NotAdmittedError as error:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error

    async def _claim(self, mine: InstanceRecord) -> None:
        owner = await asyncio.to_thread(self._store.claim_instance, mine)
        if (owner.host, owner.key_sha256) != (mine.host, mine.key_sha256):
            raise EvidenceError(
                f"{mine.subject} has joined at {owner.joined_at:%Y-%m-%d %H:%M} UTC as host {owner.host!r}, by another "
                f"key: if it is the same machine, installed anew, remove the host (hostmesh host remove {owner.host})"
            )

    async def _wait(self, attested: Attested, name: str, key_sha256: str, address: str) -> PendingRecord:
        """Return the entry under which a host waits, as it is now."""
        now = self._now()
        wanted = PendingRecord(
            secrets.token_hex(6), name, attested.kind, key_sha256, address, attested.summary, now, now
        )
        async with self._queue:
            entries = await asyncio.to_thread(self._store.pending)
            gone = [each.id for each in entries if pending.expired(each, now)]
            if gone:
                await asyncio.to_thread(self._store.drop_pending, gone)
            entry = pending.find(entries, wanted, now)
            if entry is None:
                try:
                    pending.require_place(entries, wanted, now)
                except FullError as error:
                    raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)) from error
                entry = wanted
                _log.info("host_pending", id=entry.id, host=name, attestor=attested.kind, address=address)
            elif not entry.decision:
                entry = replace(entry, seen_at=now, address=address)
            if not entry.decision:
                await asyncio.to_thread(self._store.put_pending, entry)
        if entry.decision == "denied":
            msg = f"the operator has denied host {name!r} with this key"
            raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
        return entry


_UNTRUSTED: Final = Trust(Policy("{principal}", allow_names=()))
"""For hosts of which an operator has registered the very key: by their policy alone nobody gets in."""


@dataclass(frozen=True, slots=True)
class KeyAloneAttestor:
    """Vouches for nothing: a host has a key, and an operator compares its fingerprint."""

    def verify(self, shown: Shown, now: datetime) -> Attested:  # noqa: ARG002 - as all attestors
        facts = shown.request.facts
        summary = printable(f"nothing but its key; says it is {facts.hostname}, {facts.os}")
        return Attested("key_alone", [{"name": shown.wanted}], summary)


def token_candidate(token: TokenRecord, request: JoinRequest, peer: str) -> Candidate:
    """Return whom a request with the token of a group is from.

    The address is the one that the controller sees. Another one, that the agent names, must be in the token's blocks:
    nobody takes an address by saying so.

    Raises:
        RefusedError: no name or address that it may have.
    """
    group = group_key(token.pool)
    if group is None:
        raise RefusedError(grpc.StatusCode.INTERNAL, f"the token is for {token.pool!r}, which is no group")
    seen = peer_address(peer)
    try:
        own, within = request.facts.addresses, token.allowed.split(",") if token.allowed else ()
        found = candidate(group, request.name, request.facts.hostname, request.address, seen, own, within)
    except NotAdmittedError as error:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    if not token.allowed and found.address != seen:
        msg = (
            f"the token does not allow the address {found.address}, only the one that this host calls from ({seen}): "
            f"join without --address, or with a token that allows it (hostmesh token create --group {token.pool} "
            f"--allow-address {found.address})"
        )
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
    if not allows(token, found.address):
        how = "" if request.address else ", from which this host calls: name another of its own with --address"
        msg = f"the token allows addresses in {token.allowed.replace(',', ', ')}, not {found.address}{how}"
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
    return found


def bounded_candidate(pool: str, request: JoinRequest, name: str, seen: str, blocks: tuple[str, ...]) -> Candidate:
    """Return the member that an attested host becomes: at the address it calls from, or at one within the blocks.

    Raises:
        RefusedError: no address that it may have.
    """
    group = group_key(pool)
    if group is None:
        raise RefusedError(grpc.StatusCode.INTERNAL, f"the configuration names {pool!r}, which is no group")
    try:
        found = candidate(group, name, "", request.address, seen, request.facts.addresses, blocks)
    except NotAdmittedError as error:
        raise RefusedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
    if found.address != seen and (not blocks or address_problem(Policy("", allow_addresses=blocks), found.address)):
        msg = f"this host may not be at {found.address}, only where it calls from ({seen}): join without --address"
        raise RefusedError(grpc.StatusCode.PERMISSION_DENIED, msg)
    return found
