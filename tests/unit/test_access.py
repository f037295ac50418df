"""Who may write which object: each rule of `access`, and what it keeps from whom."""

import pytest

from hostmesh_controller.access import ADMIN_KINDS, NAMED, OWN, check_grants, refusal
from hostmesh_controller.checks.world import World, world_of
from hostmesh_controller.grants import Grant, Role, grants_text, parse_grant, parse_grants, readable, role_of
from hostmesh_controller.load import load_documents
from hostmesh_controller.model import KINDS, ApiObject, ObjectKey

SHOP = "editor:shop"


def objects(text: str) -> list[ApiObject]:
    found, problems = load_documents(text, "t")
    assert problems == []
    return found


def document(kind: str, spec: str, namespace: str = "shop", name: str = "x", annotations: str = "{}") -> ApiObject:
    version = KINDS[kind].api_versions[0]
    place = f", namespace: {namespace}" if namespace else ""
    head = f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}{place}, annotations: {annotations}}}\n"
    return objects(head + (f"spec: {spec}\n" if spec else ""))[0]


WORLD = world_of(
    [
        document("Host", "{addresses: [10.0.0.1], workloadNamespaces: [shop]}", "", "open"),
        document("Host", "{addresses: [10.0.0.2]}", "", "closed"),
        document("Host", "{addresses: ['fd00::3'], workloadNamespaces: ['*']}", "", "any"),
        document(
            "Gateway",
            "{selector: {app: edge}, servers: [{port: {number: 80, name: a, protocol: HTTP}, "
            "hosts: ['shop/shop.example.com', 'shop/*.any.example.com', '*.any.example.com', 'bank/b.example.com']}]}",
            "infra",
            "public",
        ),
    ]
)


def judged(grants: str, after: ApiObject | None, before: ApiObject | None = None, world: World = WORLD) -> str | None:
    key = (after or before or document("Service", "{}")).key
    return refusal(parse_grants(grants), key, before, after, world)


def route(spec: str, namespace: str = "shop") -> ApiObject:
    return document("VirtualService", f"{{http: [{{route: [{{destination: {{host: a}}}}]}}], {spec}}}", namespace)


SERVICE = document("Service", "{ports: [{port: 80, name: http}]}")


def test_every_kind_has_been_decided_about() -> None:
    namespaced = {kind for kind, info in KINDS.items() if info.namespaced}
    assert namespaced <= OWN | NAMED | ADMIN_KINDS
    assert not OWN & NAMED
    assert not ADMIN_KINDS & (OWN | NAMED)
    assert {kind for kind in KINDS if kind not in namespaced} == {"Namespace", "Host", "MeshConfig", "Rollout"}
    assert {"Host", "CapturePolicy", "Rollout"} == ADMIN_KINDS


def test_who_has_no_grant_to_write_writes_nothing() -> None:
    for grants in ("", "viewer", "viewer:shop"):
        assert judged(grants, SERVICE) == "no grant to write objects of kind Service"


def test_an_editor_writes_the_namespaces_and_kinds_of_its_grants() -> None:
    elsewhere = document("Service", "{ports: [{port: 80}]}", "bank")
    assert judged(SHOP, SERVICE) is None
    assert judged("editor", SERVICE) is None
    assert judged("admin", SERVICE) is None
    assert judged(SHOP, elsewhere) == "no grant for namespace 'bank'"
    assert judged(f"{SHOP} viewer:bank", elsewhere) == "no grant for namespace 'bank'"
    assert judged("editor:shop:VirtualService", SERVICE) == "no grant to write objects of kind Service"
    assert judged("editor:shop:Service editor:bank:VirtualService", elsewhere) == "no grant for namespace 'bank'"
    assert judged("editor:*:Service", elsewhere) is None


@pytest.mark.parametrize("kind", ["Namespace", "MeshConfig"])
def test_what_is_in_no_namespace_needs_a_grant_for_all(kind: str) -> None:
    item = document(kind, "" if kind == "Namespace" else "{}", "", "default" if kind == "MeshConfig" else "shop")
    assert judged("editor", item) is None
    assert judged(SHOP, item) == (
        f"objects of kind {kind} hold for the whole mesh: a grant for all namespaces is needed"
    )
    assert judged(f"editor:shop:{kind}", item) is not None


def test_a_grant_that_names_the_root_namespace_is_none_for_it() -> None:
    policy = document("PeerAuthentication", "{mtls: {mode: DISABLE}}", "istio-system")
    assert judged("editor", policy) is None
    assert "hold for the whole mesh" in str(judged("editor:istio-system", policy))
    assert "the root namespace" in str(check_grants([parse_grant("editor:istio-system")], "istio-system"))
    assert check_grants([parse_grant("viewer:istio-system")], "istio-system") is None


