"""Names that programs choose by whom they call: bounded, or a program could use up what its host may ask for."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from hostmesh_agent.absence import is_no_cluster, is_no_virtual_host
from hostmesh_agent.shelf import Shelf
from hostmesh_api.delta import ClientStream
from hostmesh_api.wire import CLUSTER_TYPE, VIRTUAL_HOST_TYPE

MAX_CHOSEN: Final = 10_000
"""Names of one type of which the controller is asked to keep the host up to date. It ends the stream of a host that
asks for too much: no program may bring that about."""
MAX_CHOSEN_CHARS: Final = 512
"""What is longer is no host: `65535/`, 253 characters, `.:65535`."""
_DIALLED: Final = "tcp|"
BY_PROGRAMS: Final[Mapping[str, Callable[[str], bool]]] = {
    VIRTUAL_HOST_TYPE: lambda _: True,
    CLUSTER_TYPE: lambda name: name.startswith(_DIALLED),
}
"""Types of which programs choose names, and which names these are: a virtual host with each Host header, a cluster with
each virtual address and port that is dialled."""


def is_absent(type_url: str, shelf: Shelf, name: str) -> bool:
    """Tell whether the controller said that there is no such thing."""
    held = shelf.held.get(name)
    if type_url == VIRTUAL_HOST_TYPE:
        return held is not None and is_no_virtual_host(held)
    return name in shelf.absent if held is None else is_no_cluster(held)


def make_room(
    type_url: str, shelf: Shelf, up: ClientStream, asked: Iterable[str], most: int
) -> tuple[tuple[str, ...], list[str]]:
    """Return which of the names to ask `up` for, and which others to give up for them.

    Bounded by `most` are those that programs choose. Given up are those that do not exist: Envoy keeps its answer to
    them, and is not told if that changes.
    """
    is_chosen = BY_PROGRAMS[type_url]
    names = tuple(name for name in asked if not is_chosen(name) or len(name) <= MAX_CHOSEN_CHARS)
    new = tuple(name for name in names if is_chosen(name) and not up.wants(type_url, name))
    if not new or up.count(type_url) + len(new) <= most:
        return names, []
    wanted = [name for name in up.wanted(type_url) if is_chosen(name)]
    if len(wanted) + len(new) <= most:
        return names, []
    not_there = [name for name in wanted if is_absent(type_url, shelf, name)]
    room = max(most - (len(wanted) - len(not_there)), 0)
    beyond = frozenset(new[room:])
    return tuple(name for name in names if name not in beyond), not_there
