"""Whose identity an endpoint has that a ServiceEntry lists without a service account: that of the WorkloadEntry there.

Istio takes such an endpoint beside a WorkloadEntry of the same address and port. It is the same program, and a port is
served under one identity.
"""

from collections.abc import Iterable
from typing import NamedTuple

from hostmesh_controller.model.service_entry import ServiceEntrySpec
from hostmesh_controller.model.workload_entry import Workload


class Account(NamedTuple):
    """A service account, with its namespace."""

    namespace: str
    name: str


class Standing(NamedTuple):
    """A WorkloadEntry at the endpoint's address: its account, and the ports that it lists."""

    account: Account
    ports: frozenset[int]


def endpoint_ports(entry: ServiceEntrySpec, endpoint: Workload) -> frozenset[int]:
    """Return the ports on which an endpoint of a ServiceEntry serves."""
    return frozenset(endpoint.ports.get(port.name) or port.target_port or port.number for port in entry.ports)


def adopted(ports: frozenset[int], standing: Iterable[Standing]) -> Account | None:
    """Return the account that an endpoint with these ports adopts; None where no single one is meant.

    An entry that lists one of the ports is meant before one that lists none, which may serve any; one that lists only
    others is not.
    """
    found = list(standing)
    meant = {each.account for each in found if each.ports & ports} or {each.account for each in found if not each.ports}
    return meant.pop() if len(meant) == 1 else None
