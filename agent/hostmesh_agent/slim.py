"""Keeps out of the agent's memory what libraries bring along and the agent never uses: a quarter of it.

An agent is on every host, for years, beside programs that were there first. What is left out here is left out in ways
that Python and the libraries foresee, and only in the process of `hostmesh-agent run`. Measured, resident:

    4.6 MB  ssl and OpenSSL's hashes: gRPC and cryptography bring their own TLS; asyncio and hashlib do without
    4.5 MB  rich: structlog loads it for a console, where it is installed; we write JSON lines
    8.0 MB  what `import pyroute2` loads beside netlink sockets: a database, wireless, ethtool, 9p, all of rtnetlink
"""

import ctypes
import gc
import importlib.util
import sys
from contextlib import suppress
from types import ModuleType
from typing import Final

UNUSED: Final = ("ssl", "_ssl", "_hashlib", "rich", "twisted", "colorama", "better_exceptions")
"""Modules whose absence every importer of ours expects (it catches ImportError)."""

# glibc's malloc.h
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_MMAP_BYTES: Final = 128 << 10

_NETLINK: Final = "pyroute2"


def leave_out() -> None:
    """Call this before asyncio, structlog or pyroute2 is imported; what is loaded already stays."""
    for name in UNUSED:
        # The language's own word for "cannot be imported": see "The module cache" in its reference.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # typeshed does not know of None here
    netlink_alone()


def netlink_alone() -> None:
    """Load no more of pyroute2 than what is asked for. Call this before it is imported."""
    if _NETLINK not in sys.modules:
        _without_its_init(_NETLINK)


def give_back() -> None:
    """Have glibc return what is freed to the kernel. Call it before threads are started; elsewhere it does nothing.

    Left alone, it keeps a heap for each thread, and buffers once large from the first large one on.
    """
    with suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)


def settle() -> None:
    """Take what is loaded now for what stays: garbage is then looked for among the rest, often and at once.

    Python looks through everything only when a quarter of everything is new, and an agent loads a lot and makes little.
    """
    gc.collect()
    gc.freeze()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _without_its_init(name: str) -> None:
    """Make the package known without running its __init__: its modules are then loaded one by one, as imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return
    package = ModuleType(name)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
