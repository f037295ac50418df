"""When work for the cold copies is done: after a while, a little at a time, and never more than a share of a core."""

import asyncio
import time
from typing import Final

from hostmesh_controller.cold import Cold

WINDOW_S: Final = 15.0
"""For so long changes are gathered: an endpoint that flaps costs each copy one page in that time."""
SHARE: Final = 0.1
"""Of a core, for making pages."""
PAUSE_S: Final = 0.004
"""Between two hosts that get something, at least: 250 in a second, which is 4 % of a core."""


async def run(cold: Cold, window_s: float = WINDOW_S, pause_s: float = PAUSE_S) -> None:
    """Work until cancelled. While nothing changes and nobody comes, nothing is done."""
    wake = asyncio.Event()
    cold.work = wake.set
    try:
        while True:
            await wake.wait()
            wake.clear()
            if cold.has_changed:
                await asyncio.sleep(window_s)
                cold.take()
            await _work(cold, window_s, pause_s)
    finally:
        cold.work = lambda: None


async def _work(cold: Cold, window_s: float, pause_s: float) -> None:
    taken_s = time.monotonic()
    while True:
        began_s = time.monotonic()
        if cold.has_changed and began_s - taken_s >= window_s:
            cold.take()
            taken_s = began_s
        if not cold.step():
            return
        took_s = time.monotonic() - began_s
        await asyncio.sleep(max(took_s * (1 / SHARE - 1), pause_s))
