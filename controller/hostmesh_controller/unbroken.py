"""Work that is not ended in the middle by the end of the call that asked for it.

gRPC cancels what serves a call when its caller is gone. A write to the store is a thread's, and goes on: what follows
from it in memory has to follow then too.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def unbroken(work: Coroutine[Any, Any, Result]) -> Result:
    """Do all of some work, which has a bound of its own; who was cancelled meanwhile ends after it.

    Raises:
        asyncio.CancelledError: this was cancelled; the work is done, or has failed.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        # Looked at, or asyncio would report it as forgotten.
        task.exception()
    raise cancelled
