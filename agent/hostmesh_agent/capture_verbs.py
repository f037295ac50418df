"""What a running agent is asked about capture over its control socket."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from hostmesh_agent import control
from hostmesh_agent.capture import CaptureError, HostFloor
from hostmesh_agent.capturing import Capturing
from hostmesh_api.v1.hostmesh_pb2 import HostConfig

MAX_TRIAL_S: Final = 3600
_TURN_WITHIN_S: Final = 30.0
"""A change under a dead-man timer may take so long."""
_NO_CONFIGURATION: Final = "there is no configuration yet: the controller has not been reached"

Configured = tuple[HostConfig | None, HostFloor | None]


def verbs(
    capturing: Capturing, configured: Callable[[], Configured], stepping: asyncio.Lock
) -> dict[str, control.Asked]:
    """Return the verbs. `configured` tells what is to be captured, `stepping` is held while something is changed."""

    async def plan(_: Mapping[str, Any]) -> Mapping[str, Any]:
        config, floor = configured()
        if config is None or floor is None:
            return {"error": _NO_CONFIGURATION}
        try:
            return (await capturing.plan(config, floor)).document()
        except CaptureError as error:
            return {"error": str(error)}

    async def trial(request: Mapping[str, Any]) -> Mapping[str, Any]:
        seconds = request.get("seconds")
        if not isinstance(seconds, int) or not 0 < seconds <= MAX_TRIAL_S:
            return {"error": f"seconds must be between 1 and {MAX_TRIAL_S}"}
        try:
            async with asyncio.timeout(_TURN_WITHIN_S):
                await stepping.acquire()
        except TimeoutError:
            return {"error": "the agent is busy changing capture: try again"}
        try:
            config, floor = configured()
            if config is None or floor is None:
                return {"error": _NO_CONFIGURATION}
            await capturing.try_out(config, floor, seconds)
        except (CaptureError, control.ControlError) as error:
            return {"error": str(error)}
        finally:
            stepping.release()
        return {"seconds": seconds}

    async def resume(_: Mapping[str, Any]) -> Mapping[str, Any]:
        await capturing.resume()
        return {"resumed": True}

    return {control.PLAN: plan, control.TRIAL: trial, control.RESUME: resume}
