"""NETWORK_FILTER and HTTP_FILTER patches, in one filter chain."""

from collections.abc import Callable
from functools import partial
from typing import Final

from envoy.config.listener.v3.listener_components_pb2 import Filter, FilterChain
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import (
    HttpConnectionManager,
    HttpFilter,
)

from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.patch_merge import changed_list, merge_extension, refill
from hostmesh_controller.xds.patch_routes import TARGETS as ROUTE_TARGETS
from hostmesh_controller.xds.patch_routes import patch_routes
from hostmesh_controller.xds.patch_set import Patch, PatchSet

HTTP_MANAGER: Final = "envoy.filters.network.http_connection_manager"


def patch_filters(
    chain: FilterChain, patches: PatchSet, matches: Callable[[Patch], bool], contexts: frozenset[str]
) -> None:
    """Change the filters of a chain in place; `matches` tells whether a patch is for the chain.

    First network filters are added, replaced and removed, then they are merged with, and then the same inside of each
    HTTP connection manager.
    """
    network = [patch for patch in patches.of("NETWORK_FILTER") if matches(patch)]
    for patch in network:
        if patch.operation != "MERGE":
            found = changed_list(patch, chain.filters, partial(_is_meant, patch=patch), has_match=_names_one(patch))
            refill(chain.filters, found)
    http = [patch for patch in patches.of("HTTP_FILTER") if matches(patch)]
    inline = patches.has(*ROUTE_TARGETS)
    for each in chain.filters:
        for patch in network:
            if patch.operation == "MERGE" and _is_meant(each, patch):
                merge_extension(each, patch.value)
        if each.name == HTTP_MANAGER and (http or inline):
            _patch_manager(each, [patch for patch in http if _is_meant(each, patch)], patches, contexts)


def _names_one(patch: Patch) -> bool:
    match = patch.listener
    return match is not None and match.filter_chain is not None and match.filter_chain.filter is not None


def _is_meant(each: Filter, patch: Patch) -> bool:
    chain = patch.listener.filter_chain if patch.listener is not None else None
    return chain is None or chain.filter is None or chain.filter.name == each.name


def _patch_manager(each: Filter, patches: list[Patch], all_patches: PatchSet, contexts: frozenset[str]) -> None:
    manager = HttpConnectionManager()
    if not each.typed_config.Unpack(manager):
        return
    if manager.HasField("route_config"):
        patch_routes(manager.route_config, all_patches, contexts)
    for patch in patches:
        wanted = _sub_filter(patch)
        if patch.operation != "MERGE":
            is_meant = partial(_has_name, name=wanted)
            refill(manager.http_filters, changed_list(patch, manager.http_filters, is_meant, has_match=bool(wanted)))
    for item in manager.http_filters:
        _merge_http_filter(item, patches)
    each.typed_config.CopyFrom(any_of(manager))


def _has_name(item: HttpFilter, name: str) -> bool:
    return item.name == name


def _merge_http_filter(item: HttpFilter, patches: list[Patch]) -> None:
    for patch in patches:
        if patch.operation == "MERGE" and _sub_filter(patch) in {"", item.name}:
            merge_extension(item, patch.value)


def _sub_filter(patch: Patch) -> str:
    """Return the name of the HTTP filter that a patch means, "" for any."""
    chain = patch.listener.filter_chain if patch.listener is not None else None
    wanted = chain.filter.sub_filter if chain is not None and chain.filter is not None else None
    return wanted.name if wanted is not None else ""
