"""Names that programs choose by whom they call: bounded, or a program could use up what its host may ask for."""

from collections.abc import Callable, Mapping
from typing import Final

from hostmesh_agent.absence import is_no_cluster, is_no_virtual_host
from hostmesh_agent.shelf import Shelf
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
