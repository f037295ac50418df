"""Selectors of policies and extensions: is there a workload that they choose?"""

from collections.abc import Iterator, Mapping

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.relations import selector_text
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.authorization_policy import AuthorizationPolicySpec
from hostmesh_controller.model.envoy_filter import EnvoyFilterSpec
from hostmesh_controller.model.request_authentication import RequestAuthenticationSpec
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.wasm_plugin import WasmPluginSpec


def check_selector(item: ApiObject, world: World) -> Iterator[Finding]:
    """Yield a selector that chooses no workload of the object's namespace, or of any from the root namespace."""
    path, labels = _selector(item)
    namespace = "" if item.key.namespace == world.root_namespace else item.key.namespace
    if labels and not any(True for _ in world.selected(labels, namespace)):
        where = f" of namespace {namespace!r}" if namespace else ""
        message = f"no workload{where} has the labels {selector_text(labels)} (yet?): it is for nobody"
        yield Finding(path, message, "unknown-selector", istio_code="IST0127")


def _selector(item: ApiObject) -> tuple[Path, Mapping[str, str]]:
    match item.spec:
        case EnvoyFilterSpec(workload_selector=selector) if selector is not None:
            return ("spec", "workloadSelector", "labels"), selector.labels
        case (
            AuthorizationPolicySpec(selector=chosen)
            | PeerAuthenticationSpec(selector=chosen)
            | RequestAuthenticationSpec(selector=chosen)
            | WasmPluginSpec(selector=chosen)
        ) if chosen is not None:
            return ("spec", "selector", "matchLabels"), chosen.match_labels
    return (), {}
