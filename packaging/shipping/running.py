"""Programs that are run, to the end, and what they say when they fail."""

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """What cannot be built, and why; the text is for the one who called make."""


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    text_in: str = "",
    within_s: float = 600,
) -> str:
    """Return what it writes to stdout. Raises BuildError with the end of its stderr."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            input=text_in,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=within_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]}: not installed: sh packaging/system_packages.sh packages") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{shlex.join(command)}: not done within {within_s:g} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout)[-4000:]
        raise BuildError(f"{shlex.join(command)}: code {done.returncode}\n{said}")
    return done.stdout
