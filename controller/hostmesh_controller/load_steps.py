"""Weights from reported load: what a host says of how busy it is counts by steps, whatever it says. Pure.

Agents tell a level that is calm already. One that does not, of whatever reason, must not push endpoints to all callers
with each of its reports, nor take all calls to itself at once.
"""

from typing import Final

LEVELS: Final = 8
"""Of free CPU, from 1 to this."""
STEP_S: Final = 8.0
"""What a level may move by one in; agents' steps are 10 s apart."""


def accepted(before: int, told: int, still_s: float) -> int:
    """Return the level that counts after a report.

    Args:
        before: the one that counted; 0: none yet.
        told: by the agent; 0: it does not say, as just after its start, and the old one counts on.
        still_s: for how long `before` has counted.
    """
    told = min(told, LEVELS)
    if not told or not before:
        return told or before
    most = int(min(still_s // STEP_S, LEVELS))
    return before + max(-most, min(told - before, most))


def weight(cpus: int, level: int) -> int:
    """Return the weight of a host: eighths of cores that are free. Where nothing is known it is one core, all free."""
    return max(cpus, 1) * (level or LEVELS)
