"""Any configuration to any configuration: an update is a build, and says whom it touches."""

from collections.abc import Iterable, Mapping
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from golden.objects import SETTINGS, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import HostRuntime, Mesh, Touched, Update, build, update
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.workloads import GROUP_ANNOTATION
from hostmesh_controller.workload_annotations import CAPACITY, PROBES
from hostmesh_controller.xds import expelled

NAMESPACES = ("a", "b")
OUTSIDE = "192.0.2.9"
HOSTS = ("h1", "h2", "h3")
SERVICES = ("s1", "s2")
EXTERNAL = ("api.example.com", "db.example.com")
HOSTNAMES = tuple(f"{name}.{namespace}.svc.cluster.local" for name in SERVICES for namespace in NAMESPACES) + EXTERNAL

Spec = dict[str, Any]
Variant = tuple[Spec, dict[str, Any]]
"""A spec, and what else `obj` takes."""


def variants(*specs: Spec, exports: bool = False, age: bool = False) -> list[Variant]:
    """Return each spec; with `exports` also one that is not exported, with `age` also a younger one."""
    result: list[Variant] = [(spec, {}) for spec in specs]
    if exports:
        result += [(specs[0] | {"exportTo": ["."]}, {}), (specs[0] | {"exportTo": ["b"]}, {})]
    if age:
        result += [(specs[0], {"age": 9})]
    return result


def port(number: int, name: str, target: int | None = None) -> Spec:
    return {"port": number, "name": name, **({"targetPort": target} if target else {})}


def workload(address: str, app: str, version: str = "v1", account: str = "", **ports: int) -> Spec:
    return {
        "address": address,
        "labels": {"app": app, "version": version},
        "serviceAccount": account,
        "ports": ports,
    }


def service(app: str, *ports: Spec, **more: Any) -> Spec:
    return {"selector": {"app": app}, "ports": list(ports) or [port(80, "http")], **more}


def entry(*hosts: str, resolution: str = "STATIC", location: str = "MESH_INTERNAL", **more: Any) -> Spec:
    protocol = more.pop("protocol", "http")
    ports = [{"number": 80, "name": protocol, "protocol": protocol}]
    return {"hosts": list(hosts), "ports": ports, "resolution": resolution, "location": location, **more}


def to(*hosts: str, subset: str = "") -> list[Spec]:
    more = {"subset": subset} if subset else {}
    return [{"route": [{"destination": {"host": each, **more}, "weight": 1} for each in hosts]}]


def mtls(mode: str, app: str = "", ports: str = "") -> Spec:
    own = {"selector": {"matchLabels": {"app": app}}} if app else {}
    return {"mtls": {"mode": mode}, **own, **({"portLevelMtls": {80: {"mode": ports}}} if ports else {})}


def imports(*hosts: str, number: int | None = None, protocol: str = "HTTP", **more: Any) -> Spec:
    """An egress listener."""
    port = {} if number is None else {"port": {"number": number, "protocol": protocol, "name": "own"}}
    return {"hosts": list(hosts), **port, **more}


def ingress(number: int, **more: Any) -> Spec:
    return {"port": {"number": number, "protocol": "HTTP", "name": "own"}, **more}


def for_app(app: str, **more: Any) -> Spec:
    return {"workloadSelector": {"labels": {"app": app}}, **more}


def policy(action: str = "ALLOW", app: str = "", **rule: Any) -> Spec:
    """An AuthorizationPolicy of one rule; CUSTOM ones ask the only authorizer that there may be."""
    own = {"selector": {"matchLabels": {"app": app}}} if app else {}
    asked = {"provider": {"name": "judge"}} if action == "CUSTOM" else {}
    return {"action": action, **own, **asked, "rules": [rule]}


def judge(service: str, **more: Any) -> Spec:
    return {"extensionProviders": [{"name": "judge", "envoyExtAuthzGrpc": {"service": service, "port": 80, **more}}]}


def tokens(url: str, app: str = "") -> Spec:
    own = {"selector": {"matchLabels": {"app": app}}} if app else {}
    return {"jwtRules": [{"issuer": "me", "jwksUri": url}], **own}


