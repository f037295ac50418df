"""Which DestinationRules hold for a service, as one viewer sees it: Istio's search, and what is merged with what.

Of each namespace there are two sets: what its own hosts find, and what it exports to others. Within a set the rules of
one host are merged into one where they are for the same callers.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hostmesh_controller.mesh.compiled import age_of
from hostmesh_controller.mesh.index import Mesh
from hostmesh_controller.mesh.records import Service
from hostmesh_controller.mesh.viewer import Viewer
from hostmesh_controller.model.destination_rule import (
    DestinationRuleSpec,
    LoadBalancer,
    LocalityLbSetting,
    ZoneAwareLbSetting,
)
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.names import expand, wildcards

_PUBLIC: Final = "*"
_PRIVATE: Final = "."
TOPOLOGY: Final = ("topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone")
"""Labels that say where something is; they follow from its locality."""
NETWORK: Final = "topology.istio.io/network"

Setting = LocalityLbSetting | ZoneAwareLbSetting


@dataclass(slots=True)
class _Merged:
    """Rules that are one: those of `rules` that come first win. `exports` as written; empty is the mesh's default."""

    exports: frozenset[str]
    rules: list[ApiObject]

    @property
    def selector(self) -> Mapping[str, str] | None:
        return selector_of(self.rules[0])


def spec_of(item: ApiObject) -> DestinationRuleSpec:
    assert isinstance(item.spec, DestinationRuleSpec)
    return item.spec


def selector_of(item: ApiObject) -> Mapping[str, str] | None:
    """Return the labels of the calling workloads for which a rule is, or None if it is for all callers."""
    selector = spec_of(item).workload_selector
    return None if selector is None else selector.match_labels


def rule_hosts(item: ApiObject, domain: str) -> tuple[str, ...]:
    """Return the full name, or the pattern, of the services that a rule is for."""
    return (expand(spec_of(item).host, item.key.namespace, domain),)


def compared_labels(item: ApiObject) -> frozenset[str]:
    """Return the keys of the callers' labels on which it depends what a rule means to them."""
    settings = [each for balancer in _balancers(item) for each in settings_of(balancer)]
    return frozenset(selector_of(item) or ()).union(*map(label_keys, settings))


def _balancers(item: ApiObject) -> list[LoadBalancer]:
    spec = spec_of(item)
    whole = (spec.traffic_policy, *(subset.traffic_policy for subset in spec.subsets))
    policies = [policy for policy in whole if policy is not None]
    found = [policy.load_balancer for policy in policies]
    found += [port.load_balancer for policy in policies for port in policy.port_level_settings]
    return [balancer for balancer in found if balancer is not None]


def may_be_dialled(mesh: Mesh, hostname: str) -> bool:
    """Tell whether a rule lets callers of a service dial its endpoints themselves."""
    keys = (key for host in _patterns(hostname) for key in mesh.destination_rules.get(host, ()))
    return any(each.simple == "PASSTHROUGH" for key in keys for each in _balancers(mesh.objects[key]))


def shapes_connections(item: ApiObject) -> bool:
    """Tell whether a rule says something of connections that is realised where they are taken, not in a cluster."""
    spec = spec_of(item)
    for policy in (spec.traffic_policy, *(subset.traffic_policy for subset in spec.subsets)):
        if policy is None:
            continue
        pools = (policy.connection_pool, *(port.connection_pool for port in policy.port_level_settings))
        settings = (pool.tcp for pool in pools if pool is not None and pool.tcp is not None)
        bounded = any(tcp.idle_timeout is not None or tcp.max_connection_duration is not None for tcp in settings)
        if bounded or policy.tunnel is not None:
            return True
    return False


def settings_of(balancer: LoadBalancer) -> tuple[Setting, ...]:
    """Return what a balancer says of localities."""
    return tuple(each for each in (balancer.locality_lb_setting, balancer.zone_aware_lb_setting) if each is not None)


def label_keys(setting: Setting) -> frozenset[str]:
    """Return the keys of the callers' labels that a setting compares, without those that follow from a locality."""
    named = (label.partition("=") for label in setting.failover_priority)
    return frozenset(key for key, given, _ in named if not given) - {*TOPOLOGY, NETWORK}


