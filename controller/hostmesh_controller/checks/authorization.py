"""AuthorizationPolicies: what cannot hold, what holds for more than it seems to, and who cannot be asked."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

from hostmesh_controller.checks.finding import NOT_FOUND, Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import label_texts, labels_of, service_ports, workload_ports
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey, Path, Protocol
from hostmesh_controller.model.authorization_policy import (
    DRY_RUN,
    FALSE,
    TRUE,
    AuthorizationPolicySpec,
    Rule,
    Source,
)
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.mesh_config import MeshConfigSpec, laid_over
from hostmesh_controller.model.security import PolicySelector
from hostmesh_controller.model.workloads import ServiceEntrySpec, WorkloadEntrySpec, WorkloadGroupSpec
from hostmesh_controller.suggest import did_you_mean

_LOOKED_AT: Final = 200
"""Workloads whose ports are looked at: enough to find one, in a mesh of any size."""
_SCHEMA: Final = "IST0133"
_POINTER: Final = "cluster.local"


def check_dry_run(item: ApiObject) -> Iterator[Finding]:
    """Yield the annotation of a policy that is only tried, where Istio refuses it."""
    value = item.metadata.annotations.get(DRY_RUN)
    if value is None:
        return
    path: Path = ("metadata", "annotations", DRY_RUN)
    if not isinstance(item.spec, AuthorizationPolicySpec):
        yield Finding(path, "only an AuthorizationPolicy can be tried; remove this", "misplaced-annotation", "error")
    elif item.spec.action not in {"ALLOW", "DENY"}:
        message = f"only ALLOW and DENY can be tried, and this is {item.spec.action}; remove it"
        yield Finding(path, message, "misplaced-annotation", "error")
    elif value not in TRUE | FALSE:
        yield Finding(path, f"expected 'true' or 'false', found {value!r}", "value", "error")


def check_authorization_policy(item: ApiObject, spec: AuthorizationPolicySpec, world: World) -> Iterator[Finding]:
    """Yield what Istio's validation and `istioctl analyze` warn of, and principals that nobody can have."""
    yield from _for_nobody(item, spec, world)
    yield from _undeclared_ports(item, spec, world)
    for index, rule in enumerate(spec.rules):
        path: Path = ("spec", "rules", index)
        yield from _sources(rule, path, world)
        if spec.action == "DENY" and _denies_all_tcp(rule):
            message = (
                "as it asks for HTTP alone, this rule denies every connection to ports that are not HTTP; name the "
                "ports that it is for"
            )
            yield Finding(path, message, "denies-tcp", istio_code=_SCHEMA)
    if spec.action == "ALLOW" and spec.rules and all(map(_is_http_only, spec.rules)):
        yield from _allows_no_tcp(item, spec, world)
    if spec.action == "CUSTOM" and spec.provider is not None:
        yield from _provider(item, spec, spec.provider.name, world)


def check_providers(spec: MeshConfigSpec, world: World) -> Iterator[Finding]:
    """Yield authorizers whose service nothing defines."""
    for index, each in enumerate(spec.extension_providers):
        authorizer = each.authorizer
        if not world.services_named(authorizer.service.rpartition("/")[2].lower()):
            kind = "envoyExtAuthzHttp" if each.envoy_ext_authz_http is not None else "envoyExtAuthzGrpc"
            path: Path = ("spec", "extensionProviders", index, kind, "service")
            message = (
                f"nothing defines {authorizer.service!r} (yet?; it is a full name): until something does, what the "
                "policies mean that name this provider is refused"
            )
            yield Finding(path, message, "unknown-host", istio_code=NOT_FOUND)


def _for_nobody(item: ApiObject, spec: AuthorizationPolicySpec, world: World) -> Iterator[Finding]:
    if spec.selector is not None:
        if not spec.selector.match_labels:
            message = "a selector without labels selects everything, as none does"
            yield Finding(("spec", "selector"), message, "empty-selector", istio_code=_SCHEMA)
        return
    namespace = item.key.namespace
    if namespace != world.root_namespace and not any(_is_inhabitant(each) for each in _members(world, namespace)):
        message = f"namespace {namespace!r} has no workload (yet?): it is for nobody"
        yield Finding(("metadata", "namespace"), message, "unknown-selector", istio_code="IST0127")


