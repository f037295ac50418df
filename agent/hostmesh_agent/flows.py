"""Sums up the connections that were seen, into who talks to whom, and keeps the sums small. Pure.

What cannot be a dependency is left out: loopback, Envoy's and the agent's own connections. A program whose connections
are captured still shows the address that it called, so it is told as its own caller.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, NamedTuple

from hostmesh_agent.sockets import Connection

NOT_TOLD_APART: Final = ""
"""The peer that stands for all those for whom there is no room, or who are not to be named."""
MAX_FLOWS: Final = 2048
MAX_PEERS: Final = 256
"""Of one program in one direction; a public server has any number of callers."""
FORGET_AFTER_S: Final = 7 * 86_400.0
"""Whoever was not seen for so long makes room. The controller remembers them for longer."""
TELL_AGAIN_S: Final = 600.0
"""A connection that lasts is told again this often, with no more to say than that it is still there."""


class Program(NamedTuple):
    """Who on this host. `unit` is its systemd unit or its container; "" where something is not known."""

    name: str = ""
    unit: str = ""


OWN: Final = Program("\0", "")
"""Agent and Envoy."""


class Flow(NamedTuple):
    """One program's connections with one peer: to `port` of this host if `inbound`, else to `port` of the peer."""

    program: Program
    inbound: bool
    peer: str
    port: int

    @property
    def side(self) -> tuple[object, ...]:
        """What has its own room for peers."""
        return self.program, self.inbound, self.port if self.inbound else 0


@dataclass(frozen=True, slots=True)
class Seen:
    """How many connections there were at least; times are seconds since the epoch."""

    count: int
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What a look found beside the connections.

    Attributes:
        serving: programs by the port on which they listen, or did a moment ago; OWN are the mesh's.
        owners: programs by the inode of their socket.
        callers: the only programs that were seen to call a peer's port, by both: what was closed before somebody
            looked is taken for theirs.
        envoy_uid: the user that Envoy runs as.
        skipped: peers with their port that the mesh's own programs call: the controller, and where Envoy was seen to.
        addresses: of this host.
        public: whether peers with addresses of the Internet are told by their address.
        through_envoy: captured ports whose programs see the address of who calls: Envoy's connections to them look like
            the caller's own, and Envoy counts those.
    """

    serving: Mapping[int, Program]
    owners: Mapping[int, Program]
    callers: Mapping[tuple[str, int], Program]
    envoy_uid: int
    skipped: Collection[tuple[str, int]]
    addresses: Collection[str]
    public: bool = True
    through_envoy: Collection[int] = frozenset()


def flow_of(connection: Connection, scene: Scene) -> Flow | None:
    """Return what a connection is part of; None for what is no dependency."""
    if connection.inode and connection.uid == scene.envoy_uid:
        return None
    if _is_loopback(connection.peer) or _is_loopback(connection.address):
        return None
    if scene.through_envoy and connection.address not in scene.addresses:
        return None  # Envoy's own end of such a connection
    serving = scene.serving.get(connection.port)
    # Between programs of one host there are two sockets: that of the caller is told.
    inbound = serving is not None
    if inbound and (connection.peer in scene.addresses or connection.port in scene.through_envoy):
        return None
    where = (connection.peer, connection.peer_port)
    if serving is not None:
        program = serving
    elif connection.inode:
        program = scene.owners.get(connection.inode, Program())
    else:
        program = scene.callers.get(where, Program())
    if program == OWN:
        return None
    # What was closed is nobody's any more, and may have been Envoy's.
    if not inbound and not connection.inode and where in scene.skipped:
        return None
    peer = connection.peer if scene.public or not ip_address(connection.peer).is_global else NOT_TOLD_APART
    return Flow(program, inbound, peer, connection.port if inbound else connection.peer_port)


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"


@dataclass(slots=True)
class Flows:
    """All that was seen since the agent began, and which of it is still there. For one loop.

    `there` are connections by what names them for the kernel, with the flow that each is part of (None: of none).
    """

    seen: dict[Flow, Seen] = field(default_factory=dict)
    there: dict[Hashable, Flow | None] = field(default_factory=dict)
    _peers: Counter[tuple[object, ...]] = field(default_factory=Counter)

    def take(self, known: Iterable[Hashable], new: Mapping[Hashable, Flow | None], now_s: float) -> None:
        """Take a look: `known` names the connections that are there, `new` those that were not before."""
        added = {name: None if flow is None else self._add(flow, now_s) for name, flow in new.items()}
        # Those that have ended already are not kept.
        self.there = {name: added[name] if name in added else self.there.get(name) for name in known}
        for flow in set(self.there.values()):
            before = self.seen.get(flow) if flow is not None else None
            if flow is not None and before is not None and before.last_s != now_s:
                self.seen[flow] = Seen(before.count, before.first_s, now_s)
        self._forget(now_s)

    def _add(self, flow: Flow, now_s: float) -> Flow:
        before = self.seen.get(flow)
        if before is None:
            if len(self.seen) >= MAX_FLOWS:
                # Programs name themselves, and as often as they like.
                flow = Flow(Program(), flow.inbound, NOT_TOLD_APART, 0)
            elif self._peers[flow.side] >= MAX_PEERS:
                flow = flow._replace(peer=NOT_TOLD_APART, port=flow.port if flow.inbound else 0)
            before = self.seen.get(flow)
            if before is None:
                self._peers[flow.side] += 1
        self.seen[flow] = Seen(1, now_s, now_s) if before is None else Seen(before.count + 1, before.first_s, now_s)
        return flow

    def _forget(self, now_s: float) -> None:
        for flow in [flow for flow, each in self.seen.items() if now_s - each.last_s >= FORGET_AFTER_S]:
            del self.seen[flow]
            self._peers[flow.side] -= 1


def worth_telling(now: Seen, told: Seen | None) -> bool:
    """Tell whether a flow has news."""
    return told is None or now.count != told.count or now.last_s - told.last_s >= TELL_AGAIN_S
