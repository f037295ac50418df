"""Workloads of one host that call others under an identity each.

A connection's identity is the loopback address at which the kernel gave it to Envoy (see `hostmesh_api.callers`). The
first filter of each outbound chain notes the address; clusters choose by it whose certificate is shown. What is noted
is part of the key of Envoy's connection pools: a connection that one workload opened is never used by another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from envoy.config.cluster.v3.cluster_pb2 import Cluster
from envoy.config.core.v3.base_pb2 import DataSource, TransportSocket
from envoy.config.core.v3.substitution_format_string_pb2 import SubstitutionFormatString
from envoy.config.listener.v3.listener_components_pb2 import FilterChain
from envoy.config.listener.v3.listener_pb2 import Listener
from envoy.extensions.filters.common.set_filter_state.v3.value_pb2 import FilterStateValue
from envoy.extensions.filters.network.set_filter_state.v3.set_filter_state_pb2 import Config as SetFilterState
from envoy.extensions.matching.common_inputs.transport_socket.v3.transport_socket_inputs_pb2 import (
    EndpointMetadataInput,
    FilterStateInput,
    TransportSocketNameAction,
)
from google.protobuf.message import Message
from xds.core.v3.extension_pb2 import TypedExtensionConfig
from xds.type.matcher.v3.matcher_pb2 import Matcher

from hostmesh_api.callers import caller_addresses
from hostmesh_api.identity import parse_identity
from hostmesh_controller.xds import cluster_tls, filters
from hostmesh_controller.xds.cluster_target import Outbound
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.endpoints import DISABLED, MATCH_KEY, TLS_MODE

CALLER: Final = "hostmesh.caller"
"""The key of a connection's filter state: the loopback address at which Envoy got it."""


def marked(listener: Listener, by_caller: bool) -> Listener:
    """Return an outbound listener whose chains note who calls, if anybody there has an identity of his own."""
    if by_caller:
        for chain in (*listener.filter_chains, listener.default_filter_chain):
            _mark(chain)
    return listener


def _mark(chain: FilterChain) -> None:
    noted = FilterStateValue(
        object_key=CALLER,
        # Of this type the value is part of a pool's key.
        factory_key="envoy.hashable_string",
        format_string=SubstitutionFormatString(
            text_format_source=DataSource(inline_string="%DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT%")
        ),
        read_only=True,
        shared_with_upstream=FilterStateValue.ONCE,
    )
    first = filters.network_filter("envoy.filters.network.set_filter_state", SetFilterState(on_new_connection=[noted]))
    rest = [*chain.filters]
    del chain.filters[:]
    chain.filters.extend([first, *rest])


def choose(cluster: Cluster, target: Outbound, identities: Sequence[str]) -> None:
    """Have a cluster show the caller's own certificate; what is there already is for everybody else."""
    shown: dict[str, TransportSocket] = {}
    for each in identities:
        one = Cluster()
        cluster_tls.secure(one, replace(target, caller=parse_identity(each).slug))
        if one.transport_socket != cluster.transport_socket:
            shown[each] = one.transport_socket
    if not shown:
        return
    names = {str(address): each for each in shown for address in caller_addresses(each)}
    input_name = "envoy.matching.inputs.transport_socket_filter_state"
    matcher = Matcher(matcher_tree=_tree(input_name, FilterStateInput(key=CALLER), names))
    if cluster.transport_socket_matches:
        # What endpoint it is comes first: one that is marked gets plaintext, whoever calls.
        marked_as = {DISABLED: cluster.transport_socket_matches[0].name}
        key = EndpointMetadataInput(filter=MATCH_KEY, path=[EndpointMetadataInput.PathSegment(key=TLS_MODE)])
        by_endpoint = _tree("envoy.matching.inputs.endpoint_metadata", key, marked_as)
        matcher = Matcher(matcher_tree=by_endpoint, on_no_match=Matcher.OnMatch(matcher=matcher))
    for each, socket in shown.items():
        cluster.transport_socket_matches.add(name=each, transport_socket=socket)
    cluster.transport_socket_matcher.CopyFrom(matcher)


def _tree(input_name: str, chosen_by: Message, names: Mapping[str, str]) -> Matcher.MatcherTree:
    """Return the choice of a transport socket, by its name, for each value of an input."""
    return Matcher.MatcherTree(
        input=TypedExtensionConfig(name=input_name, typed_config=any_of(chosen_by)),
        exact_match_map=Matcher.MatcherTree.MatchMap(
            map={value: Matcher.OnMatch(action=_named(name)) for value, name in names.items()}
        ),
    )


def _named(name: str) -> TypedExtensionConfig:
    return TypedExtensionConfig(
        name="envoy.matching.action.transport_socket.name", typed_config=any_of(TransportSocketNameAction(name=name))
    )
