"""Envoy's own word on a bootstrap, before it is started with it: a bad one would make it end at each start."""

import asyncio
import json
from dataclasses import replace
from typing import Final

from hostmesh_agent import launch, workdir
from hostmesh_agent.child import PYTHON, running
from hostmesh_agent.envoy_command import EnvoyCommand

WITHIN_S: Final = 30.0
"""It takes 0.2 s; a host that swaps may take longer."""
_RECORD: Final = ".trial-process.json"
_SAID_CHARS: Final = 500


async def refusal(command: EnvoyCommand) -> str:
    """Return why Envoy would not start with a command's bootstrap, "" if it would.

    It is asked as the user that it runs as, in its own directory. Nothing of it is left there.
    """
    record = command.directory / _RECORD
    draft = workdir.write_bootstrap(command.directory, command.bootstrap, command.owner, name=workdir.TRIAL)
    try:
        return await _asked(command)
    finally:
        for path in (draft, record):
            path.unlink(missing_ok=True)


async def _asked(command: EnvoyCommand) -> str:
    argv = [str(command.installed.path), "--mode", "validate", "--config-path", workdir.TRIAL, "--log-level", "error"]
    spec = replace(command, log_level="error").spec()
    spec["argv"], spec["record"] = argv, str(command.directory / _RECORD)
    starter = (*PYTHON, launch.__file__, json.dumps(spec))
    try:
        async with (
            asyncio.timeout(WITHIN_S),
            running(*starter, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT) as process,
        ):
            said, _ = await process.communicate()
    except TimeoutError:
        return f"Envoy does not say within {WITHIN_S:.0f} s whether it takes it"
    if process.returncode == 0:
        return ""
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    telling = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")
    return telling[:_SAID_CHARS] or f"Envoy ends with code {process.returncode}"