def destination_rules_for(mesh: Mesh, service: Service, viewer: Viewer) -> tuple[ApiObject, ...]:
    """Return the DestinationRules that hold for a service, merged: the first has the traffic policy if it has one.

    Istio's order: the caller's namespace, the service's, the root namespace. In each the nearest host decides, even
    where its rules are for other callers. A rule that selects the caller goes before one for all.
    """
    if not mesh.destination_rules:
        return ()
    hosts = _patterns(service.id.hostname)
    root = mesh.settings.root_namespace
    own = _nearest(mesh, hosts, viewer.namespace, lambda item: _is_found_at_home(mesh, item))
    if own:
        return _chosen(_merged(own), viewer)
    for namespace in dict.fromkeys((service.id.namespace, root)):
        found = _nearest(mesh, hosts, namespace, lambda item: not _is_private(mesh, item))
        visible = [each for each in _merged(found) if not each.exports or each.exports & {_PUBLIC, viewer.namespace}]
        if visible:
            return _chosen(visible, viewer)
    return ()


def _patterns(hostname: str) -> tuple[str, ...]:
    """Return the hosts under which rules for a service may be, the nearest first."""
    if hostname.startswith("*"):
        return (hostname, *(each for each in wildcards(hostname.removeprefix("*.")) if each != hostname))
    return (hostname, *wildcards(hostname))


def _nearest(mesh: Mesh, hosts: Iterable[str], namespace: str, fits: Callable[[ApiObject], bool]) -> list[ApiObject]:
    for host in hosts:
        keys = mesh.destination_rules.get(host)
        if keys is None:
            continue
        found = [item for item in _of_namespace(mesh, host, keys, namespace) if fits(item)]
        if found:
            return sorted(found, key=lambda item: (selector_of(item) is None, age_of(item)))
    return []


def _of_namespace(mesh: Mesh, host: str, keys: frozenset[ObjectKey], namespace: str) -> list[ApiObject]:
    # A host such as `*` can have a rule in each of many namespaces.
    def make() -> dict[str, list[ObjectKey]]:
        result: dict[str, list[ObjectKey]] = {}
        for key in keys:
            result.setdefault(key.namespace, []).append(key)
        return result

    by_namespace = mesh.memo.get(("rules by namespace", host), (keys,), make)
    return [mesh.objects[key] for key in by_namespace.get(namespace, ())]


def _exports(item: ApiObject) -> frozenset[str]:
    # Rules for chosen workloads are never for other namespaces.
    return frozenset({_PRIVATE}) if selector_of(item) is not None else frozenset(spec_of(item).export_to)


def _is_found_at_home(mesh: Mesh, item: ApiObject) -> bool:
    if item.key.namespace == mesh.settings.root_namespace:
        # What the root namespace has for the whole mesh must not go before a service's own rules.
        return _is_private(mesh, item)
    exports = _exports(item)
    return not exports or bool(exports & {_PUBLIC, _PRIVATE, item.key.namespace})


def _is_private(mesh: Mesh, item: ApiObject) -> bool:
    exports = _exports(item)
    if not exports:
        return _PRIVATE in mesh.config.default_destination_rule_export_to
    return len(exports) == 1 and bool(exports & {_PRIVATE, item.key.namespace})


def _merged(rules: Iterable[ApiObject]) -> list[_Merged]:
    """Return the rules of one host, merged: those for the same callers are one.

    One that is exported further than another counts for the callers of both. (Istio's code means to, and loses it.)
    """
    result: list[_Merged] = []
    for item in rules:
        exports, selector = _exports(item), selector_of(item)
        alone = True
        for other in result:
            same = exports == other.exports
            if not same and not (other.exports and exports > other.exports):
                alone = True
                continue
            if selector is not None and other.selector is not None and selector != other.selector:
                alone = True
                continue
            # One for more callers adds to one for fewer, and still holds for the others.
            alone = not same or (selector is None) != (other.selector is None)
            other.rules.append(item)
        if alone:
            result.append(_Merged(exports, [item]))
    return result


def _chosen(merged: Iterable[_Merged], viewer: Viewer) -> tuple[ApiObject, ...]:
    for_all: tuple[ApiObject, ...] = ()
    for each in merged:
        selector = each.selector
        if selector is None:
            # Of rules that exclude each other the last counts, as in Istio; one that is merged already is not another.
            for_all = for_all if each.rules[0] in for_all else tuple(each.rules)
        elif each.rules[0].key.namespace == viewer.namespace and viewer.selected_by(selector):
            return tuple(each.rules)
    return for_all
