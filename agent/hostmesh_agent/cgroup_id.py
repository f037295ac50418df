"""How the kernel names a cgroup of version 2 in a rule. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ByCgroup:
    """Processes of a cgroup and of those below it: `identifier` is the kernel's, `level` 1 is below the root."""

    level: int
    identifier: int