CLOSED = {"mode": "REGISTRY_ONLY"}
A1, B1, API, DB = HOSTNAMES[0], HOSTNAMES[1], *EXTERNAL
KEYS_URLS = ("https://one.example.com/keys", "https://two.example.com/keys")
SUBSETS = [{"name": "v1", "labels": {"version": "v1"}}]

# Everything that may be there, and in which forms: few enough that what is drawn belongs together.
SLOTS: dict[tuple[str, str, str], list[Variant]] = {
    ("Host", "", "h1"): variants(
        {"addresses": ["10.0.0.1"]},
        {"addresses": ["10.0.0.1", "10.0.0.3"]},
        {"addresses": ["10.0.0.3"]},
        {"addresses": ["10.0.0.1"], "namespace": "b"},
        {"addresses": ["10.0.0.1"], "outboundIdentity": "a/w1", "capture": {"scope": "all"}},
        {"addresses": ["10.0.0.1"], "perWorkloadIdentity": True},
        {"addresses": ["10.0.0.1", "10.0.0.3"], "outboundIdentity": "a/w1", "perWorkloadIdentity": True},
    ),
    ("Host", "", "h2"): variants({"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.1", "10.0.0.2"]}),
    ("Host", "", "h3"): variants({"namespace": "a"}, {"namespace": "b"}, {}),
    ("WorkloadEntry", "a", "w1"): variants(
        workload("10.0.0.1", "s1"),
        workload("10.0.0.1", "s1", "v2"),
        workload("10.0.0.1", "s1", account="sa1"),
        workload("10.0.0.1", "s2"),
        workload("10.0.0.2", "s1"),
        workload(OUTSIDE, "s1"),
        workload("10.0.0.1", "s1", http=8088),
        workload("10.0.0.1", "s1", other=9901),
    ),
    ("WorkloadEntry", "a", "w2"): variants(
        workload("10.0.0.2", "s1", "v2"), workload("10.0.0.3", "s2"), workload("10.0.0.1", "s1", account="sa2")
    ),
    ("WorkloadEntry", "a", "w3"): [
        (workload("10.0.0.1", "s1", account="sa1"), {"annotations": each})
        for each in (
            {GROUP_ANNOTATION: "g1"},
            {GROUP_ANNOTATION: "g2"},
            {CAPACITY: "cores"},
            {GROUP_ANNOTATION: "g1", PROBES: "tcpSocket: {port: 80}"},
            {PROBES: "systemd: {unit: a.service}"},
        )
    ],
    ("WorkloadGroup", "a", "g1"): variants(
        {"template": {}, "probe": {"tcpSocket": {"port": 80}}},
        {"template": {}, "probe": {"exec": {"command": ["true"]}}},
        {"template": {}},
    ),
    ("WorkloadEntry", "b", "w1"): variants(workload("10.0.0.2", "s1"), workload("10.0.0.1", "s2", account="sa1")),
    ("Service", "a", "s1"): variants(
        service("s1"),
        service("s1", port(80, "tcp")),
        service("s1", port(80, "any")),
        service("s1", port(80, "http", 8080)),
        service("s1", port(80, "http"), port(90, "tcp")),
        service("s1", port(91, "grpc")),
        service("s2"),
        service("s1", clusterIP="10.96.0.1"),
    )
    + [(service("s1"), {"annotations": {"networking.istio.io/exportTo": each}}) for each in (".", "b")]
    + [(service("s1", port(81, "tcp")), {"annotations": {"networking.istio.io/exportTo": "."}})],
    ("Service", "a", "s2"): variants(
        service("s2", port(90, "tcp")), service("s1", port(80, "tcp"), clusterIP="10.96.0.2")
    ),
    ("Service", "b", "s1"): variants(service("s1"), service("s1", port(90, "http"))),
    ("ServiceEntry", "a", "e1"): variants(
        entry(API, endpoints=[{"address": "10.0.0.1"}]),
        entry(API, endpoints=[{"address": "10.0.0.2"}, {"address": OUTSIDE}]),
        entry(API, endpoints=[{"address": "10.0.0.1"}], location="MESH_EXTERNAL"),
        entry(API, DB, workloadSelector={"labels": {"app": "s1"}}),
        entry(DB, workloadSelector={"labels": {"app": "s1"}}, protocol="tcp"),
        entry(API, resolution="DNS", location="MESH_EXTERNAL"),
        entry(API, resolution="DNS", workloadSelector={"labels": {"app": "s1"}}),
        entry(API, resolution="NONE", addresses=["10.97.0.0/24"]),
        entry(A1, endpoints=[{"address": "10.0.0.1"}]),
        exports=True,
        age=True,
    ),
    ("ServiceEntry", "b", "e1"): variants(
        entry(API, endpoints=[{"address": "10.0.0.2"}]),
        entry(DB, resolution="NONE", addresses=["10.97.0.0/16", "10.96.0.1"], protocol="tcp"),
        exports=True,
    ),
    ("VirtualService", "a", "v1"): variants(
        {"hosts": ["s1"], "http": to("s2")},
        {"hosts": ["s1"], "http": to("s1", "s2")},
        {"hosts": ["s1"], "http": to(API, subset="v1")},
        {"hosts": ["s2", API], "tcp": to("s1", "s2")},
        {"hosts": ["s1"], "tcp": to("s2")},
        {"hosts": ["*.svc.cluster.local"], "http": to("s2"), "tcp": to("s2", "s1")},
        {"hosts": ["240.240.0.1"], "http": to("s2")},
        exports=True,
        age=True,
    ),
    ("VirtualService", "b", "v2"): variants({"hosts": [A1], "http": to(B1)}, {"hosts": [A1], "tcp": to(A1, DB)}),
    ("DestinationRule", "a", "d1"): variants(
        {"host": "s1", "subsets": SUBSETS},
        {"host": "s1", "subsets": [SUBSETS[0] | {"labels": {"version": "v2"}}]},
        {"host": "*.a.svc.cluster.local", "subsets": SUBSETS},
        {"host": "s1", "trafficPolicy": {"tls": {"mode": "DISABLE"}}},
        {"host": API, "subsets": SUBSETS},
        exports=True,
        age=True,
    ),
    ("DestinationRule", "istio-system", "d2"): variants(
        {"host": "*.svc.cluster.local", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
        {"host": A1, "subsets": SUBSETS},
    ),
    ("PeerAuthentication", "a", "p1"): variants(
        mtls("STRICT"), mtls("DISABLE"), mtls("STRICT", "s1"), mtls("UNSET", "s1", "STRICT"), mtls("DISABLE", "s2")
    ),
    ("PeerAuthentication", "a", "p2"): variants(mtls("PERMISSIVE", "s1"), mtls("STRICT", "s1"), mtls("UNSET")),
    ("PeerAuthentication", "istio-system", "p1"): variants(mtls("STRICT"), mtls("DISABLE")),
    ("AuthorizationPolicy", "a", "z1"): variants(
        policy(),
        policy(app="s1", to=[{"operation": {"paths": ["/a/{*}"]}}]),
        policy("DENY", "s2", to=[{"operation": {"ports": ["80"]}}]),
        policy("CUSTOM", "s1"),
        {},
    ),
    ("AuthorizationPolicy", "a", "z2"): [
        (policy("DENY", "s1"), {}),
        (policy("DENY", "s1"), {"annotations": {"istio.io/dry-run": "true"}}),
        (policy("AUDIT"), {"age": 9}),
    ],
    ("AuthorizationPolicy", "istio-system", "z1"): variants(
        policy("CUSTOM"), policy("DENY", "s1", **{"from": [{"source": {"principals": ["old.org/ns/a/sa/sa1"]}}]})
    ),
    ("RequestAuthentication", "a", "r1"): variants(
        tokens(KEYS_URLS[0]), tokens(KEYS_URLS[1]), tokens(KEYS_URLS[0], "s1"), tokens(KEYS_URLS[1], "s2")
    ),
    ("RequestAuthentication", "istio-system", "r1"): variants(tokens(KEYS_URLS[0]), tokens(KEYS_URLS[0], "s1")),
    ("Sidecar", "a", "s1"): variants(
        {"egress": [{"hosts": ["./*"]}]},
        {"egress": [imports("b/*", number=80), imports("*/*")], "outboundTrafficPolicy": CLOSED},
        {"egress": [imports("*/*", number=80, captureMode="NONE"), imports("./*")]},
        {"egress": [imports("*/*", number=90, bind="192.0.2.77", protocol="TCP"), imports("*/*")]},
        {"egress": [imports("a/*", number=0, bind="unix:///run/s1"), imports("b/*")]},
        {"outboundTrafficPolicy": {"mode": "ALLOW_ANY", "egressProxy": {"host": API, "port": {"number": 80}}}},
        {"ingress": [ingress(8080)]},
        {"ingress": [ingress(80, captureMode="NONE", defaultEndpoint="127.0.0.1:81"), ingress(90)]},
    ),
    ("Sidecar", "a", "s2"): variants(
        for_app("s1", ingress=[ingress(80, defaultEndpoint="127.0.0.1:81")]),
        for_app("s2", ingress=[ingress(80, defaultEndpoint="127.0.0.1:82")], egress=[imports("b/*")]),
        for_app("s1", inboundConnectionPool={"tcp": {"maxConnections": 3}}),
        for_app("s1", outboundTrafficPolicy=CLOSED),
    ),
    ("Sidecar", "istio-system", "s1"): variants({"egress": [imports("./*")]}, {"ingress": [ingress(80)]}),
    ("CapturePolicy", "a", "c1"): variants(
        {"scope": "all", "outbound": {"failureMode": "open"}},
        {"outbound": {"failureMode": "open"}, "inbound": {"exclude": [{"ports": [80]}]}},
        {"selector": {"matchLabels": {"app": "s1"}}, "inbound": {"include": [{"ports": [8080]}]}},
        {"selector": {"matchLabels": {"app": "s2"}}, "scope": "mesh"},
        age=True,
    ),
    ("CapturePolicy", "istio-system", "c1"): variants(
        {"scope": "all", "outbound": {"exclude": [{"users": [0]}], "failureMode": "open"}},
        {"selector": {"matchLabels": {"app": "s1"}}, "inbound": {"failureMode": "open"}},
    ),
    ("ProxyConfig", "a", "p1"): variants({"concurrency": 1}, {"selector": {"matchLabels": {"app": "s1"}}}),
    ("ProxyConfig", "istio-system", "p1"): variants({"concurrency": 3}),
    ("MeshConfig", "", "default"): variants(
        {"outboundTrafficPolicy": CLOSED},
        {
            "accessLogFile": "/dev/stdout",
            "trustDomainAliases": ["old.org"],
            "inboundTrafficPolicy": {"mode": "LOCALHOST"},
        },
        judge(A1),
        judge(f"a/{API}", failOpen=True),
    ),
}
Slot = tuple[str, str, str]
KEYS = st.sampled_from(sorted(SLOTS))


