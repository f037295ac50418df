"""Where the controllers are: their names are looked up within a bound, and what was found last is remembered.

    <state_dir>/controller-addresses.json   each endpoint, and the addresses that were found last

So a boot without DNS leaves the way to the controllers alone, too.
"""

import json
import socket
import time
from collections.abc import Iterable
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent.in_time import InTime
from hostmesh_agent.state import StateError, read_private, write_private

FILE: Final = "controller-addresses.json"
WITHIN_S: Final = 2.0
"""A name server that lives answers in milliseconds; the resolver's own patience is 5 s for each server and try."""
_MOST: Final = 16
"""So many addresses of an endpoint are remembered: those of a name that tells others each time."""

Address = tuple[str, int]

log = structlog.get_logger(__name__)


def look_up(endpoint: str) -> tuple[Address, ...]:
    """Return the addresses of an endpoint (`NAME:PORT`). Blocks for as long as the resolver likes.

    Raises:
        OSError: it has none, or nobody tells.
    """
    name, _, port = endpoint.rpartition(":")
    try:
        found = socket.getaddrinfo(name.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except ValueError as error:  # also of a name that is none
        raise OSError(f"{endpoint}: {error}") from error
    return tuple(dict.fromkeys((str(address[0]), int(port)) for *_, address in found))


class ControllerAddresses:
    """What is known, here and on disk. `writes` False: what is found is not kept on disk. For one thread at a time."""

    def __init__(self, state_dir: Path, *, writes: bool = True) -> None:
        self._path = state_dir / FILE
        self._writes = writes
        self._kept = self._known = self._read()
        self._untold: frozenset[str] = frozenset()
        self.complete = True
        """Whether each endpoint of the last look has addresses, be it remembered ones."""

    def look(self, endpoints: Iterable[str], *, more: bool = False) -> frozenset[Address]:
        """Return the controllers' addresses: those of before for endpoints that nobody tells. Blocks: 2 s at most.

        `more`: those of before stay in any case. A name may tell others each time, and who connects was told some.
        """
        wanted = tuple(dict.fromkeys(endpoints))
        calls: InTime[str, tuple[Address, ...]] = InTime(time.monotonic() + WITHIN_S)
        for each in wanted:
            calls.start(each, partial(look_up, each))
        found = {key: each for key, each in calls.ended() if not isinstance(each, OSError)}
        before = {each: self._known.get(each, ()) for each in wanted}
        self._known = {
            each: _merged(found.get(each, ()), before[each] if more or not found.get(each) else ()) for each in wanted
        }
        self.complete = all(self._known.values())
        untold = frozenset(wanted) - found.keys()
        if untold - self._untold:
            log.warning("nobody tells where the controller is", endpoints=sorted(untold), remembered=self.complete)
        self._untold = untold
        if self._writes and _sets(self._known) != _sets(self._kept):
            self._write()
        return frozenset(address for each in self._known.values() for address in each)

    def _read(self) -> dict[str, tuple[Address, ...]]:
        try:
            document = json.loads(read_private(self._path))
            return {str(name): tuple(_address(*each) for each in told) for name, told in document.items()}
        except FileNotFoundError:
            return {}
        except (StateError, ValueError, TypeError, AttributeError, RecursionError) as error:
            # Found again by the next look; until then as on a host that never had it.
            log.warning("remembered addresses of the controller cannot be read", reason=str(error))
            return {}

    def _write(self) -> None:
        try:
            write_private(self._path, json.dumps(self._known).encode() + b"\n")
        except OSError as error:
            log.warning("addresses of the controller cannot be remembered", reason=str(error))
        else:
            self._kept = self._known


def _merged(found: tuple[Address, ...], before: tuple[Address, ...]) -> tuple[Address, ...]:
    return tuple(dict.fromkeys((*sorted(found), *before)))[:_MOST]


def _sets(known: dict[str, tuple[Address, ...]]) -> dict[str, frozenset[Address]]:
    return {name: frozenset(each) for name, each in known.items()}


def _address(text: str, port: int) -> Address:
    return str(ip_address(text)), int(port)
