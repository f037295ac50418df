"""Do the objects that are to be applied fit each other and what is stored?

Errors are what cannot work or is not safe; warnings are what may only not be there yet: objects come in any order.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from hostmesh_controller.checks.placement import (
    check_host,
    check_peer_authentication,
    check_service,
    check_workload,
)
from hostmesh_controller.checks.routing import check_destination_rule, check_virtual_service
from hostmesh_controller.checks.world import Finding, World, make_world
from hostmesh_controller.load import Problem
from hostmesh_controller.model import ApiObject, ObjectKey, path_text
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec

DEFAULT_DOMAIN: Final = "cluster.local"


def validate(
    objects: Iterable[ApiObject], existing: Mapping[ObjectKey, ApiObject], *, domain: str = DEFAULT_DOMAIN
) -> list[Problem]:
    """Return what does not fit, in the order of the objects.

    Only the given objects are reported on. That one key is there twice is not looked at here: the last one counts.

    Args:
        objects: what is to be applied; each was read without problems.
        existing: what is stored; objects of the same key are replaced.
        domain: of full service names.
    """
    new = {item.key: item for item in objects}
    world = make_world({**existing, **new}, domain)
    return [_problem(item, finding) for item in new.values() for finding in _findings(item, world)]


def _findings(item: ApiObject, world: World) -> Iterator[Finding]:
    match item.spec:
        case VirtualServiceSpec() as spec:
            yield from check_virtual_service(item, spec, world)
        case DestinationRuleSpec() as spec:
            yield from check_destination_rule(item, spec, world)
        case HostSpec() as spec:
            yield from check_host(item, spec, world)
        case WorkloadEntrySpec() as spec:
            yield from check_workload(item, spec, world)
        case ServiceSpec() | ServiceEntrySpec():
            yield from check_service(item, world)
        case PeerAuthenticationSpec() as spec:
            yield from check_peer_authentication(item, spec, world)


def _problem(item: ApiObject, finding: Finding) -> Problem:
    file, line, column = str(item.key), 0, 0
    if item.origin is not None:
        file, (line, column) = item.origin.file, item.origin.place(finding.path)
    path = path_text(finding.path)
    return Problem(file, line, column, path, finding.message, finding.code, finding.severity, item.key)
