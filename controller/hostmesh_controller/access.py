"""Who may write which object. Pure: grants, what the object is and was, and what is stored.

The rules, each because of what an object of the kind can do to others:

- An admin may write everything, and alone writes what decides about whole machines: a Host, a CapturePolicy (it takes
  programs of every namespace out of the mesh, or into it), a Rollout (it runs another version there), and what
  decides about identities: a workload on a host. The address of a WorkloadEntry decides whose certificate is issued
  and to which machine. Others place workloads on the hosts that the operator has opened to the namespace
  (`Host.spec.workloadNamespaces`), and on no address that is no host's: it may become one's. A Unix socket is one of
  every caller's own machine: for admins.
- In the root namespace, and where there is none, objects hold for the whole mesh: a grant for all namespaces is needed;
  one that names the root namespace is not.
- `NAMED` kinds run code on hosts, change what Envoy does for all workloads of a host, choose workloads of other
  namespaces, or decide what machines become when they join. A grant for some namespaces has to name them.
- What other namespaces see may only be about names of the own ones: `*.NAMESPACE.svc.DOMAIN`. Whoever could define or
  route a foreign name for others would take over their calls. Within the own namespaces (`exportTo: ["."]`) any name
  will do, and addresses too.
- Hosts of a gateway of another namespace are its owner's to give: its servers must name the namespace
  (`hosts: ["shop/shop.example.com"]`).
- Who could not have made an object as it is may not change or delete it.

Namespaces that share a host share its Envoy: this is about who writes what, not a wall between such neighbours.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import exported_to, inline_workloads, service_addresses, service_names
from hostmesh_controller.checks.world import World
from hostmesh_controller.grants import Grant, Role
from hostmesh_controller.model import KINDS, ApiObject, ObjectKey
from hostmesh_controller.model.destination_rule import DestinationRuleSpec
from hostmesh_controller.model.exports import EVERY, export_to
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.health_check import HealthCheckSpec
from hostmesh_controller.model.hosts import HostSpec
from hostmesh_controller.model.services import ServiceSpec
from hostmesh_controller.model.sidecar import SidecarSpec
from hostmesh_controller.model.virtual_service import VirtualServiceSpec
from hostmesh_controller.model.workloads import UNIX, ServiceEntrySpec, Workload, WorkloadEntrySpec
from hostmesh_controller.names import MESH, canonical_address, expand, gateway_name, hosts_overlap

ADMIN_KINDS: Final = frozenset({"Host", "CapturePolicy", "Rollout"})
"""Of administrators alone: they give machines an identity, take programs of a whole machine into the mesh or out, or
change what runs on machines."""
NAMED: Final = frozenset({"EnvoyFilter", "WasmPlugin", "Gateway", "WorkloadGroup"})
"""See above: a grant for some namespaces has to name these kinds."""
OWN: Final = frozenset(
    {"Service", "ServiceAccount", "Secret", "ServiceEntry", "WorkloadEntry", "VirtualService", "DestinationRule"}
    | {"PeerAuthentication", "AuthorizationPolicy", "RequestAuthentication", "Sidecar", "ProxyConfig", "RateLimit"}
    | {"HealthCheck"}
)
"""What holds for its own namespace, as far as the rules above keep it there. All other kinds have to be named."""


def check_grants(grants: Iterable[Grant], root_namespace: str) -> str | None:
    """Return what is wrong with grants that somebody shall get, None if nothing is."""
    for grant in grants:
        unknown = sorted(grant.kinds - KINDS.keys())
        if unknown:
            return f"unknown kind {unknown[0]!r}; known: {', '.join(sorted(KINDS))}"
        if root_namespace in grant.namespaces and grant.role > Role.VIEWER:
            return (
                f"objects in {root_namespace}, the root namespace, hold for the whole mesh: "
                "grant all namespaces, or another one"
            )
    return None


def refusal(
    grants: Sequence[Grant], key: ObjectKey, before: ApiObject | None, after: ApiObject | None, world: World
) -> str | None:
    """Return why a change is not the caller's to make, with the cure; None if it is.

    Args:
        grants: the caller's.
        key: what is changed.
        before: the object as it is stored; None for none.
        after: the object as it shall be; None if it shall go.
        world: what is stored.
    """
    editing = [each for each in grants if each.role >= Role.EDITOR]
    if any(each.role is Role.ADMIN for each in editing):
        return None
    if key.kind in ADMIN_KINDS:
        return f"objects of kind {key.kind} need admin"
    versions = [each for each in (before, after) if each is not None]
    covering = [each for each in editing if each.covers(key.kind)]
    if not covering:
        return f"no grant to write objects of kind {key.kind}"
    if any(each.everywhere for each in covering):
        return _first(problem for item in versions for problem in _placing(item, world))
    mine = frozenset(name for each in covering for name in each.namespaces)
    return _within(key, covering, world) or _first(
        problem for item in versions for problem in (*_placing(item, world), *_reaching(item, mine, world))
    )


def _first(problems: Iterable[str]) -> str | None:
    return next(iter(problems), None)


def _within(key: ObjectKey, covering: Sequence[Grant], world: World) -> str | None:
    info = KINDS.get(key.kind)
    if info is None or not info.namespaced or key.namespace == world.root_namespace:
        where = f"in {world.root_namespace}" if key.namespace else f"of kind {key.kind}"
        return f"objects {where} hold for the whole mesh: a grant for all namespaces is needed"
    there = [each for each in covering if key.namespace in each.namespaces]
    if not there:
        return f"no grant for namespace {key.namespace!r}"
    if key.kind not in OWN and not any(key.kind in each.kinds for each in there):
        return (
            f"objects of kind {key.kind} reach beyond their namespace: a grant must name the kind (--kind {key.kind})"
        )
    return None


def _placing(item: ApiObject, world: World) -> Iterator[str]:
    """Yield workloads that an object places where its namespace has no place."""
    places: tuple[Workload, ...] = ()
    if isinstance(item.spec, WorkloadEntrySpec):
        places = (item.spec,)
    elif isinstance(item.spec, ServiceEntrySpec):
        if any(each.is_unix for each in item.spec.endpoints):
            yield f"{item.key} has a Unix socket for an endpoint, which is one of each caller's host: that needs admin"
        places = inline_workloads(item)
    elif isinstance(item.spec, SidecarSpec):
        bound = [each.default_endpoint for each in item.spec.ingress] + [each.bind for each in item.spec.egress]
        if any(each.startswith(UNIX) for each in bound):
            yield f"{item.key} names a Unix socket of the host: that needs admin"
    for place in places:
        if place.is_unix:
            yield f"{item.key} is at a Unix socket, which is one of each caller's host: that needs admin"
        address = canonical_address(place.address or "")
        if address is not None and not _open_to(item.key.namespace, address, world):
            yield _not_open(item.key, address, world)


def _open_to(namespace: str, address: str, world: World) -> bool:
    return any(
        isinstance(host.spec, HostSpec) and {namespace, EVERY} & set(host.spec.workload_namespaces)
        for host in world.bucket(Relation.HOST_ADDRESS, address).values()
    )


def _not_open(key: ObjectKey, address: str, world: World) -> str:
    hosts = sorted(each.key.name for each in world.bucket(Relation.HOST_ADDRESS, address).values())
    if not hosts:
        return f"{key}: {address} is no host's address; whose workloads may be there needs admin"
    return (
        f"{key}: host {hosts[0]} ({address}) is not open to namespace {key.namespace}; "
        f"an admin opens it with spec.workloadNamespaces: [{key.namespace}]"
    )


def _reaching(item: ApiObject, mine: frozenset[str], world: World) -> Iterator[str]:
    """Yield what an object does to namespaces that are not the caller's."""
    spec = item.spec
    if isinstance(spec, VirtualServiceSpec):
        yield from _foreign_gateways(item, spec, mine, world)
    if not _seen_by_others(item, mine):
        return
    if isinstance(spec, VirtualServiceSpec) and spec.for_mesh:
        yield from _foreign(item, spec.hosts, mine, world)
    elif isinstance(spec, DestinationRuleSpec | HealthCheckSpec):
        yield from _foreign(item, (spec.host,), mine, world)
    elif isinstance(spec, ServiceEntrySpec):
        yield from _foreign(item, service_names(item, world.domain), mine, world)
    if isinstance(spec, ServiceSpec | ServiceEntrySpec):
        taken = [each.text for each in service_addresses(item)]
        taken += [each for each in spec.addresses if "/" in each] if isinstance(spec, ServiceEntrySpec) else []
        if taken:
            yield f"{item.key} takes the address {taken[0]} for callers of other namespaces; {_keep_in(item)}"


