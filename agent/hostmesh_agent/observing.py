"""Observe mode: which programs of the host talk to whom, by the sockets that the kernel lists. No capture is needed.

Connections that come and go between two looks are told by the kernel as they end, though not whose they were. Where it
does not tell, they are still in its list for a minute on the side that closed first.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Hashable
from datetime import datetime
from typing import Final, TypeVar

import structlog

from hostmesh_agent import flows, sock_diag
from hostmesh_agent.flows import OWN, Flow, Flows, Program, Scene, Seen
from hostmesh_agent.host import addresses
from hostmesh_agent.services import Holder, holders
from hostmesh_agent.sockets import Connection, Known, Listener
from hostmesh_api.v1.hostmesh_pb2 import Flow as FlowMessage
from hostmesh_api.v1.hostmesh_pb2 import ObservedFlows, ReportResponse

_REST: Final = 1000
"""A look may take a thousandth of one core: on a host with very many connections they are further apart."""
_LONGEST_S: Final = 300.0
MAX_CONNECTIONS: Final = 20_000
"""Of each address family. Those beyond are not seen."""
MAX_TOLD: Final = 300
"""In one report; the rest follows in the next. With names as long as they may be it is 100 KiB of 512."""
_REMEMBER_LISTENERS_S: Final = 120.0
"""Connections that a program has accepted and closed are in the kernel's list after it has ended, for a minute."""
_ATTRIBUTION_S: Final = 600.0
"""How long a user's connections to one destination are taken for those of the program that was found there first: a
walk through /proc for each new connection would cost more than all the rest."""

K = TypeVar("K", bound=Hashable)

log = structlog.get_logger(__name__)