def made(slot: Slot, variant: Variant) -> ApiObject:
    kind, namespace, name = slot
    return obj(kind, name, variant[0], namespace, **variant[1])


# The first variant is the likeliest by far: the others and absence are what a few slots have.
usual = st.fixed_dictionaries({slot: st.just(0) for slot in SLOTS if slot[0] in {"Host", "WorkloadEntry", "Service"}})
unusual = st.dictionaries(KEYS, st.integers(-1, 10), max_size=8)
changes = st.dictionaries(KEYS, st.integers(-1, 10), max_size=3)

ALL_READY = frozenset(
    [
        *((namespace, name) for namespace in NAMESPACES for name in ("w1", "w2", "w3")),
        *(("a", "e1@10.0.0.1"), ("a", "e1@10.0.0.2"), ("b", "e1@10.0.0.2")),
    ]
)
facts = st.sampled_from(
    [
        HostRuntime(True, ALL_READY),
        HostRuntime(True, ALL_READY - {("a", "w1")}),
        HostRuntime(True, ALL_READY, captured=frozenset({80})),
        HostRuntime(False, ALL_READY),
        HostRuntime(True, ALL_READY, ipv6=True),
        HostRuntime(True, ALL_READY, locality="r1/z2"),
        HostRuntime(True, ALL_READY, healthy=ALL_READY),
        HostRuntime(True, ALL_READY, silent=True),
        HostRuntime(True, ALL_READY, captured=frozenset({80}), stalled=True),
        HostRuntime(True, ALL_READY, cpus=4),
        HostRuntime(True, ALL_READY, updates=(Update("envoy", "1.41.0", b"said", b"signed", "r1", 1),)),
        HostRuntime(True, ALL_READY, expelled=True, denied=frozenset({"e1"})),
        HostRuntime(True, ALL_READY, denied=frozenset({"e1", "e2"})),
        HostRuntime(True, ALL_READY, presented=frozenset({(("a", "w1"), "spiffe://cluster.local/ns/a/sa/old")})),
    ]
)
new_facts = st.dictionaries(st.sampled_from(HOSTS), facts, max_size=1)
VIPS = {name: index for index, name in enumerate(HOSTNAMES, start=1)}
new_vips = st.dictionaries(st.sampled_from(HOSTNAMES), st.sampled_from((7, 8)), max_size=1)

