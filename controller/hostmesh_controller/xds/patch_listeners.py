"""LISTENER, LISTENER_FILTER and FILTER_CHAIN patches. The order of everything is Istio's."""

from envoy.config.listener.v3.listener_components_pb2 import FilterChain, ListenerFilter
from envoy.config.listener.v3.listener_pb2 import Listener

from hostmesh_controller.model.envoy_filter import FilterChainMatch
from hostmesh_controller.names import VIRTUAL_INBOUND, VIRTUAL_OUTBOUND
from hostmesh_controller.xds.patch_filters import patch_filters
from hostmesh_controller.xds.patch_merge import apply_merge, changed_list, merge_extension, refill
from hostmesh_controller.xds.patch_set import Patch, PatchSet

TARGETS = ("LISTENER", "LISTENER_FILTER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER")
_VIRTUAL = frozenset({VIRTUAL_INBOUND, VIRTUAL_OUTBOUND})


def patch_listener(listener: Listener, patches: PatchSet, contexts: frozenset[str]) -> bool:
    """Change a listener in place; return whether it is still there."""
    for patch in patches.of("LISTENER"):
        if not (patch.is_for(contexts) and listener_matches(listener, patch)):
            continue
        if patch.operation == "REMOVE":
            return False
        if patch.merges:
            apply_merge(patch, listener)
    for patch in patches.of("LISTENER_FILTER"):
        if patch.is_for(contexts) and listener_matches(listener, patch):
            _patch_listener_filters(listener, patch)
    _patch_chains(listener, patches, contexts)
    return True


def listener_matches(listener: Listener, patch: Patch) -> bool:
    """Tell whether a listener is meant. Of the virtual ones the port is looked for in their chains."""
    match = patch.listener
    if match is None:
        return True
    if match.name and match.name != listener.name:
        return False
    if patch.apply_to != "LISTENER" and listener.name in _VIRTUAL:
        return True
    return not match.port_number or listener.address.socket_address.port_value == match.port_number


def _patch_listener_filters(listener: Listener, patch: Patch) -> None:
    wanted = patch.listener.listener_filter if patch.listener is not None else ""

    def matches(each: ListenerFilter) -> bool:
        return each.name == wanted

    if patch.operation == "MERGE":
        for each in listener.listener_filters:
            if wanted and matches(each):
                merge_extension(each, patch.value)
    else:
        found = changed_list(patch, listener.listener_filters, matches, has_match=bool(wanted))
        refill(listener.listener_filters, found)


def _patch_chains(listener: Listener, patches: PatchSet, contexts: frozenset[str]) -> None:
    listener_chains = [chain for chain in listener.filter_chains if _patch_chain(listener, chain, patches, contexts)]
    if listener.HasField("default_filter_chain"):
        kept = _patch_chain(listener, listener.default_filter_chain, patches, contexts)
        if not kept:
            listener.ClearField("default_filter_chain")
    for patch in patches.of("FILTER_CHAIN"):
        if patch.operation == "ADD" and patch.is_for(contexts) and listener_matches(listener, patch):
            assert isinstance(patch.value, FilterChain)
            listener_chains.append(patch.value)
    if len(listener_chains) != len(listener.filter_chains) or patches.has("FILTER_CHAIN"):
        refill(listener.filter_chains, listener_chains)


def _patch_chain(listener: Listener, chain: FilterChain, patches: PatchSet, contexts: frozenset[str]) -> bool:
    """Change a filter chain in place; return whether it is still there."""
    for patch in patches.of("FILTER_CHAIN"):
        if not (patch.is_for(contexts) and listener_matches(listener, patch) and chain_matches(listener, chain, patch)):
            continue
        if patch.operation == "REMOVE":
            return False
        if patch.merges and not _merged_transport_socket(chain, patch):
            apply_merge(patch, chain)

    def matches(patch: Patch) -> bool:
        fits = patch.is_for(contexts) and listener_matches(listener, patch)
        return fits and chain_matches(listener, chain, patch)

    patch_filters(chain, patches, matches, contexts)
    return bool(chain.filters)


def _merged_transport_socket(chain: FilterChain, patch: Patch) -> bool:
    """Merge into the chain's transport socket if the patch has one of that name; then that is all it does."""
    value = patch.value
    assert isinstance(value, FilterChain)
    if not (value.HasField("transport_socket") and chain.HasField("transport_socket")):
        return False
    if chain.transport_socket.name != value.transport_socket.name:
        return False
    merge_extension(chain.transport_socket, value.transport_socket)
    return True


def chain_matches(listener: Listener, chain: FilterChain, patch: Patch) -> bool:
    """Tell whether a filter chain of a listener that is meant is meant itself."""
    match = patch.listener
    if match is None:
        return True
    port = chain.filter_chain_match.destination_port.value
    if listener.name in _VIRTUAL and match.port_number and port != match.port_number:
        return False
    return match.filter_chain is None or _fits(chain, match.filter_chain)


def _fits(chain: FilterChain, wanted: FilterChainMatch) -> bool:
    found = chain.filter_chain_match
    protocols = wanted.application_protocols.split(",") if wanted.application_protocols else []
    return (
        # Istio's chains of one port share a name; ours tell behind it for which kind of connection they are.
        wanted.name in {"", chain.name, chain.name.partition("|")[0]}
        and (not wanted.sni or wanted.sni in found.server_names)
        and wanted.transport_protocol in {"", found.transport_protocol}
        and all(protocol in found.application_protocols for protocol in protocols)
        and wanted.destination_port in {0, found.destination_port.value}
    )