class Observing:
    """Looks until cancelled.

    Args:
        envoy_uid: the user that Envoy runs as.
        controllers: tells the addresses with ports of the controller.
        public: whether peers of the Internet are told by their address.
        interval_s: the time between two looks.
        now: the time of day.
        own_pid: the process whose connections are the mesh's own; 0: this one.
    """

    def __init__(
        self,
        envoy_uid: int,
        controllers: Callable[[], Collection[tuple[str, int]]],
        public: bool,
        interval_s: float,
        now: Callable[[], datetime],
        own_pid: int = 0,
    ) -> None:
        self._own_pid = own_pid or os.getpid()
        self._envoy_uid = envoy_uid
        self._controllers = controllers
        self._public = public
        self._interval_s = interval_s
        self._now = now
        self._epoch = os.urandom(8).hex()
        self._known: Known = {}
        self.flows = Flows()
        self.through_envoy: frozenset[int] = frozenset()
        """See `flows.Scene`."""
        self._serving: dict[int, tuple[Program, float]] = {}
        self._listeners: dict[int, Program] = {}
        self._attributed: dict[tuple[int, str, int], tuple[Program, float]] = {}
        self._envoys_peers: dict[tuple[str, int], float] = {}
        self._told: dict[Flow, Seen] = {}
        self._telling: dict[Flow, Seen] = {}
        self._holder = ""
        self._closings: sock_diag.Closings | None = None
        self._deaf = False

    async def run(self) -> None:
        try:
            while True:
                cost_s = 0.0
                try:
                    cost_s = await asyncio.to_thread(self.look)
                except OSError as error:
                    log.warning("connections cannot be read", error=str(error))
                await asyncio.sleep(min(max(self._interval_s, cost_s * _REST), _LONGEST_S))
        finally:
            self.close()

    def close(self) -> None:
        """Listen no more to the kernel."""
        if self._closings is not None:
            self._closings.close()
            self._closings = None

    def look(self) -> float:
        """Look once; return the seconds of CPU that it took. Blocks.

        Raises:
            OSError: the kernel does not answer.
        """
        started_s = time.thread_time()
        before = self._known
        closed = self._closed()
        found = sock_diag.look(before, MAX_CONNECTIONS)
        at_s = time.monotonic()
        self._find_programs(found.listeners, found.new.values(), at_s)
        scene = self._scene(found.new.values(), at_s)
        # What came and went between two looks.
        brief = {name: each for name, each in closed.items() if name[1] not in before.get(name[0], ())}
        new: dict[Hashable, Flow | None] = {
            name: flows.flow_of(each, scene) for name, each in {**brief, **found.new}.items()
        }
        names = ((family, names) for family, there in found.known.items() for names in there)
        self.flows.take(names, new, self._now().timestamp())
        self._known = found.known
        return time.thread_time() - started_s

    def _closed(self) -> dict[tuple[int, bytes], Connection]:
        try:
            if self._closings is None:
                self._closings = sock_diag.Closings()
            return self._closings.take()
        except OSError as error:
            # Older kernels: what was closed is then in the list for a minute, on the side that closed it first.
            if not self._deaf:
                log.info("the kernel does not tell of closed connections", error=str(error))
            self._deaf = True
            return {}

    def _find_programs(self, listening: Collection[Listener], new: Collection[Connection], at_s: float) -> None:
        unknown = {each.inode for each in listening} - self._listeners.keys()
        ports = {each.port for each in listening}
        outbound = {each.inode: each for each in new if self._is_unknown(each, ports, at_s)}
        found = holders(unknown | outbound.keys()) if unknown or outbound else {}
        here = {each.inode for each in listening}
        self._listeners = {inode: program for inode, program in self._listeners.items() if inode in here}
        self._listeners |= {inode: self._program(found.get(inode, Holder())) for inode in unknown}
        for each in listening:
            is_envoy = each.uid == self._envoy_uid
            self._serving[each.port] = (OWN if is_envoy else self._listeners[each.inode], at_s)
        for inode, one in outbound.items():
            program = self._program(found[inode]) if inode in found else Program()
            if program.name:
                self._attributed[one.uid, one.peer, one.peer_port] = (program, at_s)
        _drop_old(self._serving, at_s - _REMEMBER_LISTENERS_S)
        _drop_old(self._attributed, at_s - _ATTRIBUTION_S)

    def _is_unknown(self, each: Connection, ports: Collection[int], at_s: float) -> bool:
        if not each.inode or each.uid == self._envoy_uid or each.port in ports:
            return False
        known = self._attributed.get((each.uid, each.peer, each.peer_port))
        return known is None or at_s - known[1] >= _ATTRIBUTION_S

    def _scene(self, new: Collection[Connection], at_s: float) -> Scene:
        for each in new:
            if each.inode and each.uid == self._envoy_uid:
                self._envoys_peers[each.peer, each.peer_port] = at_s
        if len(self._envoys_peers) > MAX_CONNECTIONS:
            self._envoys_peers.clear()
        attributed = self._attributed
        callers: dict[tuple[str, int], set[Program]] = {}
        for (_, peer, port), (program, _) in attributed.items():
            callers.setdefault((peer, port), set()).add(program)
        return Scene(
            serving={port: program for port, (program, _) in self._serving.items()},
            owners={
                each.inode: attributed[each.uid, each.peer, each.peer_port][0]
                for each in new
                if (each.uid, each.peer, each.peer_port) in attributed
            },
            callers={where: programs.pop() for where, programs in callers.items() if len(programs) == 1},
            envoy_uid=self._envoy_uid,
            skipped={*self._controllers(), *self._envoys_peers},
            addresses=frozenset(addresses()),
            public=self._public,
            through_envoy=self.through_envoy,
        )

    def _program(self, holder: Holder) -> Program:
        if holder.pid == self._own_pid:
            return OWN
        return Program(holder.program, holder.place.container or holder.place.unit)

    def tell(self) -> ObservedFlows:
        """Return what the controller has not taken yet."""
        now_s = self._now().timestamp()
        seen = dict(self.flows.seen)
        news = sorted(flow for flow, each in seen.items() if flows.worth_telling(each, self._told.get(flow)))
        self._telling = {flow: seen[flow] for flow in news[:MAX_TOLD]}
        messages = [_message(flow, each, now_s) for flow, each in self._telling.items()]
        return ObservedFlows(epoch=self._epoch, flows=messages)

    def taken(self, response: ReportResponse) -> None:
        """Note that the controller took what was last told."""
        if response.flows_memory != self._holder:
            # What is remembered there is not what was told to another one.
            self._holder, self._told = response.flows_memory, {}
        self._told = {flow: each for flow, each in {**self._told, **self._telling}.items() if flow in self.flows.seen}
        self._telling = {}


def _drop_old(table: dict[K, tuple[Program, float]], oldest_s: float) -> None:
    for key in [key for key, (_, at_s) in table.items() if at_s < oldest_s]:
        del table[key]


def _message(flow: Flow, seen: Seen, now_s: float) -> FlowMessage:
    return FlowMessage(
        program=flow.program.name,
        unit=flow.program.unit,
        inbound=flow.inbound,
        peer=flow.peer,
        port=flow.port,
        count=seen.count,
        first_seen_s=max(0, int(now_s - seen.first_s)),
        last_seen_s=max(0, int(now_s - seen.last_s)),
    )
