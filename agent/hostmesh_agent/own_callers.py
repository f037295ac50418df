"""Which programs call as which workload: the host's owner names users and units, the host says who they are now."""

import pwd
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from hostmesh_agent import cgroup
from hostmesh_agent.capture.callers import Caller
from hostmesh_agent.entitlements import WorkloadAccess
from hostmesh_api.identity import WorkloadIdentity


class OwnCallers:
    """`access` is what the host's owner says; `root` is where cgroup v2 is mounted, None: units are not known."""

    def __init__(self, access: Collection[WorkloadAccess], root: Path | None, why_no_units: str = "") -> None:
        self._access = tuple(access)
        self._root = root if not why_no_units else None
        self._why_no_units = why_no_units

    @property
    def watched(self) -> Path | None:
        """Where units come and go that are somebody's; None: nowhere."""
        return self._root if any(each.units for each in self._access) else None

    def look(self, spiffe_ids: Collection[str], trust_domain: str) -> tuple[Caller, ...]:
        """Return the callers that there are now among the identities that the mesh gives this host. Blocks."""
        named = {unit for each in self._access for unit in each.units}
        running = cgroup.units(self._root, named) if self._root is not None and named else {}
        found = []
        for each in self._access:
            identity = WorkloadIdentity(trust_domain, each.namespace, each.service_account)
            groups = frozenset(group for unit in each.units for group in running.get(unit, ()))
            uids = each.uids | frozenset(_uids(each.users))
            if identity.uri in spiffe_ids and (groups or uids):
                found.append(Caller(identity.uri, uids, groups))
        return tuple(sorted(found, key=lambda caller: caller.spiffe_id))

    def problems(self, spiffe_ids: Collection[str], trust_domain: str) -> Iterator[str]:
        """Yield what the owner asks for and cannot have."""
        if not spiffe_ids:
            return
        for each in self._access:
            name = f"{each.namespace}/{each.service_account}"
            if WorkloadIdentity(trust_domain, each.namespace, each.service_account).uri not in spiffe_ids:
                yield f"agent.toml: workloads: no workload of this host calls as {name}"
            elif each.units and self._root is None:
                yield f"the units of {name} call under the host's identity: {self._why_no_units}"


def _uids(users: Collection[str]) -> Iterator[int]:
    for user in users:
        with suppress(KeyError):
            yield pwd.getpwnam(user).pw_uid