new_keys = st.dictionaries(st.sampled_from(KEYS_URLS), st.sampled_from(("{}", '{"keys":[]}')), max_size=2)


def objects_of(chosen: Mapping[Slot, int]) -> dict[ObjectKey, ApiObject | None]:
    """Return the object of each slot: the numbered variant, or None for -1 (and for none of that number)."""
    result: dict[ObjectKey, ApiObject | None] = {}
    for slot, number in chosen.items():
        forms = SLOTS[slot]
        result[ObjectKey(*slot)] = None if number < 0 else made(slot, forms[number % len(forms)])
    return result


Names = list[tuple[str, str, str]]


def all_names(meshes: Iterable[Mesh]) -> Names:
    """Everything that may be asked for, of every host, whether or not it exists."""
    clusters = [
        f"outbound|{number}|{subset}|{name}" for number in (80, 90, 91) for subset in ("", "v1") for name in HOSTNAMES
    ]
    addresses = ("240.240.0.1", "240.240.0.7", "[fd00:f0f0::1]", "10.96.0.1", "10.96.0.2", "10.97.0.7")
    headers = ("s1", "s2", "s1.a", "s2.b.svc", *EXTERNAL, "10.96.0.1", "240.240.0.1:80", "[fd00:f0f0::2]", "nobody")
    names = [(wire.CLUSTER_TYPE, name) for name in clusters]
    names += [(wire.ENDPOINT_TYPE, name) for name in clusters]
    names += [(wire.CLUSTER_TYPE, f"tcp|{address}:{number}") for address in addresses for number in (80, 90)]
    names += [(wire.VIRTUAL_HOST_TYPE, f"{number}/{header}") for number in (80, 91) for header in headers]
    names += [(wire.VIRTUAL_HOST_TYPE, f"unix:///run/s1/{header}") for header in ("s1", "nobody")]
    names += [(wire.ROUTE_TYPE, each) for each in ("80", "unix:///run/s1")]
    names += [(wire.EXTENSION_TYPE, each) for each in (expelled.HTTP, expelled.NETWORK)]
    for mesh in meshes:
        for name in HOSTS:
            for type_url in (wire.LISTENER_TYPE, wire.CLUSTER_TYPE, wire.HOST_CONFIG_TYPE):
                names += [(type_url, each) for each in xds.wildcard(mesh, name, type_url)]
    return [(name, *each) for name in HOSTS for each in dict.fromkeys(names)]


