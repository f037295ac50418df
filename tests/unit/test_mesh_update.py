"""Any configuration to any configuration: an update is a build, and says whom it touches."""

from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golden.objects import SETTINGS, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, Touched, build, update
from hostmesh_controller.model.objects import ApiObject, ObjectKey

NAMESPACES = ("a", "b")
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::1")
OUTSIDE = "192.0.2.9"
HOSTS = ("h1", "h2", "h3")
SERVICES = ("s1", "s2")
EXTERNAL = ("api.example.com", "db.example.com")
HOSTNAMES = tuple(f"{name}.{namespace}.svc.cluster.local" for name in SERVICES for namespace in NAMESPACES) + EXTERNAL

namespaces = st.sampled_from(NAMESPACES)
labels = st.fixed_dictionaries({"app": st.sampled_from(SERVICES)}, optional={"version": st.sampled_from(("v1", "v2"))})
ages = st.integers(0, 3)
exports = st.sampled_from(((), (), ("*",), (".",), ("b",)))


def port(number: int, name: str, target: int | None = None) -> dict[str, Any]:
    return {"port": number, "name": name, **({"targetPort": target} if target else {})}


ports = st.lists(
    st.sampled_from((port(80, "http"), port(80, "tcp"), port(80, "any", 8080), port(90, "tcp-x"), port(91, "grpc"))),
    min_size=1,
    max_size=3,
    unique_by=(lambda item: item["port"], lambda item: item["name"]),
)


@st.composite
def host(draw: st.DrawFn) -> ApiObject:
    spec: dict[str, Any] = {"addresses": draw(st.lists(st.sampled_from(ADDRESSES), max_size=2, unique=True))}
    if draw(st.booleans()):
        spec["namespace"] = draw(namespaces)
    if draw(st.booleans()):
        spec["outboundIdentity"] = draw(st.sampled_from(("w1", "a/w1", "sa1")))
    return obj("Host", draw(st.sampled_from(HOSTS)), spec)


@st.composite
def workload(draw: st.DrawFn) -> ApiObject:
    spec: dict[str, Any] = {
        "address": draw(st.sampled_from((*ADDRESSES, OUTSIDE))),
        "labels": draw(labels),
        "serviceAccount": draw(st.sampled_from(("", "sa1", "sa2"))),
        "ports": draw(st.sampled_from(({}, {"http": 8088}, {"http-admin": 9901}))),
    }
    return obj("WorkloadEntry", draw(st.sampled_from(("w1", "w2", "w3"))), spec, draw(namespaces))


@st.composite
def service(draw: st.DrawFn) -> ApiObject:
    spec: dict[str, Any] = {"ports": draw(ports), "selector": draw(labels)}
    if draw(st.booleans()):
        spec["clusterIP"] = draw(st.sampled_from(("10.96.0.1", "10.96.0.2")))
    annotations = {"networking.istio.io/exportTo": ",".join(draw(exports))}
    name = draw(st.sampled_from(SERVICES))
    return obj("Service", name, spec, draw(namespaces), annotations=annotations, age=draw(ages))


@st.composite
def service_entry(draw: st.DrawFn) -> ApiObject:
    resolution = draw(st.sampled_from(("STATIC", "STATIC", "DNS", "NONE")))
    spec: dict[str, Any] = {
        "hosts": draw(st.lists(st.sampled_from((*EXTERNAL, HOSTNAMES[0])), min_size=1, max_size=2, unique=True)),
        "ports": [{"number": 80, "name": "http", "protocol": draw(st.sampled_from(("HTTP", "TCP", "HTTPS")))}],
        "resolution": resolution,
        "location": draw(st.sampled_from(("MESH_INTERNAL", "MESH_EXTERNAL"))),
        "addresses": draw(st.sampled_from(((), ("10.96.0.1",), ("10.97.0.0/24",)))) if resolution != "DNS" else (),
        "exportTo": draw(exports),
    }
    if resolution != "NONE" and draw(st.booleans()):
        addresses = draw(st.lists(st.sampled_from((*ADDRESSES, OUTSIDE)), min_size=1, max_size=2))
        spec["endpoints"] = [{"address": address, "labels": draw(labels)} for address in addresses]
    elif resolution != "NONE":
        spec["workloadSelector"] = {"labels": draw(labels)}
    return obj("ServiceEntry", draw(st.sampled_from(("e1", "e2"))), spec, draw(namespaces), age=draw(ages))


rule_hosts = st.sampled_from(("s1", "s2", *HOSTNAMES, "*.svc.cluster.local", "*.example.com"))
destinations = st.fixed_dictionaries(
    {"host": st.sampled_from(("s1", "s2", *HOSTNAMES))}, optional={"subset": st.sampled_from(("v1", "v2"))}
)


@st.composite
def virtual_service(draw: st.DrawFn) -> ApiObject:
    routes = [{"destination": each, "weight": 50} for each in draw(st.lists(destinations, min_size=1, max_size=2))]
    spec: dict[str, Any] = {"hosts": [draw(rule_hosts)], "exportTo": draw(exports)}
    for kind in draw(st.sampled_from((("http",), ("tcp",), ("http", "tcp")))):
        spec[kind] = [{"route": routes}]
    return obj("VirtualService", draw(st.sampled_from(("v1", "v2"))), spec, draw(namespaces), age=draw(ages))


@st.composite
def destination_rule(draw: st.DrawFn) -> ApiObject:
    spec: dict[str, Any] = {
        "host": draw(rule_hosts),
        "exportTo": draw(exports),
        "subsets": [{"name": name, "labels": {"version": name}} for name in draw(st.sampled_from(((), ("v1",))))],
        "trafficPolicy": draw(st.sampled_from(({}, {"tls": {"mode": "DISABLE"}}))),
    }
    namespace = draw(st.sampled_from((*NAMESPACES, "istio-system")))
    return obj("DestinationRule", draw(st.sampled_from(("d1", "d2"))), spec, namespace, age=draw(ages))


