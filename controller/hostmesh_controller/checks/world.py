"""All objects as they are, or as they would be after a change, indexed for the checks."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Final

from hostmesh_controller.checks.entries import entries_of
from hostmesh_controller.checks.index import Bucket, Entry, Index, Relation
from hostmesh_controller.checks.relations import (
    exported_to,
    full,
    label_texts,
    labels_of,
    selector_of,
    service_names,
)
from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.names import wildcards
from hostmesh_controller.suggest import did_you_mean
from hostmesh_controller.table import Table

DEFAULT_DOMAIN: Final = "cluster.local"
DEFAULT_ROOT_NAMESPACE: Final = "istio-system"
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_MAX_COMPARED: Final = 2_000
"""Names that are compared with a misspelt one: 10 ms at most."""


@dataclass(frozen=True, slots=True)
class World:
    """A set of objects and its index. Host names are full and lower case; addresses are canonical.

    It is never changed: `changed` returns another one that shares what is the same, so that neither a change nor the
    judgement of one costs what the mesh costs.
    """

    domain: str = DEFAULT_DOMAIN
    root_namespace: str = DEFAULT_ROOT_NAMESPACE
    objects: Table[ObjectKey, ApiObject] = field(default_factory=Table)
    index: Index = field(default_factory=Index)
    trust_domain: str = ""
    """Of the controller; "" where it is not known."""
    mesh_config: MeshConfigSpec = field(default_factory=MeshConfigSpec)
    """What the controller's own file says, beneath the MeshConfig object."""

    def changed(self, changes: Mapping[ObjectKey, ApiObject | None]) -> "World":
        """Return the world in which each key has its new object, or none where that is None."""
        old = [self.objects[key] for key in changes if key in self.objects]
        new = [item for item in changes.values() if item is not None]
        index = self.index.changed(
            ((entry, item.key) for item in old for entry in entries_of(item, self.domain)),
            ((entry, item) for item in new for entry in entries_of(item, self.domain)),
        )
        return replace(self, objects=self.objects.changed(changes), index=index)

    def bucket(self, relation: Relation, name: str, namespace: str = "") -> Bucket:
        """Return what is found under an entry, in no order."""
        return self.index.at(Entry(relation, name, namespace))

    def at(self, relation: Relation, name: str, namespace: str = "") -> list[ApiObject]:
        """Return what is found under an entry, the oldest first; what is not stored yet comes last."""
        return sorted(self.bucket(relation, name, namespace).values(), key=_age)

    def others_at(self, relation: Relation, name: str, item: ApiObject, namespace: str = "") -> list[ApiObject]:
        """Return what is found under an entry besides `item`, the oldest first."""
        return [other for other in self.at(relation, name, namespace) if other.key != item.key]

    def full(self, host: str, item: ApiObject) -> str:
        """Return the full name of a host as `item` writes it."""
        return full(host, item, self.domain)

    def services_named(self, host: str, scopes: Iterable[str] = ("*",)) -> list[ApiObject]:
        """Return what defines a full host name, by itself or by the nearest wildcard that does.

        Args:
            host: the name.
            scopes: only what one of these namespaces may see; "*" looks at no namespace.
        """
        wanted = frozenset(scopes)
        for name in (host, *wildcards(host)):
            found = self.at(Relation.SERVICE, name)
            seen = [item for item in found if "*" in wanted or exported_to(item) & (wanted | {"*"})]
            if seen:
                return seen
        return []

    def rules_for(self, host: str) -> Iterator[ApiObject]:
        """Yield the DestinationRules that may hold for a full host name."""
        for name in (host, *wildcards(host)):
            yield from self.at(Relation.RULE, name)

    def selecting(self, workload: ApiObject) -> list[ApiObject]:
        """Return the Services and ServiceEntries that select a workload, in no order."""
        labels = labels_of(workload)
        return [
            service
            for label in label_texts(labels)
            for service in self.bucket(Relation.SELECTOR, label, workload.key.namespace).values()
            if selector_of(service).items() <= labels.items()
        ]

    def selected(self, selector: Mapping[str, str], namespace: str = "") -> Iterator[ApiObject]:
        """Yield the WorkloadEntries and WorkloadGroups that have all labels, of one namespace or ("") of all.

        An empty selector selects nothing here.
        """
        buckets = [self.bucket(Relation.LABEL, label, namespace) for label in label_texts(selector)]
        for item in min(buckets, key=len, default={}).values():
            if selector.items() <= labels_of(item).items():
                yield item

    def has_namespace(self, name: str) -> bool:
        """Tell whether anything is in a namespace, or it was made."""
        return bool(self.bucket(Relation.MEMBER, name)) or ObjectKey("Namespace", "", name) in self.objects

    def near(self, host: str) -> str:
        """Return a hint at the service whose name is most like a host name that nothing defines, "" if none is."""
        siblings = self.bucket(Relation.SIBLING, host.partition(".")[2])
        names = {name for item in islice(siblings.values(), _MAX_COMPARED) for name in service_names(item, self.domain)}
        return did_you_mean(host, names)


def _age(item: ApiObject) -> tuple[datetime, ObjectKey]:
    return item.metadata.creation_timestamp or _NEVER, item.key


def world_of(
    objects: Iterable[ApiObject], domain: str = DEFAULT_DOMAIN, root_namespace: str = DEFAULT_ROOT_NAMESPACE
) -> World:
    """Return the world of some objects; of two with one key the last counts."""
    return World(domain, root_namespace).changed({item.key: item for item in objects})
