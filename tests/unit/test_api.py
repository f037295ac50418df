"""The admin API over a real store: objects in and out, all or nothing, one shape of error."""

import json
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from hostmesh_api.joinstring import JoinString
from hostmesh_controller.api.app import roles
from hostmesh_controller.api.bounds import MAX_BODY_BYTES, depth_of
from hostmesh_controller.store import CertificateRecord
from running_controller import running_app

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  ports: [{port: 80, name: http}]
  selector: {app: reviews}
"""
HOST = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1}
spec: {addresses: [10.0.0.1]}
"""
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews}}]
"""


def actions(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {f"{each['kind']}/{each['name']}": each["action"] for each in answer.json()["objects"]}


async def test_applying_creates_then_finds_unchanged_then_configures(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        first = await app.apply(f"{SERVICE}---{ROUTE}")
        assert actions(first) == {"Service/reviews": "created", "VirtualService/reviews": "created"}
        again = await app.apply(f"{SERVICE}---{ROUTE}")
        assert actions(again) == {"Service/reviews": "unchanged", "VirtualService/reviews": "unchanged"}
        assert again.json()["revision"] == first.json()["revision"] == 1
        changed = await app.apply(SERVICE.replace("80", "81"))
        assert actions(changed) == {"Service/reviews": "configured"}
        assert changed.json()["revision"] == 2


async def test_json_documents_are_applied_like_yaml(tmp_path: Path) -> None:
    document = {"apiVersion": "hostmesh.io/v1", "kind": "Host", "metadata": {"name": "h"}, "spec": {}}
    async with running_app(tmp_path) as app:
        assert actions(await app.root.post("/v1/apply", json={"documents": [document]})) == {"Host/h": "created"}


async def test_an_object_comes_back_as_it_was_written(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(SERVICE)
        got = (await app.root.get("/v1/objects/Service/shop/reviews")).json()
        assert got["document"]["spec"] == {"ports": [{"port": 80, "name": "http"}], "selector": {"app": "reviews"}}
        assert got["revision"] == 1
        assert got["uid"]
        again = await app.root.post("/v1/apply", json={"documents": [got["document"]]})
        assert actions(again) == {"Service/reviews": "unchanged"}


async def test_lists_are_filtered_by_kind_and_namespace(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(f"{SERVICE}---{SERVICE.replace('shop', 'other')}---{HOST}")

        async def names(**params: str) -> list[tuple[str, str]]:
            items = (await app.root.get("/v1/objects", params=params)).json()["items"]
            return [(each["namespace"], each["name"]) for each in items]

        assert await names(kind="Service") == [("other", "reviews"), ("shop", "reviews")]
        assert await names(kind="Service", namespace="shop") == [("shop", "reviews")]
        assert await names(namespace="-") == [("", "h1")]
        assert len(await names()) == 3


async def test_one_object_is_put_and_deleted_by_its_key(tmp_path: Path) -> None:
    document = {"apiVersion": "hostmesh.io/v1", "kind": "Host", "metadata": {"name": "h"}, "spec": {}}
    async with running_app(tmp_path) as app:
        assert (await app.root.put("/v1/objects/Host/-/h", json=document)).json()["action"] == "created"
        assert (await app.root.put("/v1/objects/Host/-/h", json=document)).json()["action"] == "unchanged"
        assert (await app.root.put("/v1/objects/Host/-/other", json=document)).json()["error"]["code"] == "key_mismatch"
        assert actions(await app.root.delete("/v1/objects/Host/-/h")) == {"Host/h": "deleted"}
        assert (await app.root.delete("/v1/objects/Host/-/h")).status_code == 404


async def test_keys_that_make_no_sense_are_refused_with_what_would(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        for path, status, part in (
            ("Nonsense/x/y", 404, "unknown kind 'Nonsense'; known: "),
            ("Host/shop/h", 400, "a Host is in no namespace"),
            ("Service/-/s", 400, "a Service is in a namespace"),
            ("Service/shop/none", 404, "not found: Service shop/none"),
        ):
            answer = await app.root.get(f"/v1/objects/{path}")
            assert (answer.status_code, part in answer.json()["error"]["message"]) == (status, True), answer.text


MALFORMED = {
    "not YAML": "a: [1, 2",
    "a tab": "a:\n\t- b",
    "a list": "- 1\n- 2",
    "a scalar": "hello",
    "no kind": "apiVersion: v1\nmetadata: {name: x}",
    "an unknown kind": "apiVersion: v1\nkind: Sevice\nmetadata: {name: x}",
    "an unknown version": "apiVersion: v9\nkind: Service\nmetadata: {name: x}",
    "no name": "apiVersion: v1\nkind: Service\nmetadata: {}",
    "a bad name": "apiVersion: v1\nkind: Service\nmetadata: {name: '../etc'}",
    "a misspelt field": SERVICE.replace("selector", "selctor"),
    "a wrong type": SERVICE.replace("80", "'eighty'"),
    "a port out of range": SERVICE.replace("80", "70000"),
    "a key twice": SERVICE.replace("selector:", "ports: []\n  selector:"),
    "an alias bomb": "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 10)}]" for i in range(8)),
    "deep nesting": "[" * 3000,
    "a control character": "a: \x00",
    "a python tag": "!!python/object/apply:os.system ['true']",
    "the same object twice": f"{SERVICE}---{SERVICE.replace('80', '81')}",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
async def test_one_malformed_document_changes_nothing(tmp_path: Path, text: str) -> None:
    async with running_app(tmp_path) as app:
        answer = await app.apply(f"{HOST}---\n{text}\n")
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert error["code"] == "invalid"
        assert error["problems"]
        for problem in error["problems"]:
            assert set(problem) == {"file", "line", "column", "path", "message", "code", "istio_code", "severity"}
            assert problem["file"] == "test.yaml"
        assert (await app.root.get("/v1/objects")).json()["items"] == []
        assert (await app.root.get("/v1/audit")).json()["items"] == []
        assert app.controller.registrar.revision == 0


async def test_all_problems_of_all_sources_come_at_once_with_their_places(tmp_path: Path) -> None:
    sources = [
        {"name": "a.yaml", "text": SERVICE.replace("selector", "selctor")},
        {"name": "b.yaml", "text": f"{HOST}---{ROUTE.replace('http:', 'htpp:')}"},
    ]
    async with running_app(tmp_path) as app:
        error = (await app.root.post("/v1/apply", json={"sources": sources})).json()["error"]
    found = [(each["file"], each["line"], each["path"]) for each in error["problems"]]
    assert found == [("a.yaml", 7, "spec.selctor"), ("b.yaml", 12, "spec.htpp")]
    assert "did you mean 'selector'?" in error["problems"][0]["message"]


async def test_a_dry_run_a_validation_and_a_diff_change_nothing(tmp_path: Path) -> None:
    body = {"sources": [{"name": "a", "text": SERVICE}]}
    async with running_app(tmp_path) as app:
        assert actions(await app.apply(SERVICE, dry_run=True)) == {"Service/reviews": "created"}
        assert (await app.root.post("/v1/validate", json=body)).json()["valid"] is True
        change = (await app.root.post("/v1/diff", json=body)).json()["objects"][0]
        assert (change["action"], change["before"]) == ("created", None)
        assert change["after"]["kind"] == "Service"
        assert (await app.root.get("/v1/objects")).json()["items"] == []


async def test_deleting_takes_all_or_nothing(tmp_path: Path) -> None:
    gone = {"kind": "Host", "namespace": "-", "name": "none"}
    there = {"kind": "Host", "namespace": "", "name": "h1"}
    async with running_app(tmp_path) as app:
        await app.apply(HOST)
        refused = await app.root.post("/v1/delete", json={"keys": [there, gone]})
        assert (refused.status_code, refused.json()["error"]["message"]) == (404, "not found: Host none")
        assert len((await app.root.get("/v1/objects")).json()["items"]) == 1
        lenient = await app.root.post("/v1/delete", json={"keys": [there, gone], "ignore_missing": True})
        assert actions(lenient) == {"Host/h1": "deleted", "Host/none": "missing"}
        assert (await app.root.get("/v1/objects")).json()["items"] == []


async def test_documents_say_what_to_delete(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(SERVICE)
        answer = await app.root.post("/v1/delete", json={"sources": [{"name": "a", "text": SERVICE}]})
        assert actions(answer) == {"Service/reviews": "deleted"}


async def test_every_write_is_audited_with_who_and_what_before_and_after(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        editor = await app.as_role("editor")
        body = {"sources": [{"name": "a", "text": SERVICE}]}
        await app.outside.post("/v1/apply", json=body, headers=editor)
        await app.apply(SERVICE.replace("80", "81"))
        await app.root.delete("/v1/objects/Service/shop/reviews")
        items = (await app.root.get("/v1/audit")).json()["items"]
        seen = [(each["actor"], each["action"], each["object"]) for each in items if each["kind"] == "Service"]
        path = "service/shop/reviews"
        assert seen == [("root", "delete", path), ("root", "update", path), ("a-editor", "create", path)]
        update = items[1]
        assert [update[side]["spec"]["ports"][0]["port"] for side in ("before", "after")] == [80, 81]
        assert (items[0]["after"], items[2]["before"]) == (None, None)


async def test_tokens_are_audited_with_who_made_and_revoked_them(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        admin = await app.as_role("admin")
        await app.apply(HOST)
        for path, body in (("tokens", {"host": "h1"}), ("api-tokens", {"name": "a", "role": "viewer"})):
            made = (await app.outside.post(f"/v1/{path}", json=body, headers=admin)).json()
            await app.outside.delete(f"/v1/{path}/{made['id']}", headers=admin)
        await app.outside.post("/v1/tokens", json={"host": "h1"}, headers=admin)
        await app.root.delete("/v1/hosts/h1")
        items = (await app.root.get("/v1/audit")).json()["items"]
        seen = [(each["actor"], each["action"]) for each in items if "token" in each["action"]][:6]
        assert seen == [
            ("root", "token.revoke"),
            ("a-admin", "token.add"),
            ("a-admin", "apitoken.revoke"),
            ("a-admin", "apitoken.add"),
            ("a-admin", "token.revoke"),
            ("a-admin", "token.add"),
        ]


async def test_a_role_may_do_what_it_may_and_no_more(tmp_path: Path) -> None:
    ranks = {"viewer": 1, "editor": 2, "admin": 3}
    async with running_app(tmp_path) as app:
        routes = list(roles())
        assert len(routes) > 20
        for role, rank in ranks.items():
            headers = await app.as_role(role)
            for method, path, least in routes:
                answer = await app.outside.request(method, filled(path), headers=headers)
                allowed = least is None or rank >= least
                assert (answer.status_code != 403) == allowed, (role, method, path, answer.text)
        for method, path, least in routes:
            answer = await app.outside.request(method, filled(path))
            assert (answer.status_code == 401) == (least is not None), (method, path, answer.text)


def filled(path: str) -> str:
    values = {"kind": "Service", "namespace": "shop", "name": "x", "token_id": "x", "host": "x"}
    return path.format(**values)


def test_only_what_probes_and_scrapers_need_is_open() -> None:
    assert {path for _, path, role in roles() if role is None} == {"/healthz", "/readyz", "/metrics"}


async def test_an_editor_cannot_give_a_machine_an_identity(tmp_path: Path) -> None:
    body = {"sources": [{"name": "a", "text": f"{SERVICE}---{HOST}"}]}
    async with running_app(tmp_path) as app:
        editor = await app.as_role("editor")
        refused = await app.outside.post("/v1/apply", json=body, headers=editor)
        assert refused.status_code == 403
        assert "objects of kind Host need admin" in refused.json()["error"]["message"]
        assert (await app.root.get("/v1/objects")).json()["items"] == []


async def test_a_token_is_useless_once_revoked_expired_or_made_up(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        made = (await app.root.post("/v1/api-tokens", json={"name": "bob", "role": "viewer"})).json()
        headers = {"Authorization": f"Bearer {made['token']}"}
        assert (await app.outside.get("/v1/hosts", headers=headers)).status_code == 200
        assert (await app.root.delete(f"/v1/api-tokens/{made['id']}")).status_code == 200
        assert (await app.outside.get("/v1/hosts", headers=headers)).status_code == 401
        assert (await app.root.delete(f"/v1/api-tokens/{made['id']}")).status_code == 404
        for value in ("Bearer nonsense", "Basic cm9vdDpyb290", "Bearer", ""):
            answer = await app.outside.get("/v1/hosts", headers={"Authorization": value})
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_tokens_are_shown_once_and_never_listed_logged_or_audited(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOST)
        api = (await app.root.post("/v1/api-tokens", json={"name": "bob", "role": "viewer"})).json()["token"]
        join = JoinString.decode((await app.root.post("/v1/tokens", json={"host": "h1"})).json()["join_string"])
        for path in ("/v1/api-tokens", "/v1/tokens", "/v1/audit"):
            text = (await app.root.get(path)).text
            assert api not in text
            assert join.token not in text
        assert api.encode() not in (tmp_path / "store.sqlite").read_bytes()
        assert join.token.encode() not in (tmp_path / "store.sqlite").read_bytes()


async def test_a_join_string_names_the_join_port_and_pins_the_root(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOST)
        made = (await app.root.post("/v1/tokens", json={"host": "h1", "ttl_s": 60})).json()
        join = JoinString.decode(made["join_string"])
        assert join.endpoints == ("127.0.0.1:15013",)
        assert join.root_der == app.controller.authority.root_der
        assert (await app.root.post("/v1/tokens", json={"host": "none"})).status_code == 404
        assert (await app.root.delete(f"/v1/tokens/{made['id']}")).json() == {"id": made["id"], "revoked": True}
        assert (await app.root.get("/v1/tokens")).json()["items"][0]["state"] == "revoked"


async def test_registering_makes_the_host_its_workload_and_a_join_string(tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "host": "web-1",
        "addresses": ["10.0.0.5", "2001:db8::5"],
        "namespace": "shop",
        "service_account": "web",
        "labels": {"app": "web"},
        "ports": [{"name": "http", "number": 8080}],
    }
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/register", json=body)
        assert actions(answer) == {"Host/web-1": "created", "WorkloadEntry/web-1": "created"}
        assert answer.json()["join_string"].startswith("hm1.")
        entry = (await app.root.get("/v1/objects/WorkloadEntry/shop/web-1")).json()["document"]
        assert entry["spec"] == {
            "address": "10.0.0.5",
            "ports": {"http": 8080},
            "labels": {"app": "web"},
            "serviceAccount": "web",
        }
        await app.published()
        assert (await app.root.get("/v1/hosts/web-1")).json()["workloads"] == ["shop/web-1"]
        again = await app.root.post("/v1/register", json=body)
        assert actions(again) == {"Host/web-1": "unchanged", "WorkloadEntry/web-1": "unchanged"}


async def test_a_host_without_ports_has_no_workload(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/register", json={"host": "h", "addresses": ["10.0.0.5"]})
        assert actions(answer) == {"Host/h": "created"}
        refused = await app.root.post("/v1/register", json={"host": "Bad_Name", "addresses": ["10.0.0.6"]})
        assert refused.status_code == 422
        assert "join_string" not in refused.text


async def test_a_removed_host_is_forgotten(tmp_path: Path) -> None:
    body = {"host": "h", "addresses": ["10.0.0.5"], "ports": [{"name": "http", "number": 80}]}
    async with running_app(tmp_path) as app:
        await app.root.post("/v1/register", json=body)
        await app.published()
        answer = await app.root.delete("/v1/hosts/h", params={"workloads": "true"})
        assert actions(answer) == {"Host/h": "deleted", "WorkloadEntry/h": "deleted"}
        assert (await app.root.get("/v1/hosts")).json()["items"] == []
        assert (await app.root.get("/v1/hosts/h")).status_code == 404
        assert (await app.root.delete("/v1/hosts/h")).status_code == 404
        assert not app.controller.registrar.registered("h")


async def test_a_join_string_of_a_removed_host_is_not_one_of_the_next_host_of_its_name(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOST)
        old = (await app.root.post("/v1/tokens", json={"host": "h1"})).json()
        await app.root.delete("/v1/hosts/h1")
        await app.apply(HOST)
        new = (await app.root.post("/v1/tokens", json={"host": "h1"})).json()
        listed = (await app.root.get("/v1/tokens")).json()["items"]
        assert {each["id"]: each["state"] for each in listed} == {old["id"]: "revoked", new["id"]: "open"}


async def test_deleting_the_host_object_puts_the_host_out_too(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOST)
        store, now = app.controller.store, datetime.now(UTC)
        store.add_certificate(CertificateRecord("01", "spiffe://cluster.local/host/h1", "h1", now, now))
        await app.controller.registrar.states.joined("h1")
        assert actions(await app.root.delete("/v1/objects/Host/-/h1")) == {"Host/h1": "deleted"}
        await app.published()
        assert store.certificates("h1") == []
        assert store.host_states() == {}
        assert not app.controller.hub.mesh.runtime_of("h1").joined
        await app.apply(HOST)
        assert (await app.root.get("/v1/hosts/h1")).json()["state"] == "registered"


async def test_a_host_that_is_not_connected_is_in_the_status_as_such(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOST)
        await app.published()
        status = (await app.root.get("/v1/proxies/h1")).json()
        assert (status["connected"], status["settled"], status["nacks"], status["types"]) == (False, False, [], {})
        assert [each["host"] for each in (await app.root.get("/v1/proxies")).json()["items"]] == ["h1"]


async def test_convergence_without_hosts_is_at_once_and_of_the_future_refused(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        revision = (await app.apply(HOST)).json()["revision"]
        answer = await app.root.get("/v1/converged", params={"revision": revision, "timeout_s": 10})
        assert answer.json() == {"revision": revision, "converged": True, "hosts": []}
        assert (await app.root.get("/v1/converged", params={"revision": 99})).status_code == 404


async def test_a_body_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        declared = await app.root.post("/v1/apply", content=b"x" * (MAX_BODY_BYTES + 1))

        async def endless() -> Any:
            for _ in range(MAX_BODY_BYTES // 65536 + 2):
                yield b"x" * 65536

        streamed = await app.root.post("/v1/apply", content=endless())
        for answer in (declared, streamed):
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"sources": 5}', b'{"unknown": 1}', b"[" * 100_000],
)
async def test_a_request_that_is_not_as_described_is_the_callers_fault(tmp_path: Path, content: bytes) -> None:
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/apply", content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code in {400, 422}, answer.text
        assert set(answer.json()["error"]) == {"code", "message", "problems"}


async def test_a_deep_document_is_refused(tmp_path: Path) -> None:
    text = '{"documents": [{"a": ' + "[" * 200 + "]" * 200 + "}]}"
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/apply", content=text, headers={"Content-Type": "application/json"})
        assert answer.json()["error"]["code"] == "too_deep"


def test_depth_counts_levels_of_maps_and_lists() -> None:
    assert [depth_of(json.loads(text)) for text in ("1", "[]", "[[1], 2]", '{"a": {"b": [1]}}')] == [0, 0, 2, 3]


async def test_a_secret_in_a_malformed_request_is_not_repeated(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/api-tokens", json={"name": "hunter2 with spaces", "role": "king"})
        assert answer.status_code == 422
        assert "hunter2" not in answer.text
        assert "king" not in answer.text


async def test_an_unknown_route_or_method_has_the_same_shape(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        for answer, status in ((await app.root.get("/v1/nothing"), 404), (await app.root.patch("/v1/apply"), 405)):
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"code", "message", "problems"}


async def test_a_failure_inside_tells_nothing_of_the_inside(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        with sqlite3.connect(tmp_path / "store.sqlite") as database:
            database.execute("DROP TABLE audit")
        database.close()
        answer = await app.root.get("/v1/audit")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store")
        assert "Traceback" not in answer.text
        assert "sqlite" not in answer.text.lower()


async def test_the_description_tells_of_every_route(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        document = (await app.root.get("/openapi.json")).json()
        described = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
        assert described == {(method, path) for method, path, _ in roles()}


async def test_what_was_stored_is_the_mesh_after_a_restart(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(f"{SERVICE}---{HOST}---{ROUTE}")
        await app.published()
        before = app.controller.hub.mesh
    async with running_app(tmp_path) as app:
        assert app.controller.hub.revision == 1
        assert app.controller.hub.mesh == before


async def test_a_burst_of_changes_ends_in_the_mesh_of_all_of_them(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        for number in range(20):
            await app.apply(SERVICE.replace("reviews", f"s{number}"))
        await app.published()
        assert len(app.controller.hub.mesh.services) == 20
        await app.root.post(
            "/v1/delete", json={"keys": [{"kind": "Service", "namespace": "shop", "name": f"s{n}"} for n in range(19)]}
        )
        await app.published()
        assert [each.hostname for each in app.controller.hub.mesh.services] == ["s19.shop.svc.cluster.local"]
        assert set(app.controller.store.vips()) == {"s19.shop.svc.cluster.local"}


async def test_requests_are_counted_by_route_role_and_code(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.root.get("/v1/objects/Service/a/b")
        await app.outside.get("/v1/objects/Service/a/b")
        text = (await app.root.get("/metrics")).text
        route = 'route="/v1/objects/{kind}/{namespace}/{name}"'
        head = "hostmesh_controller_api_requests_total"
        assert f'{head}{{code="404",method="GET",role="admin",{route}}} 1.0' in text
        assert f'{head}{{code="401",method="GET",role="none",{route}}} 1.0' in text


async def test_ready_is_not_said_before_everything_listens(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        assert (await app.outside.get("/healthz")).status_code == 200
        assert (await app.outside.get("/readyz")).status_code == 503
        app.controller.ready = True
        assert (await app.outside.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/tokens", b'{"host": "\\ud800"}', 404),
        ("/v1/delete", b'{"keys": [{"kind": "Service", "namespace": "a", "name": "\\udfff"}]}', 404),
        ("/v1/api-tokens", b'{"name": "a", "role": "viewer", "ttl_s": 1000000000000000}', 422),
        ("/v1/apply", b'{"documents": [{"apiVersion": "v1", "kind": "Host", "metadata": {"\\ud800": 1}}]}', 422),
    ],
)
async def test_what_cannot_be_written_or_counted_is_the_callers_fault(
    tmp_path: Path, path: str, body: bytes, status: int
) -> None:
    async with running_app(tmp_path) as app:
        answer = await app.root.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
        assert (await app.root.get("/v1/audit", params={"before_id": 2**64})).status_code == 422


async def test_a_namespace_that_is_no_name_never_reaches_the_store(tmp_path: Path) -> None:
    document = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}}
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/apply", json={"documents": [document], "namespace": "../x"})
        assert answer.status_code == 422
        assert answer.json()["error"]["problems"][0]["path"] == "metadata.namespace"
        put = await app.root.put("/v1/objects/ServiceAccount/Not-A-Name/a", json=document)
        assert put.status_code == 422
    async with running_app(tmp_path) as app:
        assert (await app.root.get("/v1/objects")).json()["items"] == []