@st.composite
def peer_authentication(draw: st.DrawFn) -> ApiObject:
    modes = st.sampled_from(("STRICT", "PERMISSIVE", "DISABLE", "UNSET"))
    spec: dict[str, Any] = {"mtls": {"mode": draw(modes)}}
    if draw(st.booleans()):
        spec["selector"] = {"matchLabels": draw(labels)}
        spec["portLevelMtls"] = {"80": {"mode": draw(modes)}}
    namespace = draw(st.sampled_from((*NAMESPACES, "istio-system")))
    return obj("PeerAuthentication", draw(st.sampled_from(("p1", "p2"))), spec, namespace, age=draw(ages))


objects = st.one_of(
    host(),
    workload(),
    workload(),
    service(),
    service(),
    service_entry(),
    virtual_service(),
    destination_rule(),
    peer_authentication(),
)
ready = st.frozensets(
    st.tuples(namespaces, st.sampled_from(("w1", "w2", "w3", "e1@10.0.0.1", "e1@10.0.0.2"))), max_size=6
)
captured = st.none() | st.frozensets(st.sampled_from((80, 8080, 90)))
runtimes = st.dictionaries(
    st.sampled_from(HOSTS), st.builds(HostRuntime, st.booleans(), ready, st.booleans(), captured), max_size=3
)
vips = st.dictionaries(st.sampled_from(HOSTNAMES), st.integers(1, 3), max_size=6)

Names = list[tuple[str, str, str]]


def all_names(meshes: Iterable[Mesh]) -> Names:
    """Everything that may be asked for, of every host, whether or not it exists."""
    clusters = [
        f"outbound|{number}|{subset}|{name}" for number in (80, 90, 91) for subset in ("", "v1") for name in HOSTNAMES
    ]
    addresses = ("240.240.0.1", "240.240.0.2", "[fd00:f0f0::1]", "10.96.0.1", "10.97.0.7")
    headers = ("s1", "s2", "s1.a", "s2.b.svc", *EXTERNAL, "10.96.0.1", "240.240.0.1:80", "[fd00:f0f0::2]", "nobody")
    names = [(wire.CLUSTER_TYPE, name) for name in clusters]
    names += [(wire.ENDPOINT_TYPE, name) for name in clusters]
    names += [(wire.CLUSTER_TYPE, f"tcp|{address}:{number}") for address in addresses for number in (80, 90)]
    names += [(wire.VIRTUAL_HOST_TYPE, f"{number}/{header}") for number in (80, 91) for header in headers]
    names += [(wire.ROUTE_TYPE, "80")]
    for mesh in meshes:
        for name in HOSTS:
            for type_url in (wire.LISTENER_TYPE, wire.CLUSTER_TYPE, wire.HOST_CONFIG_TYPE):
                names += [(type_url, each) for each in xds.wildcard(mesh, name, type_url)]
    return [(name, *each) for name in HOSTS for each in dict.fromkeys(names)]


def everything(mesh: Mesh, names: Names) -> dict[tuple[str, str, str], xds.Resource | None]:
    return {name: xds.resource(mesh, *name) for name in names}


def covered(touched: Touched, before: Mesh, name: tuple[str, str, str]) -> bool:
    """Tell whether a stream would ask again for a resource."""
    found = set(xds.dependencies(before, *name))
    changed = touched.services | (touched.endpoints if name[1] == wire.ENDPOINT_TYPE else frozenset())
    own = name[0] in touched.hosts and name[1] in {wire.LISTENER_TYPE, wire.CLUSTER_TYPE, wire.HOST_CONFIG_TYPE}
    return touched.everything or own or bool(found & changed)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(objects, max_size=14),
    st.lists(st.tuples(objects, st.booleans()), max_size=3),
    vips,
    vips,
    runtimes,
    runtimes,
)
def test_an_update_is_a_build_and_what_it_does_not_touch_stays_the_same_bytes(
    first: list[ApiObject],
    changes: list[tuple[ApiObject, bool]],
    vips_before: Mapping[str, int],
    vips_after: Mapping[str, int],
    runtime_before: Mapping[str, HostRuntime],
    runtime_after: Mapping[str, HostRuntime],
) -> None:
    start = {item.key: item for item in first}
    changed: dict[ObjectKey, ApiObject | None] = {item.key: item if kept else None for item, kept in changes}
    before = build(SETTINGS, start.values(), vips_before, runtime_before)
    names = all_names([before])
    old = everything(before, names)

    after, touched = update(before, changed, vips_after, runtime_after)

    end = {key: item for key, item in (start | changed).items() if item is not None}
    fresh = build(SETTINGS, end.values(), vips_after, runtime_after)
    more = all_names([before, fresh])
    new = everything(after, more)
    assert new == everything(fresh, more)
    for name in HOSTS:
        for type_url in (wire.LISTENER_TYPE, wire.CLUSTER_TYPE, wire.HOST_CONFIG_TYPE):
            listed = xds.wildcard(after, name, type_url)
            assert listed == xds.wildcard(fresh, name, type_url)
            assert all(xds.resource(after, name, type_url, each) for each in listed)
            if listed != xds.wildcard(before, name, type_url):
                assert touched.everything or name in touched.hosts
    for each in names:
        if old[each] != new[each]:
            assert covered(touched, before, each), (each, touched)
    assert everything(before, names) == old, "the revision before is still what it was"
