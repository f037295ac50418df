"""Stored credentials: nobody is shown a key, and a host gets those alone that its gateways or calls use."""

from pathlib import Path

import pytest
from envoy.service.discovery.v3.discovery_pb2 import Resource

from golden.certificates import Authority
from golden.objects import mesh_of, obj
from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.load import load_documents
from hostmesh_controller.mesh import Mesh, object_dependency, update
from hostmesh_controller.model.objects import ApiObject, ObjectKey
from hostmesh_controller.model.redaction import redacted
from hostmesh_controller.xds.messages import as_json, message_of
from running_controller import running_app

SITE = Authority("site")
PAIR = SITE.pair("shop.example.com")
NAME = "kubernetes://shop"


def document(pair: object = PAIR) -> dict[str, object]:
    assert isinstance(pair, type(PAIR))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "shop", "namespace": "edge"},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": pair.certificate, "tls.key": pair.key},
    }


async def test_no_answer_of_the_api_holds_a_key_and_gateways_still_get_it(tmp_path: Path) -> None:
    secret = key_line(PAIR.key)
    async with running_app(tmp_path) as app:
        other = document(SITE.pair("shop.example.com"))
        answers = [
            await app.root.post("/v1/apply", json={"documents": [document()]}),
            await app.root.get("/v1/objects/Secret/edge/shop"),
            await app.root.get("/v1/objects"),
            await app.root.post("/v1/diff", json={"documents": [other]}),
            await app.root.post("/v1/apply", json={"documents": [other]}),
            await app.root.get("/v1/audit"),
        ]
    assert [each.status_code for each in answers] == [200] * 6, answers[-1].text
    for each in answers:
        assert "PRIVATE KEY" not in each.text
        assert secret not in each.text
    assert "(redacted, sha256 " in answers[1].text
    assert PAIR.certificate.splitlines()[1] in answers[1].text