def _members(world: World, namespace: str) -> Iterator[ApiObject]:
    yield from world.bucket(Relation.MEMBER, namespace).values()


def _is_inhabitant(item: ApiObject) -> bool:
    return isinstance(item.spec, WorkloadEntrySpec | WorkloadGroupSpec | HostSpec) or (
        isinstance(item.spec, ServiceEntrySpec) and bool(item.spec.endpoints)
    )


def _sources(rule: Rule, path: Path, world: World) -> Iterator[Finding]:
    for place, each in enumerate(rule.from_ or ()):
        at = (*path, "from", place, "source")
        for field, names in (("namespaces", each.source.namespaces), ("notNamespaces", each.source.not_namespaces)):
            for index, name in enumerate(names):
                if not _has_namespace(world, name):
                    message = f"there is no namespace {name!r} (yet?)"
                    yield Finding((*at, field, index), message, "unknown-namespace", istio_code=NOT_FOUND)
        for field, names in (("principals", each.source.principals), ("notPrincipals", each.source.not_principals)):
            for index, name in enumerate(names):
                reason = _nobodys(name, world)
                if reason:
                    yield Finding((*at, field, index), reason, "unknown-principal")


def _has_namespace(world: World, name: str) -> bool:
    if "*" not in name:
        return world.has_namespace(name)
    before, _, after = name.partition("*")
    found = (key.name if key.kind == "Namespace" else key.namespace for key in world.objects)
    return any(each.startswith(before) and each.endswith(after) for each in found)


def _nobodys(name: str, world: World) -> str:
    """Return why nobody can have a principal, "" if somebody may."""
    if name.startswith("spiffe:"):
        return f"{name!r}: write principals without 'spiffe://'"
    domain = name.partition("/")[0]
    settings = _settings(world)
    known = {world.trust_domain, _POINTER, *settings.trust_domain_aliases}
    if world.trust_domain and name.count("/") == 4 and "*" not in domain and domain not in known:
        return f"{domain!r} is neither the trust domain of the mesh ({world.trust_domain}) nor an alias of it"
    return ""


def _settings(world: World) -> MeshConfigSpec:
    item = world.objects.get(ObjectKey("MeshConfig", "", "default"))
    own = item.spec if item is not None and isinstance(item.spec, MeshConfigSpec) else None
    return world.mesh_config if own is None else laid_over(own, world.mesh_config)


_TCP_SOURCES: Final = (
    *("principals", "not_principals", "namespaces", "not_namespaces", "service_accounts", "not_service_accounts"),
    *("trust_domains", "not_trust_domains", "ip_blocks", "not_ip_blocks", "remote_ip_blocks", "not_remote_ip_blocks"),
)


def _has_tcp_source(source: Source) -> bool:
    return any(getattr(source, name) for name in _TCP_SOURCES)


def _denies_all_tcp(rule: Rule) -> bool:
    """Tell as Istio does: it is asked for HTTP in the sources or operations, and for nothing else there."""
    told_from = any(_has_tcp_source(each.source) for each in rule.from_ or ())
    told_to = any(each.operation.ports or each.operation.not_ports for each in rule.to or ())
    return bool((rule.from_ and not rule.to and not told_from) or (rule.to and not told_to))


def _is_http_only(rule: Rule) -> bool:
    """Tell whether a rule has no meaning without HTTP: ALLOW rules are then left out."""
    asked = (
        *(each.operation for each in rule.to or ()),
        *(each.source for each in rule.from_ or ()),
    )
    names = ("hosts", "methods", "paths", "request_principals")
    fields = (getattr(each, f"{sign}{name}", ()) for each in asked for name in names for sign in ("", "not_"))
    return any(fields) or any(each.key.startswith("request.") for each in rule.when)


def _selected(item: ApiObject, selector: PolicySelector | None, world: World) -> Iterator[ApiObject]:
    namespace = "" if item.key.namespace == world.root_namespace else item.key.namespace
    if selector is not None and selector.match_labels:
        yield from world.selected(selector.match_labels, namespace)
    elif namespace:
        yield from _members(world, namespace)


