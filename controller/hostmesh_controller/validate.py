"""Do the objects that are to be applied fit each other and what is stored?

Errors are what cannot work or is not safe; warnings are what may only not be there yet: objects come in any order.
"""

from collections.abc import Iterable, Iterator

from hostmesh_controller.checks.annotations import check_annotations, suppressed
from hostmesh_controller.checks.authorization import (
    check_authorization_policy,
    check_dry_run,
    check_providers,
)
from hostmesh_controller.checks.capture_policies import check_capture_policy
from hostmesh_controller.checks.delegates import check_delegates
from hostmesh_controller.checks.destination_rules import check_destination_rule
from hostmesh_controller.checks.envoy_filters import check_envoy_filter
from hostmesh_controller.checks.envoy_values import check_envoy_values
from hostmesh_controller.checks.exports import check_exports
from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.gateway_routes import check_gateway_routes
from hostmesh_controller.checks.gateways import check_gateway
from hostmesh_controller.checks.mesh_settings import check_mesh_config, check_outbound_policy
from hostmesh_controller.checks.placement import check_host, check_peer_authentication, check_workload
from hostmesh_controller.checks.request_authentications import check_claim_routes, check_request_authentication
from hostmesh_controller.checks.route_order import check_route_order
from hostmesh_controller.checks.selectors import check_selector
from hostmesh_controller.checks.services import check_service
from hostmesh_controller.checks.settings import check_settings
from hostmesh_controller.checks.sidecar_listeners import check_sidecar_listeners
from hostmesh_controller.checks.sidecars import check_sidecar
from hostmesh_controller.checks.virtual_services import check_virtual_service
from hostmesh_controller.checks.wasm_plugins import check_wasm_plugin
from hostmesh_controller.checks.withdrawn import check_withdrawn
from hostmesh_controller.checks.world import World
from hostmesh_controller.load import Problem
from hostmesh_controller.model import ApiObject, ObjectKey, path_text
from hostmesh_controller.model.authorization_policy import AuthorizationPolicySpec
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.envoy_filter import EnvoyFilterSpec
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.request_authentication import RequestAuthenticationSpec
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.sidecar import SidecarSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.wasm_plugin import WasmPluginSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec


def validate(objects: Iterable[ApiObject], world: World) -> list[Problem]:
    """Return what does not fit, in the order of the objects.

    Only the given objects are reported on, with what others lose by the change; so it costs what these objects have to
    do with, not what the mesh is. Where one key is there twice, each is looked at; to the other objects, the last one
    counts.

    Args:
        objects: what is to be applied; each was read without problems.
        world: what is stored; objects of the same key are replaced.
    """
    given = list(objects)
    new = {item.key: item for item in given}
    last = world.changed(new)
    problems: list[Problem] = []
    for item in given:
        after = last if new[item.key] is item else last.changed({item.key: item})
        found = (*_findings(item, after), *check_withdrawn(item.key, world, after))
        problems += (_problem(item.key, item, each) for each in found if not _is_suppressed(item, each))
    return problems


def validate_deletion(keys: Iterable[ObjectKey], world: World) -> list[Problem]:
    """Return what others miss when objects are deleted, in the order of the keys; keys of nothing say nothing."""
    gone = {key: None for key in keys if key in world.objects}
    after = world.changed(gone)
    return [_problem(key, None, finding) for key in gone for finding in check_withdrawn(key, world, after)]


def _findings(item: ApiObject, world: World) -> Iterator[Finding]:
    yield from check_annotations(item)
    yield from check_dry_run(item)
    yield from check_settings(item)
    yield from check_exports(item, world)
    yield from check_selector(item, world)
    yield from check_capture_policy(item, world)
    match item.spec:
        case VirtualServiceSpec() as spec:
            yield from check_virtual_service(item, spec, world)
            yield from check_route_order(spec)
            yield from check_gateway_routes(item, spec, world)
            yield from check_delegates(item, spec, world)
            yield from check_claim_routes(item, spec, world)
        case DestinationRuleSpec() as spec:
            yield from check_destination_rule(item, spec, world)
        case HostSpec() as spec:
            yield from check_host(item, spec, world)
        case WorkloadEntrySpec() as spec:
            yield from check_workload(item, spec, world)
        case ServiceSpec() | ServiceEntrySpec():
            yield from check_service(item, world)
        case PeerAuthenticationSpec() | RequestAuthenticationSpec() | AuthorizationPolicySpec():
            yield from _policy_findings(item, world)
        case GatewaySpec() as spec:
            yield from check_gateway(item, spec, world)
        case SidecarSpec() as spec:
            yield from check_sidecar(item, spec, world)
            yield from check_outbound_policy(spec)
            yield from check_sidecar_listeners(spec)
        case MeshConfigSpec() as spec:
            yield from check_mesh_config(spec, world)
            yield from check_providers(spec, world)
        case EnvoyFilterSpec() as spec:
            yield from check_envoy_filter(spec)
            yield from check_envoy_values(spec)
        case WasmPluginSpec() as spec:
            yield from check_wasm_plugin(spec)


def _policy_findings(item: ApiObject, world: World) -> Iterator[Finding]:
    match item.spec:
        case PeerAuthenticationSpec() as spec:
            yield from check_peer_authentication(item, spec, world)
        case RequestAuthenticationSpec() as spec:
            yield from check_request_authentication(spec)
        case AuthorizationPolicySpec() as spec:
            yield from check_authorization_policy(item, spec, world)


def _is_suppressed(item: ApiObject, finding: Finding) -> bool:
    return finding.severity != "error" and bool(suppressed(item) & {"*", finding.code, finding.istio_code})


def _problem(key: ObjectKey, item: ApiObject | None, finding: Finding) -> Problem:
    file, line, column = str(key), 0, 0
    if item is not None and item.origin is not None:
        file, (line, column) = item.origin.file, item.origin.place(finding.path)
    path = path_text(finding.path)
    return Problem(
        file, line, column, path, finding.message, finding.code, finding.severity, key, istio_code=finding.istio_code
    )
