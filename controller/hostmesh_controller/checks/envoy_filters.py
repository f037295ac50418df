"""EnvoyFilters: patches whose effect depends on the order of others, or that have none."""

from collections.abc import Iterator
from typing import Final

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.model import Path
from hostmesh_controller.model.envoy_filter import ConfigPatch, EnvoyFilterSpec

_RELATIVE: Final = frozenset({"INSERT_BEFORE", "INSERT_AFTER", "REMOVE", "REPLACE"})
_TABLES: Final = frozenset({"ROUTE_CONFIGURATION", "HTTP_ROUTE"})
_REPLACEABLE: Final = frozenset({"NETWORK_FILTER", "HTTP_FILTER", "VIRTUAL_HOST"})


def check_envoy_filter(spec: EnvoyFilterSpec) -> Iterator[Finding]:
    """Yield operations that are ignored, and relative ones without a priority."""
    versioned: set[str] = set()
    for index, patch in enumerate(spec.config_patches):
        path: Path = ("spec", "configPatches", index, "patch", "operation")
        ignored = _ignored(patch)
        if ignored is not None:
            yield ignored._replace(path=path)
        elif patch.patch.operation in _RELATIVE and spec.priority == 0:
            yield _relative(path, patch.patch.operation, known=_filter_name(patch) in versioned)
        if patch.match is not None and patch.match.proxy is not None and patch.match.proxy.proxy_version:
            versioned.add(_filter_name(patch))
        yield from _check_match(patch, index)


def _ignored(patch: ConfigPatch) -> Finding | None:
    operation, where = patch.patch.operation, patch.apply_to
    if operation in {"ADD", "REMOVE"} and where in _TABLES:
        code = "IST0153" if operation == "ADD" else "IST0154"
        return Finding((), f"{operation} is ignored for {where}: use MERGE", "ignored-operation", istio_code=code)
    if operation == "REPLACE" and where not in _REPLACEABLE:
        message = f"REPLACE is for HTTP_FILTER, NETWORK_FILTER and VIRTUAL_HOST, and ignored for {where}: use MERGE"
        return Finding((), message, "ignored-operation", istio_code="IST0152")
    return None


def _relative(path: Path, operation: str, *, known: bool) -> Finding:
    message = (
        f"{operation} depends on what other EnvoyFilters did before, and their order is not said: set spec.priority"
    )
    if not known:
        return Finding(path, message, "relative-operation", istio_code="IST0151")
    message += " (an earlier patch of the same filter is for some versions of the proxy only)"
    return Finding(path, message, "relative-operation", istio_code="IST0155")


def _filter_name(patch: ConfigPatch) -> str:
    """The filter that is patched: as the value names it, or else the match; "" where neither does."""
    value = patch.patch.value
    if not value:
        return ""
    if "name" in value:
        return str(value["name"])
    listener = patch.match.listener if patch.match is not None else None
    chain = listener.filter_chain if listener is not None else None
    return chain.filter.name if chain is not None and chain.filter is not None else ""


def _check_match(patch: ConfigPatch, index: int) -> Iterator[Finding]:
    if patch.apply_to not in {"LISTENER", "FILTER_CHAIN"} or patch.match is None or patch.match.listener is None:
        return
    chain = patch.match.listener.filter_chain
    if chain is not None and chain.filter is not None:
        path = ("spec", "configPatches", index, "match", "listener", "filterChain", "filter")
        message = f"a filter is not matched for {patch.apply_to}: this has no effect. Remove it"
        yield Finding(path, message, "ineffective-match", istio_code="IST0133")
