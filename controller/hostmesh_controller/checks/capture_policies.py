"""CapturePolicies: for whom they are, what of them can never hold, and what they do not open."""

from collections.abc import Collection, Iterator, Mapping
from ipaddress import ip_network

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import NEVER_CAPTURED, addresses_of, labels_of, selector_text
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey, Path
from hostmesh_controller.model.capture_policy import CapturePolicySpec, InboundCapture, InboundRule, OutboundCapture
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.mesh_config import MeshConfigSpec
from hostmesh_controller.model.security import PeerAuthenticationSpec

Faces = Mapping[ObjectKey, tuple[tuple[str, Mapping[str, str]], ...]]
"""Namespace and labels of each workload of a host, as selectors see them."""


def check_capture_policy(item: ApiObject, world: World) -> Iterator[Finding]:
    """Yield what is doubtful in a CapturePolicy; nothing for other kinds."""
    spec = item.spec
    if not isinstance(spec, CapturePolicySpec):
        return
    hosts = _faces(world)
    mine = _selected(item, spec, hosts, world)
    if hosts and not mine:
        said = selector_text(_labels(spec))
        message = f"no host{f' with the labels {said}' if said else ''} is in it (yet?): it is for nobody"
        yield Finding(
            ("spec", "selector", "matchLabels") if said else ("metadata", "namespace"), message, "unknown-selector"
        )
    yield from _rivals(item, spec, mine, hosts, world)
    for name, direction in (("inbound", spec.inbound), ("outbound", spec.outbound)):
        yield from _never_held(name, direction)
    yield from _stays_captured(item, spec, world)
    if spec.outbound.failure_mode == "open":
        yield from _stays_closed(spec, world)


def _labels(spec: CapturePolicySpec) -> Mapping[str, str]:
    return spec.selector.match_labels if spec.selector else {}


def _faces(world: World) -> Faces:
    """Return what selectors see of each host. All of them are looked at: policies are few."""
    result = {}
    for key, host in world.objects.items():
        if isinstance(host.spec, HostSpec):
            own = host.metadata.labels
            here = [
                each for address in addresses_of(host) for each in world.at(Relation.WORKLOAD_ADDRESS, address.text)
            ]
            faces = [(each.key.namespace, {**own, **labels_of(each)}) for each in here]
            result[key] = tuple(faces or [(host.spec.namespace or "default", own)])
    return result


def _selected(item: ApiObject, spec: CapturePolicySpec, hosts: Faces, world: World) -> set[ObjectKey]:
    labels, namespace = _labels(spec), item.key.namespace
    return {
        key
        for key, faces in hosts.items()
        if any(namespace in {own, world.root_namespace} and labels.items() <= has.items() for own, has in faces)
    }


def _rivals(
    item: ApiObject, spec: CapturePolicySpec, mine: set[ObjectKey], hosts: Faces, world: World
) -> Iterator[Finding]:
    """Yield other policies between which and this one only age decides."""
    root = world.root_namespace
    for key, other in world.objects.items():
        if key == item.key or not isinstance(other.spec, CapturePolicySpec):
            continue
        alike = (bool(_labels(other.spec)), key.namespace == root) == (bool(_labels(spec)), item.key.namespace == root)
        both = mine & _selected(other, other.spec, hosts, world) if alike else set()
        if both:
            names = ", ".join(sorted(each.name for each in both)[:3])
            message = (
                f"{other.key} is for {names}{' and others' if len(both) > 3 else ''} too, and policies are not merged: "
                "the older one holds. Merge them, or let their selectors choose other hosts"
            )
            yield Finding(("metadata", "name"), message, "duplicate-policy")


def _never_held(name: str, direction: InboundCapture | OutboundCapture) -> Iterator[Finding]:
    for index, rule in enumerate(direction.include):
        path: Path = ("spec", name, "include", index)
        never = {port: whose for port in rule.port_numbers if (whose := NEVER_CAPTURED.get(port))}
        if rule.ports and len(never) == len(rule.port_numbers):
            port, whose = next(iter(never.items()))
            message = f"port {port} is that of {whose}, which is never captured: the rule can never hold"
            yield Finding((*path, "ports"), message, "never-captured")
        for place, excluded in enumerate(direction.exclude):
            if _covers(excluded, rule):
                message = f"all of it is in {name}.exclude[{place}], and what is excluded is not captured: remove one"
                yield Finding(path, message, "never-captured")
                break


def _covers(wide: InboundRule, narrow: InboundRule) -> bool:
    """Tell whether everything that the second rule is about is in the first."""
    for field in type(wide).model_fields:
        asked, given = _values(wide, field), _values(narrow, field)
        if asked and not (given and all(_one_covers(field, asked, each) for each in given)):
            return False
    return True


def _values(rule: InboundRule, field: str) -> Collection[object]:
    return frozenset(rule.port_numbers) if field == "ports" else getattr(rule, field, ())


def _one_covers(field: str, wide: Collection[object], narrow: object) -> bool:
    if field != "cidrs":
        return narrow in wide
    inner = ip_network(str(narrow))
    return any(
        outer.version == inner.version and outer[0] <= inner[0] and inner[-1] <= outer[-1]  # type: ignore[operator]
        for outer in (ip_network(str(each)) for each in wide)
    )


def _stays_captured(item: ApiObject, spec: CapturePolicySpec, world: World) -> Iterator[Finding]:
    strict = next((each for each in _policies(item, world) if _has_strict(each.spec)), None)
    inbound = spec.inbound
    if strict is not None and (inbound.failure_mode == "open" or inbound.include or inbound.exclude):
        message = (
            f"{strict.key} says STRICT: ports that take mutual TLS alone stay captured whatever is left out here, and "
            "are closed while no Envoy is there"
        )
        yield Finding(("spec", "inbound"), message, "strict-stays-captured")


def _stays_closed(spec: CapturePolicySpec, world: World) -> Iterator[Finding]:
    path: Path = ("spec", "outbound", "failureMode")
    mesh = world.objects.get(ObjectKey("MeshConfig", "", "default"))
    own = mesh.spec if mesh is not None and isinstance(mesh.spec, MeshConfigSpec) else world.mesh_config
    if own.outbound_traffic_policy.mode == "REGISTRY_ONLY":
        message = "nothing but known services may be called (REGISTRY_ONLY): outbound stays closed without an Envoy"
        yield Finding(path, message, "stays-closed")
    elif spec.scope != "all":
        message = (
            "with scope mesh only ServiceEntries with addresses that are MESH_EXTERNAL, and that no rule is about, are "
            "called directly while no Envoy is there; what is of the mesh is not called without mutual TLS"
        )
        yield Finding(path, message, "stays-closed")


def _policies(item: ApiObject, world: World) -> Iterator[ApiObject]:
    for namespace in dict.fromkeys((item.key.namespace, world.root_namespace)):
        yield from world.at(Relation.POLICY, namespace)


def _has_strict(spec: object) -> bool:
    assert isinstance(spec, PeerAuthenticationSpec)
    own = [spec.mtls] if spec.mtls is not None else []
    return any(each.mode == "STRICT" for each in (*own, *(spec.port_level_mtls or {}).values()))
