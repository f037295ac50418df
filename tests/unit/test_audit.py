"""The audit log: who, by what proof, what, before and after, and what was refused; kept within bounds."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from hostmesh_controller.api.denials import OF_ONE_PER_MINUTE
from hostmesh_controller.audit import prune
from hostmesh_controller.config import Audit
from hostmesh_controller.model import ObjectKey
from hostmesh_controller.store import Actor, AuditQuery, Put, RefusedWrite
from hostmesh_controller.store.sqlite import open_store
from running_controller import App, running_app
from shop import SERVICE

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ObjectKey("Service", "shop", "reviews")


async def records(app: App, **query: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await app.root.get("/v1/audit", params=query)).json()["items"]
    return items


async def write(app: App, text: str, headers: dict[str, str]) -> httpx.Response:
    return await app.outside.post("/v1/apply", json={"sources": [{"name": "a", "text": text}]}, headers=headers)


async def test_a_write_tells_by_which_token_and_from_where(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        made = (await app.root.post("/v1/api-tokens", json={"name": "ci", "role": "editor"})).json()
        await write(app, SERVICE, {"Authorization": f"Bearer {made['token']}"})
        record = (await records(app))[0]
        told = {name: record[name] for name in ("actor", "way", "proof", "address", "action", "object", "result")}
        assert told == {
            "actor": "ci",
            "way": "token",
            "proof": made["id"],
            "address": "127.0.0.1",
            "action": "create",
            "object": "service/shop/reviews",
            "result": "ok",
        }
        assert record["before"] is None
        assert record["after"]["spec"]["selector"] == {"app": "reviews"}


async def test_a_refused_write_is_kept_with_who_wanted_what_and_why_not(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        made = (await app.root.post("/v1/api-tokens", json={"name": "ci", "grants": ["editor:bank"]})).json()
        headers = {"Authorization": f"Bearer {made['token']}"}
        assert (await write(app, SERVICE, headers)).status_code == 403
        assert (await app.outside.post("/v1/tokens", json={"host": "h"}, headers=headers)).status_code == 403
        assert (await app.outside.delete("/v1/hosts/h7", headers=headers)).status_code == 403
        found = await records(app, result="denied")
        assert [(each["action"], each["object"], each["actor"], each["proof"]) for each in found] == [
            ("hosts.delete", "h7", "ci", made["id"]),
            ("tokens.post", "", "ci", made["id"]),
            ("apply", "service/shop/reviews", "ci", made["id"]),
        ]
        assert found[2]["reason"] == "ci has the role editor; no grant for namespace 'shop'"
        assert {each["after"] for each in found} == {None}
        assert await records(app, result="ok", kind="Service") == []


async def test_a_refused_read_is_no_record_but_who_is_nobody_is_one(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        made = (await app.root.post("/v1/api-tokens", json={"name": "ci", "grants": ["viewer:bank"]})).json()
        headers = {"Authorization": f"Bearer {made['token']}"}
        assert (await app.outside.get("/v1/objects/Service/shop/x", headers=headers)).status_code == 403
        assert await records(app, result="denied") == []
        assert (await app.outside.get("/v1/objects", headers={"Authorization": "Bearer guess"})).status_code == 401
        record = (await records(app, result="denied"))[0]
        assert (record["actor"], record["way"], record["address"]) == ("nobody", "none", "127.0.0.1")
        assert "guess" not in str(record)


async def test_a_flood_of_refusals_does_not_fill_the_log(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        for _ in range(OF_ONE_PER_MINUTE + 20):
            assert (await app.outside.post("/v1/apply", json={})).status_code == 401
        kept = len(await records(app, result="denied", limit="1000"))
        assert OF_ONE_PER_MINUTE <= kept <= OF_ONE_PER_MINUTE + 5
        metrics = (await app.root.get("/metrics")).text
        assert "hostmesh_controller_denials_not_kept_total 0.0" not in metrics


async def test_records_are_found_by_who_what_where_and_when(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(SERVICE)
        await app.apply(SERVICE.replace("80", "81"))
        await app.root.post("/v1/api-tokens", json={"name": "x", "role": "viewer"})
        assert [each["action"] for each in await records(app)] == ["apitoken.add", "update", "create"]
        assert len(await records(app, action="update")) == 1
        assert len(await records(app, kind="Service", namespace="shop")) == 2
        assert [each["action"] for each in await records(app, namespace="-")] == ["apitoken.add"]
        assert await records(app, actor="nobody-else") == []
        assert len(await records(app, since_s="3600")) == 3
        assert (await app.root.get("/v1/audit", params={"result": "maybe"})).status_code == 422


def test_records_are_pruned_by_age_and_number_and_the_rest_survives_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    actor = Actor("ann", way="certificate", proof="1f", address="::1")
    for day in range(20):
        store.commit([Put(KEY, {"n": day})], actor=actor, now=NOW + timedelta(days=day))
    assert prune(store, Audit(keep_days=15, keep_records=1000), NOW + timedelta(days=20)) == 5
    assert prune(store, Audit(keep_days=15, keep_records=8), NOW + timedelta(days=20)) == 7
    assert prune(store, Audit(keep_days=15, keep_records=8), NOW + timedelta(days=20)) == 0
    store.close()
    store = open_store(tmp_path / "s")
    kept = store.audit(100)
    assert [each.after for each in kept] == [{"n": day} for day in range(19, 11, -1)]
    assert {(each.actor, each.way, each.proof, each.address, each.result) for each in kept} == {
        ("ann", "certificate", "1f", "::1", "ok")
    }
    store.close()


def test_what_a_refused_caller_says_is_cut_and_made_plain(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    nasty = "x\n2026-01-01 root\x1b[2J\u202e\x9b31m" + "y" * 5000
    store.deny(RefusedWrite(Actor(nasty, address=nasty), "apply", ObjectKey("K", nasty, nasty), nasty), NOW)
    record = store.audit(1, query=AuditQuery(result="denied"))[0]
    for text in (record.actor, record.address, record.key.name, record.key.namespace, record.reason):
        assert text.isprintable()
        assert len(text) <= 500
    store.close()
