"""TCP sockets as the kernel tells of them. Pure."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

Known = Mapping[int, Set[bytes]]
"""The connections of each address family, by their ports and addresses."""


@dataclass(frozen=True, slots=True, order=True)
class Listener:
    """One listening TCP socket as the kernel tells it."""

    address: str
    port: int
    uid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection. `uid` and `inode` are 0 once its program has closed it: then nobody's."""

    address: str
    port: int
    peer: str
    peer_port: int
    uid: int
    inode: int


@dataclass(frozen=True, slots=True)
class Sockets:
    """One look: what listens, which connections there are, and those of them that were not known."""

    listeners: tuple[Listener, ...]
    known: Known
    new: Mapping[tuple[int, bytes], Connection]
