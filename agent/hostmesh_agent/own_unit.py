"""The agent's own unit is enabled and started by whoever joins a host: from then on systemd runs the agent."""

import subprocess
from pathlib import Path
from typing import Final

from hostmesh_agent.notify import STATE_DIR, SYSTEMD_RUNS, UNIT, of_the_units

GUARD: Final = "hostmesh-guard.service"
_ANSWERS_WITHIN_S: Final = 30.0
STARTS_WITHIN_S: Final = 330.0
"""More than the unit's own bound on its start."""


class UnitError(Exception):
    """systemd did not do as it was told; with what it said."""


def start(
    state_dir: Path, runs: Path = SYSTEMD_RUNS, program: str = "systemctl", of_unit: Path = STATE_DIR
) -> str | None:
    """Enable the units and start the agent's; return when it says that it runs.

    Returns None when it runs, else why it is nobody's to start from here: no systemd, no unit, or another host's.

    Raises:
        UnitError: there is a unit, and it did not start.
    """
    if not of_the_units(state_dir, runs, of_unit):
        return "systemd does not run here, or its unit is another agent's"
    found = call(program, "show", "--property=LoadState", "--value", "--", UNIT)
    if found != "loaded":
        return f"{UNIT} is {found or 'not known'}"
    call(program, "--quiet", "enable", GUARD, UNIT)
    call(program, "start", "--", UNIT, within_s=STARTS_WITHIN_S)
    # In a chroot (an image that is made, an installer) systemctl does nothing, and says that it went well.
    state = call(program, "show", "--property=ActiveState", "--value", "--", UNIT)
    return None if state == "active" else f"{UNIT} is {state or 'not started in a chroot'}"


def call(program: str, *words: str, within_s: float = _ANSWERS_WITHIN_S) -> str:
    """Run systemctl; return what it said. Raises UnitError."""
    try:
        done = subprocess.run(
            [program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnitError(f"{program} {' '.join(words)}: {error}") from error
    if done.returncode != 0:
        raise UnitError(f"{program} {' '.join(words)}: {' '.join(done.stderr.split()) or f'code {done.returncode}'}")
    return done.stdout.strip()
