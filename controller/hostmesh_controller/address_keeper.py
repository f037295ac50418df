"""Addresses that follow their hosts, at work: what reports tell of where hosts are, and the writes that follow."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

import structlog

from hostmesh_controller.checks.world import World
from hostmesh_controller.following import Advice, Move, Pace, Stays, Whereabouts, judge, moved, row_of, together
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.registrar import Guard, Outcome
from hostmesh_controller.review import Documents, read_one

WORD_HOLDS: Final = timedelta(minutes=15)
"""How long a report tells where a host is: longer than the pause between two of them."""
_SOON_S: Final = 10

_log: Final = structlog.stdlib.get_logger(__name__)


class _OvertakenError(Exception):
    """When it was the write's turn it was not to be made any more."""


class Registry(Protocol):
    """What the keeper needs of the registrar."""

    @property
    def world(self) -> World: ...
    async def apply(self, documents: Documents, *, actor: str, guard: Guard | None = None) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class _Word:
    """What a host said last, and when."""

    where: Whereabouts
    at: datetime


class AddressKeeper:
    """Lets addresses follow. For one event loop; how often a host has moved is in memory, and begins anew.

    Args:
        registry: the objects, and how they are changed.
        connected: tells whether a host has a stream.
        now: aware time.
    """

    def __init__(self, registry: Registry, connected: Callable[[str], bool], now: Callable[[], datetime]) -> None:
        self._registry = registry
        self._connected = connected
        self._now = now
        self._paces: dict[str, Pace] = {}
        self._waiting: dict[str, _Word] = {}
        """Hosts that are elsewhere, the oldest first: another host may have their address, and be about to leave it."""

    async def heard(self, where: Whereabouts) -> Advice:
        """Take note of where a host is, and let its address follow if it may.

        Raises:
            StoreError: nothing was changed.
        """
        found = judge(where, self._registry.world, self._connected)
        move = found.blocked if isinstance(found, Stays) else found
        if move is None:
            self._waiting.pop(where.host, None)
            return Advice(found.why if isinstance(found, Stays) else "")
        now = self._now()
        pace = self._paces[where.host] = self._paces.get(where.host, Pace()).wants(move.new, now)
        wait_s = math.ceil(pace.wait(now).total_seconds())
        if wait_s:
            why = f"its address changes too often: {move.new} is followed if it stays for {wait_s} s more"
            return Advice(f"Host {where.host} is at {move.old}, and {why}", wait_s)
        self._waiting[where.host] = _Word(where, now)
        problem = await self._follow(where.host)
        if problem or where.host not in self._waiting:
            return Advice(problem, _SOON_S if problem else 0)
        return Advice(found.why if isinstance(found, Stays) else "", _SOON_S)

    async def _follow(self, host: str) -> str:
        """Make all moves that can be made now that `host` has spoken; return what is against its own."""
        problem, turns = "", [host]
        while turns:
            moves = together(self._wanted(turns[0]), self._registry.world)
            if not moves:
                turns.pop(0)
                continue
            words = {each.host: self._waiting.pop(each.host) for each in moves}
            refused = await self._move(moves, words, f"host:{host}")
            if refused and host in words:
                problem = f"Host {host} stays at its address: {refused}"
            # Who is moved leaves an address for which others may wait.
            left = {each.old for each in moves}
            turns += [name for name, each in self._waiting.items() if each.where.seen in left and name not in turns]
        return problem

    def _wanted(self, host: str) -> dict[str, Move]:
        """Return the moves that are wanted by whom a host's own depends on; none if it has to wait, or does not."""
        now, world = self._now(), self._registry.world
        self._waiting = {name: each for name, each in self._waiting.items() if now - each.at <= WORD_HOLDS}
        if host not in self._waiting:
            return {}
        row = row_of(host, {name: each.where.seen for name, each in self._waiting.items()}, world)
        return self._moves_of({name: each for name, each in self._waiting.items() if name in row}, world)

    def _moves_of(self, words: dict[str, _Word], world: World) -> dict[str, Move]:
        found = {host: judge(each.where, world, self._connected) for host, each in words.items()}
        moves = {host: each.blocked if isinstance(each, Stays) else each for host, each in found.items()}
        return {host: move for host, move in moves.items() if move is not None}

    async def _move(self, moves: Sequence[Move], words: dict[str, _Word], actor: str) -> str:
        """Write; return why it was refused, "" if it was not."""
        before = self._registry.world
        hosts = [before.objects[ObjectKey("Host", "", each.host)] for each in moves]
        read = [read_one(moved(host, move), "report", "default") for host, move in zip(hosts, moves, strict=True)]

        def guard(_: object, world: World) -> None:
            same = all(world.objects.get(each.key) == each for each in hosts)
            if not same or together(self._moves_of(words, world), world) != tuple(moves):
                raise _OvertakenError

        documents = Documents(
            tuple(item for each in read for item in each.objects), tuple(each for one in read for each in one.problems)
        )
        try:
            outcome = await self._registry.apply(documents, actor=actor, guard=guard)
        except _OvertakenError:
            return "another change was made meanwhile"
        refused = "; ".join(each.message for each in outcome.review.errors)
        for each in moves:
            if refused:
                _log.warning("address not followed", host=each.host, old=each.old, new=each.new, reason=refused)
            else:
                _log.info("address followed", host=each.host, old=each.old, new=each.new)
                self._paces[each.host] = self._paces.get(each.host, Pace()).followed(self._now())
        return refused