def _undeclared_ports(item: ApiObject, spec: AuthorizationPolicySpec, world: World) -> Iterator[Finding]:
    """Yield ports that none of the selected workloads declares: what is not declared is not captured."""
    workloads = list(islice(_selected(item, spec.selector, world), _LOOKED_AT))
    declared = {number for each in workloads for number in _declared(each, world)}
    for index, rule in enumerate(spec.rules if declared and len(workloads) < _LOOKED_AT else ()):
        for place, each in enumerate(rule.to or ()):
            for position, port in enumerate(each.operation.ports):
                if int(port) not in declared:
                    path: Path = ("spec", "rules", index, "to", place, "operation", "ports", position)
                    message = (
                        f"no selected workload declares port {port} (yet?), itself or by a Service: such ports are not "
                        "captured, and no policy holds there. Ports are the workload's own, not the Service's"
                    )
                    yield Finding(path, message, "undeclared-port")


def _declared(workload: ApiObject, world: World) -> Iterator[int]:
    """Yield the ports on which a workload is served, as itself and as a gateway."""
    if not isinstance(workload.spec, WorkloadEntrySpec):
        return
    yield from workload.spec.ports.values()
    for service in world.selecting(workload):
        yield from filter(None, (place.on(workload.spec) for place in workload_ports(service)))
    labels = labels_of(workload)
    for label in label_texts(labels):
        for gateway in world.bucket(Relation.GATEWAY_LABEL, label).values():
            if isinstance(gateway.spec, GatewaySpec):
                yield from (server.port.number for server in gateway.spec.servers)


def _tcp_port(item: ApiObject, selector: PolicySelector | None, world: World) -> tuple[ObjectKey, int] | None:
    """Return a selected workload with a port that is not HTTP, and the number."""
    for workload in islice(_selected(item, selector, world), _LOOKED_AT):
        if not isinstance(workload.spec, WorkloadEntrySpec):
            continue
        for service in world.selecting(workload):
            for port, place in zip(service_ports(service), workload_ports(service), strict=True):
                number = place.on(workload.spec)
                bytes_alone = port.mesh_protocol in {Protocol.TCP, Protocol.TLS, Protocol.HTTPS}
                if number is not None and bytes_alone:
                    return workload.key, number
    return None


def _allows_no_tcp(item: ApiObject, spec: AuthorizationPolicySpec, world: World) -> Iterator[Finding]:
    found = _tcp_port(item, spec.selector, world)
    if found is not None:
        message = (
            f"all of its rules ask for HTTP, and {found[0]} has port {found[1]}, which is not HTTP: connections to it "
            "are refused unless another policy allows them"
        )
        yield Finding(("spec", "rules"), message, "denies-tcp")


def _provider(item: ApiObject, spec: AuthorizationPolicySpec, name: str, world: World) -> Iterator[Finding]:
    path: Path = ("spec", "provider", "name")
    providers = {each.name: each for each in _settings(world).extension_providers}
    if name not in providers:
        message = (
            f"the mesh's settings have no extensionProvider {name!r} (yet?): what this policy means is refused"
            f"{did_you_mean(name, providers)}"
        )
        yield Finding(path, message, "unknown-provider", istio_code=NOT_FOUND)
    elif providers[name].envoy_ext_authz_http is not None and _tcp_port(item, spec.selector, world) is not None:
        message = "an authorizer that speaks HTTP is not asked about connections to ports that are not HTTP"
        yield Finding(path, message, "ineffective-setting")
    for other in _other_customs(item, world):
        assert isinstance(other.spec, AuthorizationPolicySpec)
        theirs = other.spec.provider.name if other.spec.provider is not None else ""
        if theirs != name and _may_meet(spec, other.spec):
            message = (
                f"{other.key} names the provider {theirs!r}: a workload for which both hold has one authorizer too "
                "many, and what they mean is refused"
            )
            yield Finding(path, message, "several-providers")


def _other_customs(item: ApiObject, world: World) -> Iterator[ApiObject]:
    for namespace in dict.fromkeys((item.key.namespace, world.root_namespace)):
        for other in world.others_at(Relation.AUTHORIZATION, namespace, item):
            if isinstance(other.spec, AuthorizationPolicySpec) and other.spec.action == "CUSTOM":
                yield other


def _may_meet(one: AuthorizationPolicySpec, other: AuthorizationPolicySpec) -> bool:
    """Tell whether a workload can have the labels of both selectors."""
    mine = one.selector.match_labels if one.selector is not None else {}
    theirs = other.selector.match_labels if other.selector is not None else {}
    return all(theirs.get(key, value) == value for key, value in mine.items())
