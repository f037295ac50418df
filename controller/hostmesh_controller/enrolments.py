"""Enrolments: one for each joining of a host, and whether anything may still be done under it.

    Join ─▶ begun ─▶ (left, or joined again) ended
               └──▶ denied: expelled by an operator, or quarantined because of a clone ─▶ the host may be readmitted

A denied enrolment is so for ever: readmitting a host lets it join again, under another one. Certificates carry the id
of their enrolment, so that whoever is shown one can tell.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from secrets import token_hex
from typing import Final, Protocol

from hostmesh_controller.store import Denial, EnrolmentRecord

__all__ = ["Denial", "DeniedError", "EnrolmentStore", "Enrolments", "Standing"]

_ID_BYTES: Final = 16
MAX_REASON_CHARS: Final = 500


class DeniedError(Exception):
    """The host was expelled or quarantined; the message says what the operator can do."""


class EnrolmentStore(Protocol):
    """What enrolments need of the store."""

    def enrolments(self) -> list[EnrolmentRecord]: ...
    def put_enrolment(
        self, record: EnrolmentRecord, *, action: str = "", actor: str = "", at: datetime
    ) -> EnrolmentRecord: ...
    def extend_enrolment(self, enrolment: str, not_after: datetime) -> bool: ...
    def drop_enrolments(self, ids: Collection[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a host is in the mesh's good books; `reason` and `since` tell of a denial."""

    denial: Denial = Denial.NONE
    reason: str = ""
    since: datetime | None = None

    @property
    def refusal(self) -> str | None:
        """Why the host may neither join nor get a certificate nor call; None if it may."""
        if self.denial is Denial.NONE:
            return None
        why = f" ({self.reason})" if self.reason else ""
        return f"it was {self.denial}{why}: the operator must readmit it (hostmesh host readmit)"


class Enrolments:
    """The enrolments of all hosts, in memory as in the store. For one event loop; reading it neither waits nor fails.

    `on_change(host)` is called after the store knows, when it is another story whether a host, or whose certificates,
    are refused.
    """

    def __init__(self, store: EnrolmentStore, on_change: Callable[[str], None], now: Callable[[], datetime]) -> None:
        """Read what the store has.

        Raises:
            StoreError: it cannot be read.
        """
        self._store = store
        self._on_change = on_change
        self._now = now
        self._writing = asyncio.Lock()
        self._of_host: dict[str, tuple[EnrolmentRecord, ...]] = {}
        """Oldest first."""
        for record in store.enrolments():
            self._of_host[record.host] = (*self._of_host.get(record.host, ()), record)

    def current(self, host: str) -> EnrolmentRecord | None:
        """Return the newest enrolment of a host, denied and ended ones too; None if it never joined."""
        found = self._of_host.get(host)
        return found[-1] if found else None

    def standing(self, host: str) -> Standing:
        """Tell whether a host may join and get certificates. This is where everything that gives them asks."""
        found = self.current(host)
        if found is None or found.denial is Denial.NONE or found.readmitted_at is not None:
            return Standing()
        return Standing(found.denial, found.reason, found.denied_at)

    def is_out(self, host: str) -> bool:
        """Tell whether a host was denied and has not joined since: its workloads are not to be called."""
        found = self.current(host)
        return found is not None and found.denial is not Denial.NONE

    def denied(self, host: str) -> frozenset[str]:
        """Return the denied enrolments of a host of which certificates are still valid."""
        now = self._now()
        return frozenset(
            each.id
            for each in self._of_host.get(host, ())
            if each.denial is not Denial.NONE and each.certificates_end is not None and each.certificates_end > now
        )

    def hosts(self) -> Iterable[str]:
        """Return the hosts that have, or had, an enrolment."""
        return self._of_host.keys()

    async def begin(self, host: str) -> EnrolmentRecord:
        """Begin the enrolment of a host that joins. Whoever was this host before is so no longer.

        Raises:
            DeniedError: it was denied, perhaps while it waited for its turn.
            StoreError: nothing has begun.
        """
        async with self._writing:
            refusal = self.standing(host).refusal
            if refusal is not None:
                raise DeniedError(refusal)
            await self._end(host)
            made = EnrolmentRecord(token_hex(_ID_BYTES), host, self._now())
            await self._put(made)
            await self._drop_old(host)
            return made

    async def end(self, host: str) -> None:
        """Take note that a host left.

        Raises:
            StoreError: it is as before.
        """
        async with self._writing:
            await self._end(host)

    async def deny(self, host: str, denial: Denial, reason: str, actor: str) -> EnrolmentRecord:
        """Deny what a host has, and itself until it is readmitted. A host that never joined must not begin to.

        Raises:
            StoreError: nothing was denied.
        """
        async with self._writing:
            now = self._now()
            record = self.current(host) or EnrolmentRecord(token_hex(_ID_BYTES), host, now, ended_at=now)
            if record.denial is not Denial.NONE and record.readmitted_at is None:
                return record
            if record.denial is not Denial.NONE:
                # Readmitted, and not back yet.
                record = EnrolmentRecord(token_hex(_ID_BYTES), host, now, ended_at=now)
            made = replace(record, denial=denial, denied_at=now, reason=reason[:MAX_REASON_CHARS])
            await self._put(made, "host.expel" if denial is Denial.EXPELLED else "host.quarantine", actor)
        self._on_change(host)
        return made

    async def readmit(self, host: str, actor: str) -> bool:
        """Let a denied host join again; False if it is not denied.

        Raises:
            StoreError: it is as before.
        """
        async with self._writing:
            record = self.current(host)
            if record is None or self.standing(host).refusal is None:
                return False
            await self._put(replace(record, readmitted_at=self._now()), "host.readmit", actor)
            if record.certificates_end is None:
                # Nothing was issued under it: it says no more of the host than that it was denied.
                await self._drop([record])
        self._on_change(host)
        return True

    async def used(self, host: str, serial: str, at: datetime) -> None:
        """Remember the newest certificate that a host used.

        Raises:
            StoreError: it is not remembered.
        """
        async with self._writing:
            record = self.current(host)
            if record is not None and record.used_serial != serial:
                await self._put(replace(record, used_serial=serial, used_at=at))

    def extend(self, record: EnrolmentRecord, not_after: datetime) -> bool:
        """Take note of a certificate that is about to be given out; False if it must not be. Blocking, in any thread.

        The store has the last word: a host may be expelled while its certificate is being signed.
        """
        return self._store.extend_enrolment(record.id, not_after)

    async def _end(self, host: str) -> None:
        record = self.current(host)
        if record is not None and record.ended_at is None:
            await self._put(replace(record, ended_at=self._now()))

    async def _put(self, record: EnrolmentRecord, action: str = "", actor: str = "") -> None:
        put = self._store.put_enrolment
        kept = await asyncio.to_thread(put, record, action=action, actor=actor, at=self._now())
        others = tuple(each for each in self._of_host.get(record.host, ()) if each.id != record.id)
        self._of_host[record.host] = (*others, kept)

    async def _drop_old(self, host: str) -> None:
        """Forget enrolments before the newest of which no certificate is valid any more."""
        now = self._now()
        old = [
            each for each in self._of_host[host][:-1] if each.certificates_end is None or each.certificates_end <= now
        ]
        await self._drop(old)

    async def _drop(self, records: Sequence[EnrolmentRecord]) -> None:
        if not records:
            return
        host, ids = records[0].host, {each.id for each in records}
        await asyncio.to_thread(self._store.drop_enrolments, ids)
        self._of_host[host] = tuple(each for each in self._of_host[host] if each.id not in ids)
