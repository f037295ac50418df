"""EnvoyFilters: is the value of a patch what Envoy takes, and does its operation do anything?"""

from collections.abc import Iterator, Mapping
from typing import Final

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.envoy_values import BadValueError, parsed
from hostmesh_controller.model import Path
from hostmesh_controller.model.envoy_filter import FILTERS, MAX_VERSION_CHARS, PUTS, ConfigPatch, EnvoyFilterSpec

_MERGES: Final = frozenset({"MERGE", "MERGE_AND_REPLACE_LIST"})
_INSERTS: Final = frozenset({"INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST"})
_OPERATIONS: Final[Mapping[str, frozenset[str]]] = {
    # Where inserting means nothing it adds, as in Istio.
    "LISTENER": frozenset({"ADD", "REMOVE"}) | _MERGES | _INSERTS,
    "FILTER_CHAIN": frozenset({"ADD", "REMOVE"}) | _MERGES | _INSERTS,
    "LISTENER_FILTER": frozenset({"ADD", "REMOVE", "REPLACE", "MERGE"}) | _INSERTS,
    "NETWORK_FILTER": frozenset({"ADD", "REMOVE", "REPLACE", "MERGE"}) | _INSERTS,
    "HTTP_FILTER": frozenset({"ADD", "REMOVE", "REPLACE", "MERGE"}) | _INSERTS,
    "ROUTE_CONFIGURATION": _MERGES,
    "VIRTUAL_HOST": frozenset({"ADD", "REMOVE", "REPLACE"}) | _MERGES | _INSERTS,
    "HTTP_ROUTE": frozenset({"ADD", "REMOVE"}) | _MERGES | _INSERTS,
    "CLUSTER": frozenset({"ADD", "REMOVE"}) | _MERGES | _INSERTS,
    "EXTENSION_CONFIG": frozenset({"ADD"}) | _INSERTS,
    "BOOTSTRAP": _MERGES,
}
_NEEDS_A_FILTER: Final = frozenset({"REMOVE", "REPLACE"})
_THE_AGENTS: Final[Mapping[str, str]] = {
    "node": "the agent names the host in it, and the controller knows it by that",
    "admin": "the agent looks at Envoy through it, and nobody else on the host may",
    "dynamic_resources": "it leads to the agent, from which all other configuration comes",
}


def check_envoy_values(spec: EnvoyFilterSpec) -> Iterator[Finding]:
    """Yield what cannot be read in a value and what Envoy does not know in it, and patches that change nothing."""
    for index, each in enumerate(spec.config_patches):
        path: Path = ("spec", "configPatches", index)
        yield from _value(path, each)
        yield from _effect(path, each)


def _value(path: Path, each: ConfigPatch) -> Iterator[Finding]:
    if each.patch.value is None or each.patch.operation == "REMOVE":
        return
    value = (*path, "patch", "value")
    try:
        message, unknown = parsed(each.apply_to, each.patch.value)
    except BadValueError as error:
        for fault in error.faults:
            yield Finding((*value, *fault.path), f"Envoy filter: {fault.message}", fault.code, "error")
        return
    for fault in unknown:
        yield Finding((*value, *fault.path), f"Envoy filter: {fault.message}; it is left out", fault.code)
    if each.apply_to == "BOOTSTRAP":
        for field, why in _THE_AGENTS.items():
            if message.HasField(field):
                yield Finding(value, f"{field} of Envoy's bootstrap cannot be patched: {why}", "not-supported", "error")
    elif _unnamed(each, message):
        yield Finding(value, f"what is added as {each.apply_to} has no effect without a name", "missing")


def _unnamed(each: ConfigPatch, message: object) -> bool:
    added = each.patch.operation == "ADD" and each.apply_to in {"LISTENER", "CLUSTER", "EXTENSION_CONFIG"}
    put = each.patch.operation in PUTS and each.apply_to in FILTERS
    return (added or put) and not getattr(message, "name", "")


def _effect(path: Path, each: ConfigPatch) -> Iterator[Finding]:
    proxy = each.match.proxy if each.match is not None else None
    if proxy is not None and len(proxy.proxy_version) > MAX_VERSION_CHARS:
        message = f"proxyVersion match exceeds {MAX_VERSION_CHARS} characters: the patch is for no proxy"
        yield Finding((*path, "match", "proxy", "proxyVersion"), message, "ineffective-match")
    operation, where = each.patch.operation, each.apply_to
    place = (*path, "patch", "operation")
    if operation not in _OPERATIONS[where]:
        known = ", ".join(sorted(_OPERATIONS[where]))
        yield Finding(place, f"{operation} does nothing to {where}: use one of {known}", "ignored-operation")
    elif operation in _NEEDS_A_FILTER and _matches_all_filters(each):
        message = f"{operation} of {where} does nothing without a match for the filter that is meant"
        yield Finding(place, message, "ignored-operation")
    if each.patch.filter_class != "UNSPECIFIED":
        message = "filterClass does nothing (nor does it in Istio): use INSERT_BEFORE or INSERT_AFTER with a match"
        yield Finding((*path, "patch", "filterClass"), message, "ignored-field")


def _matches_all_filters(each: ConfigPatch) -> bool:
    listener = each.match.listener if each.match is not None else None
    chain = listener.filter_chain if listener is not None else None
    found = chain.filter if chain is not None else None
    match each.apply_to:
        case "LISTENER_FILTER":
            return listener is None or not listener.listener_filter
        case "NETWORK_FILTER":
            return found is None
        case "HTTP_FILTER":
            return found is None or found.sub_filter is None
        case _:
            return False
