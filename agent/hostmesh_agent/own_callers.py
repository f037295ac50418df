"""Which programs call as which workload: the host's owner names users and units, others say who they are now. Pure."""

from collections.abc import Collection, Iterator

from hostmesh_agent.capture.callers import Caller
from hostmesh_agent.capture.who import Match, Present
from hostmesh_agent.entitlements import WorkloadAccess
from hostmesh_api.identity import WorkloadIdentity


class OwnCallers:
    """`access` is what the host's owner says; `why_no_units` why units cannot be known here, "" if they can."""

    def __init__(self, access: Collection[WorkloadAccess], why_no_units: str = "") -> None:
        self._access = tuple(access)
        self._why_no_units = why_no_units
        users = frozenset(user for each in self._access for user in each.users)
        units = frozenset(unit for each in self._access for unit in each.units)
        self.named = Match(users=users, units=frozenset() if why_no_units else units)
        """The users and units whose presence has to be known."""

    def among(self, present: Present, spiffe_ids: Collection[str], trust_domain: str) -> tuple[Caller, ...]:
        """Return the callers that there are now, for the identities that the mesh gives this host."""
        found = []
        for each in self._access:
            identity = WorkloadIdentity(trust_domain, each.namespace, each.service_account)
            groups = frozenset() if self._why_no_units else present.places(each.units)
            uids = each.uids | present.uids(each.users)
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
            elif each.units and self._why_no_units:
                yield f"the units of {name} call under the host's identity: {self._why_no_units}"