def test_a_host_is_for_admins_alone() -> None:
    host = document("Host", "{addresses: [10.0.0.9]}", "", "h")
    assert judged("admin", host) is None
    assert judged("editor", host) == "objects of kind Host need admin"
    assert judged("editor:*:Host", host) == "objects of kind Host need admin"


POWERFUL = {
    "EnvoyFilter": "{configPatches: [{applyTo: LISTENER, patch: {operation: REMOVE}}]}",
    "WasmPlugin": "{url: 'file:///x.wasm'}",
    "Gateway": "{selector: {app: edge}, servers: [{port: {number: 80, name: a, protocol: HTTP}, hosts: ['*']}]}",
    "WorkloadGroup": "{template: {}, probe: {exec: {command: [id]}}}",
}


@pytest.mark.parametrize("kind", sorted(POWERFUL))
def test_what_reaches_beyond_its_namespace_must_be_named_in_the_grant(kind: str) -> None:
    assert set(POWERFUL) == NAMED
    item = document(kind, POWERFUL[kind])
    assert judged(SHOP, item) == (
        f"objects of kind {kind} reach beyond their namespace: a grant must name the kind (--kind {kind})"
    )
    assert judged(f"editor:shop:{kind}", item) is None
    assert judged("editor", item) is None
    assert judged(f"editor:bank:{kind} {SHOP}", item) is not None


@pytest.mark.parametrize("grants", [SHOP, "editor", "editor:*:WorkloadEntry"])
def test_an_editor_places_workloads_on_hosts_that_are_open_to_the_namespace(grants: str) -> None:
    for address, part in (
        ("10.0.0.1", None),
        ("'FD00:0::3'", None),
        ("10.0.0.2", "host closed (10.0.0.2) is not open to namespace shop; an admin opens it with"),
        ("10.0.0.9", "10.0.0.9 is no host's address"),
        ("db.example.com", None),
        ("'unix:///run/docker.sock'", "a Unix socket"),
    ):
        problem = judged(grants, document("WorkloadEntry", f"{{address: {address}}}"))
        assert (problem is None) == (part is None), (address, problem)
        assert part is None or part in str(problem)
    assert judged("admin", document("WorkloadEntry", "{address: 10.0.0.2}")) is None
    assert "not open to namespace bank" in str(
        judged("editor", document("WorkloadEntry", "{address: 10.0.0.1}", "bank"))
    )


def test_the_endpoints_that_a_service_entry_lists_are_placed_the_same_way() -> None:
    def entry(address: str, location: str = "MESH_INTERNAL") -> ApiObject:
        spec = "hosts: [x.shop.svc.cluster.local], ports: [{number: 80, name: http}], resolution: STATIC"
        return document(
            "ServiceEntry",
            f"{{{spec}, location: {location}, endpoints: [{{address: '{address}', serviceAccount: boss}}]}}",
        )

    assert judged(SHOP, entry("10.0.0.1")) is None
    assert "not open" in str(judged(SHOP, entry("10.0.0.2")))
    assert "not open" in str(judged("editor", entry("10.0.0.2")))
    assert judged(SHOP, entry("10.0.0.2", "MESH_EXTERNAL")) is None
    assert "Unix socket" in str(judged(SHOP, entry("unix:///run/x.sock", "MESH_EXTERNAL")))


def test_a_sidecar_does_not_lead_to_sockets_of_the_host() -> None:
    ingress = "{ingress: [{port: {number: 80, protocol: HTTP, name: h}, defaultEndpoint: 'unix:///run/docker.sock'}]}"
    assert "Unix socket" in str(judged(SHOP, document("Sidecar", ingress)))
    assert judged("admin", document("Sidecar", ingress)) is None


def test_a_workload_that_an_admin_placed_is_not_an_editors_to_change_or_take_away() -> None:
    placed = document("WorkloadEntry", "{address: 10.0.0.2, serviceAccount: a}")
    for after in (document("WorkloadEntry", "{address: 10.0.0.1}"), None):
        assert "not open" in str(judged(SHOP, after, placed))


