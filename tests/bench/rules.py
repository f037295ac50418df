"""How long a host's rules take to install."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from bench.figure import Figure

_PROBE: Final = Path(__file__).with_name("rules_probe.py")
_TESTS: Final = _PROBE.parent.parent


def rules() -> Sequence[Figure]:
    """Install them in a network namespace of their own."""
    mapped = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ["unshare", *mapped, "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, _PROBE]
    environment = {**os.environ, "PYTHONPATH": str(_TESTS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"the rules could not be installed:\n{done.stderr[-2000:]}")
    taken = json.loads(done.stdout)
    new_s, again_s = taken["from_nothing_s"], taken["again_s"]
    return (
        Figure(
            f"rules and routes installed, read back and compared, median of {len(new_s)}",
            median(new_s) * 1e3,
            "ms",
            25,
            f"the first {new_s[0] * 1e3:.1f} ms, again over themselves {median(again_s) * 1e3:.1f} ms",
        ),
    )
