"""Before Envoy is ended, what it has under way may finish, for as long as the mesh says."""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent.admin import Admin, AdminError

FILE: Final = "termination-drain-ms"
"""In Envoy's directory: what ends it may be a `leave` without an agent."""
DEFAULT_S: Final = 5.0
"""Istio's default."""
LONGEST_S: Final = 300.0
_LOOK_S: Final = 0.1
_OWN: Final = ("listener.admin", "listener.hostmesh-")

_log = structlog.get_logger(__name__)


def note(directory: Path, wanted_ms: int) -> None:
    """Write down how long an end of Envoy waits. Where nothing can be written what was noted before holds."""
    path, wanted = directory / FILE, str(wanted_ms).encode()
    draft = directory / f".{FILE}.{os.getpid()}"
    try:
        if path.exists() and path.read_bytes() == wanted:
            return
        draft.write_bytes(wanted)
        draft.replace(path)
    except OSError as error:  # a full disk has an alarm of its own
        _log.warning("how long an end of Envoy waits cannot be noted", path=str(path), reason=str(error))
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def noted_s(directory: Path) -> float:
    """Return for how long an end of Envoy waits, in seconds; the default where nothing was written down."""
    with suppress(OSError, ValueError):
        return min(int((directory / FILE).read_text(encoding="ascii")) / 1000, LONGEST_S)
    return DEFAULT_S


async def drained(admin: Admin, within_s: float) -> bool:
    """Let Envoy take nothing new, and wait until nothing is under way; return whether that came in time."""
    try:
        async with asyncio.timeout(within_s):
            await admin.drain()
            while True:
                if not await _open_connections(admin):
                    return True
                await asyncio.sleep(_LOOK_S)
    except (AdminError, TimeoutError):
        return False


async def _open_connections(admin: Admin) -> int:
    return open_connections(await admin.stats("downstream_cx_active"))


def open_connections(gauges: Mapping[str, int]) -> int:
    """Sum up what is open to Envoy's listeners, without the agent's own connections."""
    listeners = {name: value for name, value in gauges.items() if name.startswith("listener.")}
    return sum(value for name, value in listeners.items() if not name.startswith(_OWN))
