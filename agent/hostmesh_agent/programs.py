"""Which of the programs that rules name are there: users by the host's own database, units by their cgroups.

It is the one place where that is found out, for the mesh's policy, for the owner's word and for programs with an
identity of their own alike: what is named together is looked for once and watched once.
"""

import asyncio
import pwd
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from hostmesh_agent.capture.who import NOBODY, Match, Present
from hostmesh_agent.units import Units


class Programs:
    """For one event loop. `changed` is called when a unit that is named may have come or gone.

    `top` is where cgroup v2 is mounted; None: no unit is known.
    """

    def __init__(self, changed: Callable[[], None], top: Path | None) -> None:
        self._units = Units(changed, top)

    async def look(self, matches: Iterable[Match]) -> Present:
        """Return who is there of those that the matches name."""
        named = [each for each in matches if each.names_who]
        units = frozenset(unit for each in named for unit in each.units)
        users = frozenset(user for each in named for user in each.users if not user.isdecimal())
        cgroups = self._units.look(units)
        if not users:
            return Present(cgroups=cgroups) if cgroups else NOBODY
        # The database may be on the network.
        return Present(await asyncio.to_thread(_uids, users), cgroups)

    def close(self) -> None:
        self._units.close()


def _uids(names: frozenset[str]) -> frozenset[tuple[str, int]]:
    found = set()
    for name in names:
        with suppress(KeyError):
            found.add((name, pwd.getpwnam(name).pw_uid))
    return frozenset(found)
