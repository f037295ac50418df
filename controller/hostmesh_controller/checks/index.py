"""An immutable index of objects by what they have to do with: a changed one shares what did not change."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from hostmesh_controller.model import ApiObject, ObjectKey
from hostmesh_controller.table import Table

_SMALL: Final = 32
"""Objects of one entry that are copied whole at each change; more are kept in a table, whose changes share."""


class Relation(StrEnum):
    """What an object has to do with the name it is found under."""

    SERVICE = "service"
    """Services and ServiceEntries by the host names they define."""
    SIBLING = "sibling"
    """The same, by what follows the first dot of the name: where to look for a misspelt one."""
    RULE = "rule"
    """DestinationRules by host name."""
    ROUTE = "route"
    """VirtualServices by host name."""
    KEPT_ROUTE = "kept route"
    """VirtualServices that not all may see, by the wildcards that cover their hosts."""
    CALLER = "caller"
    """VirtualServices and DestinationRules by the host names they refer to."""
    GATEWAY_USER = "gateway user"
    """VirtualServices by the gateways they name."""
    DELEGATOR = "delegator"
    """VirtualServices by those they delegate to."""
    DELEGATE = "delegate"
    """VirtualServices without hosts by namespace."""
    HOST_ADDRESS = "host address"
    """Hosts by address."""
    WORKLOAD_ADDRESS = "workload address"
    """WorkloadEntries by address."""
    INLINE_ADDRESS = "inline address"
    """ServiceEntries that say themselves which workloads of the mesh they have, by the addresses of these."""
    SERVICE_ADDRESS = "service address"
    """Services and ServiceEntries by the addresses they are called at."""
    SELECTOR = "selector"
    """Services and ServiceEntries that select workloads, by one of the labels they ask for."""
    LABEL = "label"
    """WorkloadEntries and WorkloadGroups by each of their labels, in their namespace and in none."""
    POLICY = "policy"
    """PeerAuthentications by namespace."""
    AUTHENTICATION = "authentication"
    """RequestAuthentications by namespace."""
    AUTHORIZATION = "authorization"
    """AuthorizationPolicies by namespace."""
    GATEWAY_LABEL = "gateway label"
    """Gateways by each of the labels they select by."""
    SIDECAR = "sidecar"
    """Sidecars by namespace."""
    CREDENTIAL_USER = "credential user"
    """Gateways by the Secrets they name, of whatever namespace."""
    MEMBER = "member"
    """Everything, by namespace."""


class Entry(NamedTuple):
    """What objects are found under. `namespace` is "" where the name means the same everywhere."""

    relation: Relation
    name: str
    namespace: str = ""


Bucket = Mapping[ObjectKey, ApiObject]
_NOTHING: Final[Bucket] = {}


class Index:
    """Objects by entries. It is never changed; `changed` returns another one."""

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: Table[Entry, Bucket] = Table()

    def at(self, entry: Entry) -> Bucket:
        """Return the objects under an entry, in no order."""
        return self._buckets.get(entry, _NOTHING)

    def changed(self, removed: Iterable[tuple[Entry, ObjectKey]], added: Iterable[tuple[Entry, ApiObject]]) -> "Index":
        """Return the index without what is removed and with what is added; what is in both stays in."""
        edits: defaultdict[Entry, dict[ObjectKey, ApiObject | None]] = defaultdict(dict)
        for entry, key in removed:
            edits[entry][key] = None
        for entry, item in added:
            edits[entry][item.key] = item
        result = Index()
        result._buckets = self._buckets.changed(
            {entry: _edited(self.at(entry), edit) or None for entry, edit in edits.items()}
        )
        return result


def _edited(bucket: Bucket, edit: Mapping[ObjectKey, ApiObject | None]) -> Bucket:
    if isinstance(bucket, Table):
        return bucket.changed(edit)
    result = {key: item for key, item in bucket.items() if key not in edit}
    result.update((key, item) for key, item in edit.items() if item is not None)
    return result if len(result) <= _SMALL else Table[ObjectKey, ApiObject]().changed(result)