async def test_the_digest_tells_that_a_key_is_another(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.root.post("/v1/apply", json={"documents": [document()]})
        same = await app.root.post("/v1/diff", json={"documents": [document()]})
        other = await app.root.post("/v1/diff", json={"documents": [document(SITE.pair("shop.example.com"))]})
    before, after = (each.json()["objects"][0] for each in (same, other))
    assert before["before"] == before["after"]
    assert after["before"]["stringData"]["tls.key"] != after["after"]["stringData"]["tls.key"]


async def test_a_secret_as_it_is_shown_is_not_applied_over_the_one_that_is_there(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.root.post("/v1/apply", json={"documents": [document()]})
        shown = (await app.root.get("/v1/objects/Secret/edge/shop")).json()["document"]
        answer = await app.root.post("/v1/apply", json={"documents": [shown]})
    assert answer.status_code != 200
    assert "the value was left out where this Secret was read; give it again" in answer.text


def test_what_kubectl_noted_of_a_secret_is_left_out_too() -> None:
    note = {"kubectl.kubernetes.io/last-applied-configuration": PAIR.key, "team": "shop"}
    shown = redacted({**document(), "metadata": {"name": "shop", "annotations": note}})
    assert "PRIVATE" not in str(shown)
    assert shown["metadata"]["annotations"]["team"] == "shop"


def test_a_key_in_the_wrong_place_is_left_out() -> None:
    assert "PRIVATE" not in str(redacted({"kind": "Secret", "stringData": {"tls.crt": PAIR.key}}))
    assert "PRIVATE" not in str(redacted({"kind": "Secret", "stringData": PAIR.key}))
    noted = {"kind": "Secret", "metadata": {"annotations": {"backup": PAIR.key, "team": "shop"}}}
    assert "PRIVATE" not in str(redacted(noted))
    assert redacted(noted)["metadata"]["annotations"]["team"] == "shop"


def key_line(pem: str) -> str:
    return pem.splitlines()[1]


GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: edge}
spec:
  selector: {app: edge}
  servers:
  - port: {number: 443, name: https, protocol: HTTPS}
    hosts: [shop.example.com]
    tls: {mode: MUTUAL, credentialName: shop}
"""
RULE = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: outside, namespace: edge}
spec:
  host: outside.example.com
  exportTo: ["."]
  trafficPolicy: {tls: {mode: MUTUAL, credentialName: shop}}
"""


def read(text: str) -> ApiObject:
    found, problems = load_documents(text, "test")
    assert not problems
    return found[0]


def secret(namespace: str, *, roots: bool = True) -> ApiObject:
    data = {"tls.crt": PAIR.certificate, "tls.key": PAIR.key}
    return obj("Secret", "shop", {"stringData": data | ({"ca.crt": SITE.certificate} if roots else {})}, namespace)


HOSTS = [
    obj("Host", "edge", {"addresses": ["10.0.0.1"]}),
    obj("Host", "beside", {"addresses": ["10.0.0.2"]}),
    obj("Host", "other", {"addresses": ["10.0.0.3"]}),
    obj("WorkloadEntry", "edge", {"address": "10.0.0.1", "labels": {"app": "edge"}}, "edge"),
    obj("WorkloadEntry", "beside", {"address": "10.0.0.2", "labels": {"app": "beside"}}, "edge"),
    obj("WorkloadEntry", "other", {"address": "10.0.0.3", "labels": {"app": "other"}}, "other"),
]


def asked(mesh: Mesh, host: str, name: str = NAME) -> str:
    """Return the JSON of what a host gets, without keys; "" for nothing."""
    found = xds.resource(mesh, host, wire.SECRET_TYPE, name)
    message = message_of(found) if found else None
    return str(as_json(message)) if message is not None else ""


def test_a_gateways_host_gets_its_credential_and_no_other_host_does() -> None:
    mesh = mesh_of([*HOSTS, read(GATEWAY), secret("edge")])
    found = xds.resource(mesh, "edge", wire.SECRET_TYPE, NAME)
    assert found is not None
    assert PAIR.key.encode() in Resource.FromString(found.body).resource.value
    assert "trustedCa" in asked(mesh, "edge", f"{NAME}-cacert")
    for host in ("beside", "other"):
        for name in (NAME, f"{NAME}-cacert", "kubernetes://edge/shop"):
            assert asked(mesh, host, name) == ""


def test_a_host_that_calls_with_a_credential_gets_the_one_of_its_namespace() -> None:
    mesh = mesh_of([*HOSTS, read(RULE), secret("edge"), secret("other")])
    assert "(redacted, sha256 " in asked(mesh, "beside")
    # The rule is not exported to it.
    assert asked(mesh, "other") == ""


def test_no_name_leads_to_another_namespaces_credential() -> None:
    mesh = mesh_of([*HOSTS, read(GATEWAY), secret("other")])
    for name in (
        NAME,
        "kubernetes://other/shop",
        "kubernetes://edge/shop",
        "shop",
        "kubernetes://",
        "kubernetes://-cacert",
    ):
        assert asked(mesh, "edge", name) == ""


def test_a_credential_may_lie_beside_the_gateway() -> None:
    beside = read(GATEWAY.replace("namespace: edge", "namespace: team"))
    mesh = mesh_of([*HOSTS, beside, secret("team")])
    assert "(redacted, sha256 " in asked(mesh, "edge")
    # The one beside the workload goes before it.
    both = mesh_of(
        [*HOSTS, beside, secret("team"), obj("Secret", "shop", {"stringData": {"ca.crt": SITE.certificate}}, "edge")]
    )
    assert asked(both, "edge") == ""


def test_a_certificate_without_ca_has_none_for_clients() -> None:
    mesh = mesh_of([*HOSTS, read(GATEWAY), secret("edge", roots=False)])
    assert asked(mesh, "edge", f"{NAME}-cacert") == ""
    own = obj("Secret", "shop-cacert", {"stringData": {"ca.crt": SITE.certificate}}, "edge")
    assert "trustedCa" in asked(
        mesh_of([*HOSTS, read(GATEWAY), secret("edge", roots=False), own]), "edge", f"{NAME}-cacert"
    )


@pytest.mark.parametrize("name", [NAME, f"{NAME}-cacert"])
def test_a_secret_that_comes_changes_or_goes_is_told_to_those_who_asked(name: str) -> None:
    mesh = mesh_of([*HOSTS, read(GATEWAY)])
    key = ObjectKey("Secret", "edge", "shop")
    for item in (secret("edge"), secret("edge", roots=False), None):
        assert object_dependency(key) in xds.dependencies(mesh, "edge", wire.SECRET_TYPE, name)
        mesh, touched = update(mesh, {key: item}, mesh.vips, mesh.runtime)
        assert object_dependency(key) in touched.services
        assert not touched.hosts
        assert not touched.everything


def test_a_host_that_is_no_gateway_any_more_has_its_credentials_taken_away() -> None:
    mesh = mesh_of([*HOSTS, read(GATEWAY), secret("edge")])
    known = xds.dependencies(mesh, "edge", wire.SECRET_TYPE, NAME)
    gone, touched = update(mesh, {ObjectKey("Gateway", "edge", "edge"): None}, mesh.vips, mesh.runtime)
    assert set(known) & touched.services
    assert "edge" in touched.hosts
    assert asked(gone, "edge") == ""
