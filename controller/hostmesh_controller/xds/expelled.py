"""Who was expelled is refused by every proxy that it could call.

A filter stands first in every chain that callers from outside the host reach. Whom it refuses comes by name (ECDS), the
same for all hosts: an expulsion changes no listener and drains no connection, and holds for the next request of every
open HTTP connection. Callers are told by their certificate's subject, which names the enrolment that it was issued
under; a caller without a certificate is not what this is about.
"""

from typing import Final

from envoy.config.core.v3.config_source_pb2 import ExtensionConfigSource
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.listener.v3.listener_components_pb2 import Filter
from envoy.config.rbac.v3.rbac_pb2 import RBAC as RULES
from envoy.config.rbac.v3.rbac_pb2 import Action
from envoy.extensions.filters.http.rbac.v3.rbac_pb2 import RBAC as HTTP_RBAC
from envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2 import HttpFilter
from envoy.extensions.filters.network.rbac.v3.rbac_pb2 import RBAC as NETWORK_RBAC
from envoy.extensions.matching.common_inputs.ssl.v3.ssl_inputs_pb2 import SubjectInput
from google.protobuf.message import Message
from xds.core.v3.extension_pb2 import TypedExtensionConfig as MatcherConfig
from xds.type.matcher.v3.matcher_pb2 import Matcher

from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Host
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.extension_types import NONE, Direction, Extensions, Traffic
from hostmesh_controller.xds.sources import ads

HTTP: Final = "hostmesh.expelled"
NETWORK: Final = "hostmesh.expelled.network"
"""Names of the filters, and of what they are told."""
FIRST_LIST_TIMEOUT_S: Final = 10.0
"""How long a new listener waits for the list. An Envoy that starts while neither the agent's disk nor the controller
has it serves without: else one file lost would take a host out of the mesh for as long as the controller is away."""


def expelled_of(_mesh: Mesh, _host: Host, traffic: Traffic) -> Extensions:
    """Return the filters of chains that others can call."""
    return NONE if traffic.direction is Direction.OUTBOUND else _FILTERS


def configuration(name: str, enrolments: tuple[str, ...]) -> TypedExtensionConfig:
    """Return what the filter of that name is told: the enrolments whose certificates it refuses."""
    return TypedExtensionConfig(name=name, typed_config=any_of(_rbac(name, enrolments)))


def _rbac(name: str, enrolments: tuple[str, ...]) -> Message:
    # Without a matcher nobody is looked at.
    matcher = _matcher(enrolments) if enrolments else None
    if name == HTTP:
        return HTTP_RBAC(matcher=matcher, rules_stat_prefix="expelled.")
    return NETWORK_RBAC(matcher=matcher, stat_prefix="expelled.")


def _matcher(enrolments: tuple[str, ...]) -> Matcher:
    """Return the tree that finds a subject in a table, however many there are; everybody else is let in."""
    denied = Matcher.OnMatch(action=_action("expelled", RULES.DENY))
    subjects = Matcher.MatcherTree.MatchMap(map={f"CN={each}": denied for each in enrolments})
    subject = MatcherConfig(name="envoy.matching.inputs.subject", typed_config=any_of(SubjectInput()))
    return Matcher(
        matcher_tree=Matcher.MatcherTree(input=subject, exact_match_map=subjects),
        on_no_match=Matcher.OnMatch(action=_action("let in", RULES.ALLOW)),
    )


def _action(name: str, action: RULES.Action.ValueType) -> MatcherConfig:
    return MatcherConfig(name="envoy.filters.rbac.action", typed_config=any_of(Action(name=name, action=action)))


def _discovery(name: str) -> ExtensionConfigSource:
    default = any_of(_rbac(name, ()))
    return ExtensionConfigSource(
        config_source=ads(FIRST_LIST_TIMEOUT_S), default_config=default, type_urls=[default.type_url]
    )


_FILTERS: Final = Extensions(
    key=(HTTP,),
    first=(HttpFilter(name=HTTP, config_discovery=_discovery(HTTP)),),
    tcp_first=(Filter(name=NETWORK, config_discovery=_discovery(NETWORK)),),
)