FOREIGN = {
    "a route for a name of others": route("hosts: [reviews.bank.svc.cluster.local]"),
    "a route for a name of the world": route("hosts: [api.example.com]"),
    "a route for many names": route("hosts: ['*.example.com']"),
    "a rule for a name of others": document("DestinationRule", "{host: reviews.bank.svc.cluster.local}"),
    "checks of others": document("HealthCheck", "{host: reviews.bank.svc.cluster.local, tcp: {}}"),
    "a service with a name of others": document(
        "ServiceEntry", "{hosts: [reviews.bank.svc.cluster.local], ports: [{number: 80, name: http}], resolution: DNS}"
    ),
    "a service with an address": document(
        "ServiceEntry",
        "{hosts: [x.shop.svc.cluster.local], addresses: [10.9.0.0/16], ports: [{number: 80, name: tcp}], "
        "resolution: NONE}",
    ),
    "a cluster address": document("Service", "{clusterIP: 10.9.0.1, ports: [{port: 80}]}"),
}


@pytest.mark.parametrize("what", sorted(FOREIGN))
def test_what_others_see_is_about_own_names_alone(what: str) -> None:
    item = FOREIGN[what]
    assert "for callers of other namespaces; keep it in its namespace" in str(judged(SHOP, item)), what
    assert judged("editor", item) is None
    to_bank = exported(item, "bank")
    assert "for callers of other namespaces" in str(judged(SHOP, to_bank))
    assert judged("editor:shop,bank", to_bank) is None
    assert judged(SHOP, exported(item, ".")) is None


def exported(item: ApiObject, to: str) -> ApiObject:
    body = item.to_dict()
    if item.key.kind == "Service":
        body["metadata"]["annotations"] = {"networking.istio.io/exportTo": to}
    else:
        body["spec"]["exportTo"] = [to]
    import json

    return objects(json.dumps(body))[0]


def test_own_names_may_be_for_everybody() -> None:
    for item in (
        route("hosts: [reviews]"),
        route("hosts: ['*.shop.svc.cluster.local']"),
        document("DestinationRule", "{host: reviews}"),
        document("Service", "{clusterIP: None, ports: [{port: 80}]}"),
    ):
        assert judged(SHOP, item) is None, item


def test_a_name_that_only_ends_like_an_own_one_is_foreign() -> None:
    assert judged(SHOP, route("hosts: [x.eshop.svc.cluster.local]")) is not None
    assert judged(SHOP, route("hosts: [x.shop.svc.cluster.local.example.com]")) is not None


def test_a_gateway_of_others_must_give_the_host_to_the_namespace_by_name() -> None:
    def at(host: str, gateway: str = "infra/public") -> str | None:
        return judged(SHOP, route(f"hosts: [{host}], gateways: [{gateway}]"))

    assert at("shop.example.com") is None
    assert at("b.example.com") is not None
    assert "its owner admits it with a server for hosts" in str(at("other.example.com"))
    assert at("x.any.example.com") is not None, "anybody may have it: who gives it to shop?"
    assert at("shop.example.com", "infra/none") is not None
    assert at("shop.example.com", "own") is None
    assert at("shop.example.com", "mesh, infra/public") is not None, "for the mesh it is a name of others"


def test_what_could_not_be_made_cannot_be_changed_or_deleted() -> None:
    foreign = FOREIGN["a route for a name of others"]
    assert judged(SHOP, route("hosts: [reviews]"), foreign) is not None
    assert judged(SHOP, None, foreign) is not None
    assert judged(SHOP, None, SERVICE) is None
    assert refusal(parse_grants(SHOP), ObjectKey("Service", "bank", "none"), None, None, WORLD) is not None


def test_grants_are_read_as_they_are_written() -> None:
    for text in (
        "viewer",
        "admin",
        "editor:shop",
        "editor:a,b:Service,VirtualService",
        "editor:*:Service",
        "viewer:shop",
    ):
        assert str(parse_grant(text)) == text
        assert parse_grants(grants_text([parse_grant(text)])) == (parse_grant(text),)
    assert parse_grant("editor:*:*") == Grant(Role.EDITOR)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "king",
        "Admin",
        "editor:Shop",
        "editor:../x",
        "editor:shop:vs",
        "editor:a:b:c",
        "admin:shop",
        "viewer:a:Service",
        "editor:a\n",
        "editor:-a",
        "editor:" + ",".join(f"n{each}" for each in range(300)),
        "admin::Service",
    ],
)
def test_what_is_no_grant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        parse_grant(text)


def test_a_grant_may_name_only_kinds_that_there_are() -> None:
    assert "unknown kind 'Potato'" in str(check_grants([parse_grant("editor:shop:Potato")], "root"))


def test_roles_and_namespaces_of_several_grants_add_up() -> None:
    several = parse_grants("viewer:bank editor:shop")
    assert role_of(several) is Role.EDITOR
    assert readable(several) == frozenset({"bank", "shop"})
    assert readable(parse_grants("viewer editor:shop")) is None
    assert readable(()) == frozenset()
    assert role_of(()) is None