def everything(mesh: Mesh, names: Names) -> dict[tuple[str, str, str], xds.Resource | None]:
    return {name: xds.resource(mesh, *name) for name in names}


def called(touched: Touched, before: Mesh, after: Mesh) -> dict[str, frozenset[tuple[str, str]]]:
    """Return what streams of callers would ask again for, as the hub finds it: once for hosts that are alike."""
    result: dict[str, frozenset[tuple[str, str]]] = {}
    shared: dict[object, frozenset[tuple[str, str]]] = {}
    for host in sorted(touched.callers):
        own, is_shared = xds.called_by(before, after, host)
        assert before.viewer_of(host) == after.viewer_of(host)
        result[host] = shared.setdefault(after.viewer_of(host), own) if is_shared else own
    return result


def covered(touched: Touched, before: Mesh, name: tuple[str, str, str], calls: frozenset[tuple[str, str]]) -> bool:
    """Tell whether a stream would ask again for a resource."""
    found = set(xds.dependencies(before, *name))
    changed = touched.services | (touched.endpoints if name[1] == wire.ENDPOINT_TYPE else frozenset())
    of_host = name[1] in {wire.LISTENER_TYPE, wire.HOST_CONFIG_TYPE, wire.CLUSTER_TYPE}
    own = of_host and name[0] in touched.hosts
    return touched.everything or own or name[1:] in calls or bool(found & changed)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(usual, unusual, changes, new_vips, new_facts, new_facts, new_keys, new_keys)
