"""Which identities a process may have: the host's owner says it in agent.toml, the kernel says who asks. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hostmesh_api.identity import WorkloadIdentity

ROOT: Final = 0
_SLICE: Final = ".slice"


@dataclass(frozen=True, slots=True)
class WorkloadAccess:
    """Whose processes may have the identity of NAMESPACE/SERVICE-ACCOUNT: any of the users, or of the systemd units."""

    namespace: str
    service_account: str
    users: tuple[str, ...] = ()
    uids: frozenset[int] = frozenset()
    units: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, as the kernel attests. `pid` 0: of another pid namespace; `unit` "": none that is known for sure."""

    uid: int
    pid: int
    unit: str

    def __str__(self) -> str:
        return f"uid {self.uid}, pid {self.pid}" + (f", unit {self.unit}" if self.unit else "")


def entitled(
    caller: Caller,
    identities: Sequence[WorkloadIdentity],
    access: Iterable[WorkloadAccess],
    uids: Mapping[str, int],
) -> tuple[WorkloadIdentity, ...]:
    """Return those of the host's identities that the caller may have, in their order.

    Root has them all: it can read the files anyway.

    Args:
        caller: who asks.
        identities: of the workloads that the mesh places on this host.
        access: what the host's owner allows.
        uids: of the users that are named there, as far as there are such users.
    """
    if caller.uid == ROOT:
        return tuple(identities)
    allowed = {(each.namespace, each.service_account) for each in access if _fits(caller, each, uids)}
    return tuple(each for each in identities if (each.namespace, each.service_account) in allowed)


def strangers(identities: Iterable[WorkloadIdentity], access: Iterable[WorkloadAccess]) -> tuple[str, ...]:
    """Return what the owner allows and no workload of this host is: mostly a slip of the pen."""
    here = {(each.namespace, each.service_account) for each in identities}
    names = ((each.namespace, each.service_account) for each in access)
    return tuple(f"{namespace}/{account}" for namespace, account in names if (namespace, account) not in here)


def unit_of(cgroup: str) -> str:
    """Return the systemd unit in what /proc/PID/cgroup says, "" if there is none.

    It is the first name below the slices. What comes after it is the unit's own to name: a user could call a group of
    his own as he likes.
    """
    for line in cgroup.splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" or controllers == "name=systemd":
            found = _unit(path)
            if found:
                return found
    return ""


def _unit(path: str) -> str:
    parts = path.strip("/").split("/")
    if ".." in parts:
        # Of another cgroup namespace: what is above is not shown.
        return ""
    below = next((part for part in parts if not part.endswith(_SLICE)), "")
    return below if below.endswith((".service", ".scope")) else ""


def _fits(caller: Caller, access: WorkloadAccess, uids: Mapping[str, int]) -> bool:
    by_user = caller.uid in access.uids or any(uids.get(user) == caller.uid for user in access.users)
    return by_user or (bool(caller.unit) and caller.unit in access.units)
