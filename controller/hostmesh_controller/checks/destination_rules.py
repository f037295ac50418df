"""DestinationRules: their host, their subsets, and how they speak TLS to it."""

from collections.abc import Iterator

from hostmesh_controller.checks.finding import Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.placement import is_wide
from hostmesh_controller.checks.relations import exported_to, inline_workloads, labels_of, selector_of
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, Path
from hostmesh_controller.model.destination_rule import ClientTls, DestinationRuleSpec, Subset, TrafficPolicy
from hostmesh_controller.model.security import PeerAuthenticationSpec
from hostmesh_controller.model.workloads import ServiceEntrySpec


def check_destination_rule(item: ApiObject, spec: DestinationRuleSpec, world: World) -> Iterator[Finding]:
    """Yield a host that is not there, subsets that are doubtful, and TLS that verifies nothing or is not answered."""
    host = world.full(spec.host, item)
    services = world.services_named(host, exported_to(item) | {item.key.namespace})
    if not services and not host.startswith("*"):
        message = f"no Service or ServiceEntry defines {host!r}{world.near(host)}"
        yield Finding(("spec", "host"), message, "unknown-host", istio_code="IST0174")
    yield from _check_others(item, spec, host, world)
    for service in services[:1]:
        for index, subset in enumerate(spec.subsets):
            yield from _check_members(("spec", "subsets", index), subset, service, world)
    for path, tls, port in _tls(spec):
        if not (tls.credential_name and spec.workload_selector is not None):
            yield from _check_verification(path, tls, host, port)
        for service in services[:1]:
            yield from _check_strict(path, tls, service, world)


def _check_others(item: ApiObject, spec: DestinationRuleSpec, host: str, world: World) -> Iterator[Finding]:
    for other in world.others_at(Relation.RULE, host, item):
        if other.key.namespace != item.key.namespace:
            continue
        assert isinstance(other.spec, DestinationRuleSpec)
        taken = {subset.name for subset in other.spec.subsets}
        for index, subset in enumerate(spec.subsets):
            if subset.name in taken:
                message = f"{other.key} defines the subset {subset.name!r} of this host too; the older one wins"
                yield Finding(("spec", "subsets", index, "name"), message, "duplicate-subset")


def _check_members(path: Path, subset: Subset, service: ApiObject, world: World) -> Iterator[Finding]:
    """Yield a subset without endpoints, where the mesh knows the endpoints."""
    selector = selector_of(service)
    if selector:
        wanted = dict(selector) | dict(subset.labels)
        found = any(True for _ in world.selected(wanted, service.key.namespace))
    elif isinstance(service.spec, ServiceEntrySpec) and service.spec.endpoints:
        found = any(subset.labels.items() <= endpoint.labels.items() for endpoint in service.spec.endpoints)
    else:
        # What DNS names, or what is reached where it was going, has no labels to choose by.
        found = not subset.labels
    if not found:
        near = _labels_there(subset, service, world)
        message = (
            f"no workload of {service.key} has the labels of the subset {subset.name!r}{near}: calls to it fail with "
            "503"
        )
        yield Finding((*path, "labels"), message, "empty-subset", istio_code="IST0173")


def _labels_there(subset: Subset, service: ApiObject, world: World) -> str:
    members = [labels_of(each) for each in world.selected(selector_of(service), service.key.namespace)]
    members += [dict(endpoint.labels) for endpoint in inline_workloads(service)]
    there = sorted({f"{name}={each[name]}" for each in members for name in subset.labels if name in each})
    return f" (there are: {', '.join(there[:5])})" if there else ""


def _tls(spec: DestinationRuleSpec) -> Iterator[tuple[Path, ClientTls, int | None]]:
    """Yield the TLS settings with their paths, and the port where it is one's."""
    policies: list[tuple[Path, TrafficPolicy | None]] = [(("spec", "trafficPolicy"), spec.traffic_policy)]
    policies += [
        (("spec", "subsets", index, "trafficPolicy"), each.traffic_policy) for index, each in enumerate(spec.subsets)
    ]
    for path, policy in policies:
        if policy is None:
            continue
        if policy.tls is not None:
            yield (*path, "tls"), policy.tls, None
        for index, settings in enumerate(policy.port_level_settings):
            if settings.tls is not None:
                yield (*path, "portLevelSettings", index, "tls"), settings.tls, settings.port.number


def _check_verification(path: Path, tls: ClientTls, host: str, port: int | None) -> Iterator[Finding]:
    if tls.mode not in {"SIMPLE", "MUTUAL"} or tls.ca_certificates:
        return
    code = "IST0128" if port is None else "IST0129"
    at = f"{host!r}" if port is None else f"{host!r} at port {port}"
    if tls.insecure_skip_verify:
        message = f"insecureSkipVerify: the certificate of {at} is not verified; set caCertificates instead"
    elif tls.credential_name:
        message = (
            f"TLS mode {tls.mode} without caCertificates: the certificate of {at} is checked against ca.crt of the "
            f"Secret {tls.credential_name!r} alone; see that it is there"
        )
    else:
        message = (
            f"TLS mode {tls.mode} without caCertificates: the certificate of {at} is checked against the host's own "
            "roots; name the file of the roots that may sign it"
        )
    yield Finding(path, message, "no-ca-certificates", istio_code=code)


def _check_strict(path: Path, tls: ClientTls, service: ApiObject, world: World) -> Iterator[Finding]:
    if tls.mode == "ISTIO_MUTUAL" or _outside(service):
        return
    strict = _strict_policy(service, world)
    if strict is not None:
        what = "plaintext" if tls.mode == "DISABLE" else f"TLS of mode {tls.mode}"
        message = (
            f"calls go out as {what}, and {strict.key} lets in the mesh's mutual TLS alone (STRICT): they are "
            "refused. Use mode ISTIO_MUTUAL, or leave tls out"
        )
        yield Finding((*path, "mode"), message, "mtls-conflict")


def _outside(service: ApiObject) -> bool:
    return isinstance(service.spec, ServiceEntrySpec) and service.spec.location == "MESH_EXTERNAL"


def _strict_policy(service: ApiObject, world: World) -> ApiObject | None:
    """Return the policy that makes a service strict: of its workloads, of its namespace, or else of the mesh."""
    selector = selector_of(service)
    own = world.at(Relation.POLICY, service.key.namespace)
    candidates = [each for each in own if _selects(each, dict(selector))]
    candidates += [each for each in own if isinstance(each.spec, PeerAuthenticationSpec) and is_wide(each.spec)]
    root = world.at(Relation.POLICY, world.root_namespace)
    candidates += [each for each in root if isinstance(each.spec, PeerAuthenticationSpec) and is_wide(each.spec)]
    for each in candidates:
        assert isinstance(each.spec, PeerAuthenticationSpec)
        mode = each.spec.mtls.mode if each.spec.mtls else None
        if mode not in {None, "UNSET"}:
            return each if mode == "STRICT" else None
    return None


def _selects(policy: ApiObject, selector: dict[str, str]) -> bool:
    assert isinstance(policy.spec, PeerAuthenticationSpec)
    wanted = policy.spec.selector.match_labels if policy.spec.selector else {}
    return bool(wanted) and wanted.items() <= selector.items()
