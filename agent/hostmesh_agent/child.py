"""A program that the agent runs beside itself for a moment, in a session of its own, of which nothing is left."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

PYTHON: Final = (sys.executable, "-I", "-S")
"""How a file of ours is run that must not load what the agent has loaded."""


@asynccontextmanager
async def running(*command: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command without input, output and environment, in `/`, as far as `options` do not say otherwise.

    Raises:
        OSError: it cannot be run.
    """
    nothing = asyncio.subprocess.DEVNULL
    alone: dict[str, Any] = {"stdin": nothing, "stdout": nothing, "stderr": nothing, "cwd": "/", "env": {}}
    settings = alone | options
    process = await asyncio.create_subprocess_exec(*command, start_new_session=True, **settings)
    try:
        yield process
    finally:
        # The session outlives its first process: what that left behind ends here.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
