"""Waiting for what other tasks, threads and programs bring about, with a bound."""

import asyncio
from collections.abc import Callable
from typing import Final

BOUND_S: Final = 20.0


async def until(holds: Callable[[], bool], what: str = "") -> None:
    """Look until it holds; `what` tells of the wait that was in vain."""
    try:
        async with asyncio.timeout(BOUND_S):
            while not holds():  # noqa: ASYNC110 - what is waited for knows no event of ours
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {BOUND_S} s: {what or 'what is waited for'}") from None
