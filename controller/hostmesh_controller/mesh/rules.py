"""By what VirtualServices and DestinationRules tell callers apart."""

from hostmesh_controller.mesh.destination_rules import compared_labels
from hostmesh_controller.mesh.virtual_services import virtual_service_spec
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.objects import ApiObject


def caller_labels(item: ApiObject) -> frozenset[str]:
    """Return the keys of the labels by which a VirtualService or DestinationRule tells callers apart."""
    if isinstance(item.spec, DestinationRuleSpec):
        return compared_labels(item)
    spec = virtual_service_spec(item)
    http = (match.source_labels for route in spec.http for match in route.match)
    tls = (match.source_labels for route in spec.tls for match in route.match)
    tcp = (match.source_labels for route in spec.tcp for match in route.match)
    return frozenset(key for labels in (*http, *tls, *tcp) for key in labels)
