"""VirtualServices at gateways: are the gateways there, and do they let the hosts in?"""

from collections.abc import Iterator, Sequence

from hostmesh_controller.checks.finding import NOT_FOUND, Finding
from hostmesh_controller.checks.index import Relation
from hostmesh_controller.checks.relations import destinations
from hostmesh_controller.checks.world import World
from hostmesh_controller.model import ApiObject, ObjectKey, Path
from hostmesh_controller.model.gateway import GatewaySpec
from hostmesh_controller.model.virtual_service import ConnectionMatch, HttpMatch, VirtualServiceSpec
from hostmesh_controller.names import MESH, gateway_name, hosts_overlap


def check_gateway_routes(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    """Yield gateways that are not there or know none of the hosts, and matches for gateways it is not bound to."""
    for index, name in enumerate(spec.gateways):
        if name != MESH:
            yield from _check_gateway(item, spec, ("spec", "gateways", index), name, world)
    yield from _check_matches(item, spec)
    if spec.gateways:
        yield from _check_subsets(item, spec, world)


def _check_gateway(item: ApiObject, spec: VirtualServiceSpec, path: Path, name: str, world: World) -> Iterator[Finding]:
    namespace, _, short = gateway_name(name, item.key.namespace).partition("/")
    gateway = world.objects.get(ObjectKey("Gateway", namespace, short))
    if gateway is None:
        message = f"there is no Gateway {namespace}/{short} (yet?)"
        yield Finding(path, message, "unknown-gateway", istio_code=NOT_FOUND)
        return
    assert isinstance(gateway.spec, GatewaySpec)
    hosts = sorted(set(_hosts_for(gateway, gateway.spec, item.key.namespace)))
    if spec.hosts and not any(hosts_overlap(theirs, host.lower()) for theirs in hosts for host in spec.hosts):
        there = f"it has {', '.join(hosts)}" if hosts else "none of its servers is for this namespace"
        message = f"none of the hosts ({', '.join(spec.hosts)}) is in {gateway.key}: {there}"
        yield Finding(path, message, "host-not-in-gateway", istio_code="IST0132")


def _hosts_for(gateway: ApiObject, spec: GatewaySpec, namespace: str) -> Iterator[str]:
    """Yield the hosts for which VirtualServices of a namespace may bind to a gateway."""
    for server in spec.servers:
        for text in server.hosts:
            owner, slash, host = text.rpartition("/")
            owner = gateway.key.namespace if owner == "." else owner
            if not slash or owner in {"*", namespace}:
                yield host.lower()


def _check_matches(item: ApiObject, spec: VirtualServiceSpec) -> Iterator[Finding]:
    bound = {gateway_name(name, item.key.namespace) for name in spec.gateways or (MESH,)}
    for path, name in _match_gateways(spec):
        if spec.hosts and gateway_name(name, item.key.namespace) not in bound:
            message = f"this VirtualService is not bound to {name!r}: add it to spec.gateways, or remove it here"
            yield Finding(path, message, "unbound-gateway")


def _match_gateways(spec: VirtualServiceSpec) -> Iterator[tuple[Path, str]]:
    matches: list[tuple[Path, Sequence[HttpMatch | ConnectionMatch]]] = []
    matches += [(("spec", "http", index), rule.match) for index, rule in enumerate(spec.http)]
    matches += [(("spec", "tls", index), rule.match) for index, rule in enumerate(spec.tls)]
    matches += [(("spec", "tcp", index), rule.match) for index, rule in enumerate(spec.tcp)]
    for path, found in matches:
        for place, match in enumerate(found):
            for position, name in enumerate(match.gateways):
                yield (*path, "match", place, "gateways", position), name


def _check_subsets(item: ApiObject, spec: VirtualServiceSpec, world: World) -> Iterator[Finding]:
    """Yield routes to a host whose own routes choose subsets: at a gateway, those are not asked."""
    for index, http in enumerate(spec.http):
        for place, route in enumerate(http.route):
            if route.destination.subset:
                continue
            host = world.full(route.destination.host, item)
            for other in world.others_at(Relation.ROUTE, host, item):
                if _chooses_subsets(other, host, world):
                    message = (
                        f"the subsets that {other.key} chooses for {host!r} hold for callers inside the mesh; requests "
                        "through a gateway go to all of it. Name the subset here too"
                    )
                    path = ("spec", "http", index, "route", place, "destination")
                    yield Finding(path, message, "no-effect-at-gateway", istio_code="IST0140")


def _chooses_subsets(other: ApiObject, host: str, world: World) -> bool:
    assert isinstance(other.spec, VirtualServiceSpec)
    return any(
        reference.path[1] == "http"
        and bool(reference.destination.subset)
        and world.full(reference.destination.host, other) == host
        for reference in destinations(other.spec)
    )
