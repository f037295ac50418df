"""Endpoints of ServiceEntries that have the identity of the WorkloadEntry at their address; see `model.adoption`."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from hostmesh_controller.mesh.compiled import DEFAULT_SERVICE_ACCOUNT
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Workload, WorkloadKey
from hostmesh_controller.model.adoption import Account, Standing, adopted


class Adoption:
    """One update's view of who stands where: the workloads of `old`, and over them those that are `placed` anew.

    Endpoints at the addresses of WorkloadEntries that change are added to `placed`: they may have to adopt anew.
    """

    def __init__(self, old: Mesh, placed: dict[WorkloadKey, Workload | None]) -> None:
        self._old = old
        self._placed = placed
        for address in {address for key in placed for address in self._entry_addresses(key)}:
            for key in old.workloads_by_address.get(address, ()):
                if old.workloads[key].adopting is not None:
                    placed.setdefault(key, old.workloads[key])
        self._here: defaultdict[str, set[WorkloadKey]] = defaultdict(set)
        for key, workload in placed.items():
            if workload is not None:
                self._here[workload.address].add(key)

    def adopted(self, workload: Workload) -> Workload:
        """Return the workload under the account that it has, which depends on who else is at its address."""
        if workload.adopting is None:
            return workload
        account = adopted(workload.adopting, self._standing(workload.address))
        if account is None:
            return replace(workload, service_account=DEFAULT_SERVICE_ACCOUNT, account_namespace=None)
        return replace(workload, service_account=account.name, account_namespace=account.namespace)

    def _entry_addresses(self, key: WorkloadKey) -> Iterator[str]:
        """Yield where a WorkloadEntry was and is."""
        for workload in (self._old.workloads.get(key), self._placed[key]):
            if workload is not None and workload.owner is None:
                yield workload.address

    def _standing(self, address: str) -> Iterator[Standing]:
        for key in self._old.workloads_by_address.get(address, frozenset()) | self._here[address]:
            workload = self._placed[key] if key in self._placed else self._old.workloads[key]
            if workload is not None and workload.owner is None and workload.address == address:
                yield Standing(Account(key.namespace, workload.service_account), frozenset(workload.ports.values()))
