"""The configuration API: objects like Kubernetes', of Istio's kinds and our own.

schema and durations are what fields are made of; one file per family of kinds has their specs (services, workloads,
hosts, virtual_service, destination_rule, security); kinds is the register of them. objects is what all have in
common, documents reads one object from mappings and lists, faults words what is wrong with it.

    from hostmesh_controller.model import KINDS, ApiObject, ObjectKey, from_document
"""

from hostmesh_controller.model.documents import DocumentError, from_document, read_document
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.faults import Fault, path_text
from hostmesh_controller.model.kinds import KINDS, KindInfo, kind_named
from hostmesh_controller.model.objects import ApiObject, Metadata, ObjectKey, Origin, Path, Place
from hostmesh_controller.model.protocols import Protocol, entry_protocol, service_protocol
from hostmesh_controller.model.schema import Spec

__all__ = [
    "KINDS",
    "ApiObject",
    "DocumentError",
    "Duration",
    "Fault",
    "KindInfo",
    "Metadata",
    "ObjectKey",
    "Origin",
    "Path",
    "Place",
    "Protocol",
    "Spec",
    "entry_protocol",
    "from_document",
    "kind_named",
    "path_text",
    "read_document",
    "service_protocol",
]
