"""The admin API: who may do what, tokens, and hosts that come and go."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hostmesh_api.joinstring import JoinString
from hostmesh_controller.store import CertificateRecord
from running_controller import running_app
from shop import HOST, SERVICE, actions
from waiting import until


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


async def test_a_dry_run_of_a_registration_makes_nothing_and_refuses_what_is_refused(tmp_path: Path) -> None:
    body = {"host": "web-1", "addresses": ["10.0.0.5"], "dry_run": True}
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/register", json=body)
        assert actions(answer) == {"Host/web-1": "created"}
        assert "join_string" not in answer.json()
        assert (await app.root.post("/v1/register", json={**body, "host": "Bad_Name"})).status_code == 422
        for path in ("/v1/objects", "/v1/tokens"):
            assert (await app.root.get(path)).json()["items"] == []


async def test_a_host_without_ports_has_no_workload(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/register", json={"host": "h", "addresses": ["10.0.0.5"]})
        assert actions(answer) == {"Host/h": "created"}
        refused = await app.root.post("/v1/register", json={"host": "Bad_Name", "addresses": ["10.0.0.6"]})
        assert refused.status_code == 422
        assert "join_string" not in refused.text


async def test_registering_again_sets_what_is_named_and_tells_what_was_before(tmp_path: Path) -> None:
    body: dict[str, Any] = {"host": "web-1", "addresses": ["10.0.0.5"], "ports": [{"name": "http", "number": 80}]}
    async with running_app(tmp_path) as app:
        await app.root.post("/v1/register", json={**body, "service_account": "web", "ssh_host_keys": []})
        host = {"apiVersion": "hostmesh.io/v1", "kind": "Host", "metadata": {"name": "web-1", "labels": {"rack": "1"}}}
        spec = {"addresses": ["10.0.0.5"], "workloadNamespaces": ["shop"]}
        await app.root.put("/v1/objects/Host/-/web-1", json={**host, "spec": spec})
        again = await app.root.post("/v1/register", json={"host": "web-1", "labels": {"app": "web"}, "token": False})
        assert actions(again) == {"Host/web-1": "unchanged", "WorkloadEntry/web-1": "configured"}
        assert "join_string" not in again.json()
        (before,) = again.json()["before"]
        assert before["spec"] == {"address": "10.0.0.5", "ports": {"http": 80}, "serviceAccount": "web"}
        entry = (await app.root.get("/v1/objects/WorkloadEntry/default/web-1")).json()["document"]
        assert entry["spec"] == {**before["spec"], "labels": {"app": "web"}}
        assert (await app.root.get("/v1/tokens")).json()["items"][1:] == []
        unknown = await app.root.post("/v1/register", json={"host": "web-2"})
        assert unknown.status_code == 422
        assert "name the addresses" in unknown.text


async def test_labels_of_a_host_are_set_beside_those_that_it_has(tmp_path: Path) -> None:
    body: dict[str, Any] = {"host": "web-1", "addresses": ["10.0.0.5"], "token": False}
    async with running_app(tmp_path) as app:
        await app.root.post("/v1/register", json={**body, "host_labels": {"rack": "1", "tier": "web"}})
        (item,) = (await app.root.get("/v1/objects")).json()["items"]
        assert item["document"]["metadata"]["labels"] == {"rack": "1", "tier": "web"}
        more = {"host": "web-1", "host_labels": {"tier": "api"}, "token": False}
        tried = await app.root.post("/v1/register", json={**more, "dry_run": True})
        assert actions(tried) == {"Host/web-1": "configured"}
        again = await app.root.post("/v1/register", json=more)
        assert again.json()["before"] == [item["document"]]
        (item,) = (await app.root.get("/v1/objects")).json()["items"]
        assert item["document"]["metadata"]["labels"] == {"rack": "1", "tier": "api"}
        refused = await app.root.post("/v1/register", json={**body, "host_labels": {"a b": "c"}})
        assert refused.status_code == 422


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
        await until(lambda: app.controller.hub.mesh.runtime_of("h1").joined, "callers know")
        assert actions(await app.root.delete("/v1/objects/Host/-/h1")) == {"Host/h1": "deleted"}
        assert store.certificates("h1") == []
        assert store.host_states() == {}
        await until(lambda: not app.controller.hub.mesh.runtime_of("h1").joined, "callers know")
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