def test_an_update_is_a_build_and_what_it_does_not_touch_stays_the_same_bytes(
    base: dict[Slot, int],
    first: dict[Slot, int],
    then: dict[Slot, int],
    other_vips: Mapping[str, int],
    facts_before: Mapping[str, HostRuntime],
    facts_after: Mapping[str, HostRuntime],
    keys_before: Mapping[str, str],
    keys_after: Mapping[str, str],
) -> None:
    start = {key: item for key, item in objects_of(base | first).items() if item is not None}
    changed = objects_of(then)
    vips_before, vips_after = VIPS, {**VIPS, **other_vips}
    everywhere = {name: HostRuntime(True, ALL_READY) for name in HOSTS}
    runtime_before, runtime_after = {**everywhere, **facts_before}, {**everywhere, **facts_after}
    before = build(SETTINGS, start.values(), vips_before, runtime_before, keys_before)
    names = all_names([before])
    old = everything(before, names)

    after, touched = update(before, changed, vips_after, runtime_after, keys_after)

    end = {key: item for key, item in (start | changed).items() if item is not None}
    fresh = build(SETTINGS, end.values(), vips_after, runtime_after, keys_after)
    more = all_names([before, fresh])
    calls = called(touched, before, after)
    new = everything(after, more)
    assert new == everything(fresh, more)
    for name in HOSTS:
        for type_url in (wire.LISTENER_TYPE, wire.CLUSTER_TYPE, wire.HOST_CONFIG_TYPE):
            listed = xds.wildcard(after, name, type_url)
            assert listed == xds.wildcard(fresh, name, type_url)
            assert all(xds.resource(after, name, type_url, each) for each in listed)
            others = {(type_url, each) for each in {*listed} ^ {*xds.wildcard(before, name, type_url)}}
            assert touched.everything or name in touched.hosts or others <= calls.get(name, frozenset())
    for each in names:
        if old[each] != new[each]:
            assert covered(touched, before, each, calls.get(each[0], frozenset())), (each, touched)
    assert everything(before, names) == old, "the revision before is still what it was"


def test_a_host_is_told_what_of_its_own_is_refused_though_all_are_told_the_same_as_before() -> None:
    hosts = [item for key, item in objects_of({slot: 0 for slot in SLOTS if slot[0] == "Host"}).items() if item]
    denied = HostRuntime(True, denied=frozenset({"e1"}))
    before = build(SETTINGS, hosts, VIPS, {"h1": denied, "h2": HostRuntime(True)})
    after, touched = update(before, {}, VIPS, {"h1": HostRuntime(True), "h2": denied})
    name = ("h1", wire.HOST_CONFIG_TYPE, "self")
    assert xds.resource(before, *name) != xds.resource(after, *name)
    assert covered(touched, before, name, frozenset())
