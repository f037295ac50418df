"""Who may see an object: do the namespaces exist?"""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.relations import exported_to
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.exports import ANNOTATION
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec


def check_exports(item: ApiObject, world: World) -> Iterator[Finding]:
    """Yield namespaces of exportTo in which nothing is."""
    for name in sorted(exported_to(item) - {"*", item.key.namespace}):
        if not world.has_namespace(name):
            message = f"there is nothing in the namespace {name!r}: nobody there sees this (yet?)"
            yield Finding(_path(item, name), message, "unknown-namespace")


def _path(item: ApiObject, name: str) -> Path:
    match item.spec:
        case ServiceSpec():
            return ("metadata", "annotations", ANNOTATION)
        case ServiceEntrySpec() | VirtualServiceSpec() | DestinationRuleSpec():
            return ("spec", "exportTo", list(item.spec.export_to).index(name))
    return ("spec",)