def _seen_by_others(item: ApiObject, mine: frozenset[str]) -> bool:
    if isinstance(item.spec, HealthCheckSpec):
        seen = export_to(item.spec.export_to, item.key.namespace)
    else:
        seen = exported_to(item)
    return EVERY in seen or not seen <= mine


def _keep_in(item: ApiObject) -> str:
    if isinstance(item.spec, ServiceSpec):
        return 'keep it in its namespace (annotation networking.istio.io/exportTo: ".")'
    return 'keep it in its namespace (exportTo: ["."])'


def _foreign(item: ApiObject, names: Iterable[str], mine: frozenset[str], world: World) -> Iterator[str]:
    for name in names:
        full = expand(name, item.key.namespace, world.domain)
        if not any(full.endswith(f".{namespace}.svc.{world.domain}") for namespace in mine):
            yield f"{item.key} is about {name!r}, a name of others, for callers of other namespaces; {_keep_in(item)}"


def _foreign_gateways(item: ApiObject, spec: VirtualServiceSpec, mine: frozenset[str], world: World) -> Iterator[str]:
    for written in spec.gateways:
        name = gateway_name(written, item.key.namespace)
        namespace, _, own = name.rpartition("/")
        if name == MESH or namespace in mine:
            continue
        gateway = world.objects.get(ObjectKey("Gateway", namespace, own))
        for host in spec.hosts:
            if gateway is None or not _admitted(item.key.namespace, host, gateway):
                yield (
                    f"{item.key} serves {host!r} at gateway {name}; "
                    f'its owner admits it with a server for hosts: ["{item.key.namespace}/{host}"]'
                )


def _admitted(namespace: str, host: str, gateway: ApiObject) -> bool:
    """Tell whether a gateway's servers give a host to a namespace by name, and none gives it to whoever comes."""
    assert isinstance(gateway.spec, GatewaySpec)
    wanted = host.lower()
    found = [each.lower() for server in gateway.spec.servers for each in server.hosts]
    owners = {owner for owner, _, pattern in (each.rpartition("/") for each in found) if hosts_overlap(pattern, wanted)}
    return owners == {namespace}
