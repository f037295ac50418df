"""The patches that hold for a host, ready to be applied."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message

from hostmesh_controller.envoy_values import BadValueError, parsed
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.envoy_filter import (
    FILTERS,
    MAX_VERSION_CHARS,
    PUTS,
    ClusterMatch,
    ConfigPatch,
    EnvoyFilterSpec,
    ListenerMatch,
    ObjectMatch,
    ProxyMatch,
    RouteConfigurationMatch,
)
from hostmesh_controller.model.objects import ApiObject

ISTIO_VERSION: Final = "1.30.0"
"""Of Istio's proxy, which `proxyVersion` is matched against: the version whose names and meanings hold here."""

INBOUND: Final = "SIDECAR_INBOUND"
OUTBOUND: Final = "SIDECAR_OUTBOUND"
GATEWAY: Final = "GATEWAY"
_ANY: Final = "ANY"
_NOTHING: Final = ObjectMatch()
_INSERTS: Final = frozenset({"INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST"})
_ORDERED: Final = frozenset({"HTTP_FILTER", "NETWORK_FILTER", "HTTP_ROUTE", "LISTENER_FILTER"})
"""Where an order can be asked for; elsewhere inserting is adding."""


@dataclass(frozen=True, slots=True)
class Patch:
    """One change. `value` is None where there is nothing to say (REMOVE); it is never changed, only copied."""

    apply_to: str
    operation: str
    match: ObjectMatch
    value: Message | None

    @property
    def merges(self) -> bool:
        return self.operation in {"MERGE", "MERGE_AND_REPLACE_LIST"}

    @property
    def listener(self) -> ListenerMatch | None:
        return self.match.listener

    @property
    def route_configuration(self) -> RouteConfigurationMatch | None:
        return self.match.route_configuration

    @property
    def cluster(self) -> ClusterMatch | None:
        return self.match.cluster

    def is_for(self, contexts: frozenset[str]) -> bool:
        return self.match.context == _ANY or self.match.context in contexts

    def adds_in(self, contexts: frozenset[str]) -> bool:
        """Tell whether a listener or cluster is added: without a context, to what is outbound and to gateways."""
        if self.match.context == _ANY:
            return bool(contexts & {OUTBOUND, GATEWAY})
        return self.match.context in contexts


@dataclass(frozen=True, slots=True)
class PatchSet:
    """All patches of all EnvoyFilters of a host by what they apply to, each list in the order of application."""

    by_target: Mapping[str, tuple[Patch, ...]] = field(default_factory=dict)

    def of(self, apply_to: str) -> tuple[Patch, ...]:
        return self.by_target.get(apply_to, ())

    def has(self, *targets: str) -> bool:
        return any(target in self.by_target for target in targets)


def patches_of(mesh: Mesh, viewer: Viewer) -> PatchSet:
    """Return the patches of a host; the same object for as long as its EnvoyFilters are."""
    items = tuple(mesh.objects.get(key) for key in viewer.patches)
    return mesh.memo.get(
        ("patches", viewer.patches, viewer.namespace), items, lambda: _patch_set(mesh, viewer.namespace, items)
    )


def _patch_set(mesh: Mesh, namespace: str, items: tuple[ApiObject | None, ...]) -> PatchSet:
    result: dict[str, tuple[Patch, ...]] = {}
    for item in items:
        for proxy, patch in _compiled(mesh, item) if item is not None else ():
            if proxy is None or _is_for_proxy(proxy, namespace):
                result[patch.apply_to] = (*result.get(patch.apply_to, ()), patch)
    return PatchSet(result)


def _compiled(mesh: Mesh, item: ApiObject) -> tuple[tuple[ProxyMatch | None, Patch], ...]:
    spec = item.spec
    assert isinstance(spec, EnvoyFilterSpec)
    return mesh.memo.get(("patches of", item.key), (item,), lambda: tuple(_each(spec)))


def _each(spec: EnvoyFilterSpec) -> list[tuple[ProxyMatch | None, Patch]]:
    result = []
    for written in spec.config_patches:
        try:
            patch = _patch(written)
        except BadValueError:
            # It is refused where it is applied (`checks.envoy_values`); one that an older version took is left out.
            continue
        if patch.apply_to in FILTERS and patch.operation in PUTS and not getattr(patch.value, "name", ""):
            # Envoy would refuse the whole listener.
            continue
        result.append((written.match.proxy if written.match else None, patch))
    return result


def _patch(written: ConfigPatch) -> Patch:
    operation, value = written.patch.operation, written.patch.value
    return Patch(
        apply_to=written.apply_to,
        operation="ADD" if operation in _INSERTS and written.apply_to not in _ORDERED else operation,
        match=written.match or _NOTHING,
        value=None if value is None or operation == "REMOVE" else parsed(written.apply_to, value).message,
    )


def _is_for_proxy(match: ProxyMatch, namespace: str) -> bool:
    # Istio's proxies tell more of themselves. What ours does not have cannot be the value that is asked for.
    metadata = {"ISTIO_VERSION": ISTIO_VERSION, "NAMESPACE": namespace}
    if any(metadata.get(name) != value for name, value in match.metadata.items()):
        return False
    return not match.proxy_version or _is_version(match.proxy_version)


def _is_version(expression: str) -> bool:
    """Tell whether an expression means our version. One that is too long (as in Istio) or not ours means none."""
    if len(expression) > MAX_VERSION_CHARS:
        return False
    try:
        return re.search(expression, ISTIO_VERSION) is not None
    except re.error:
        return False
