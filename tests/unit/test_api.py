"""The admin API over a real store: objects in and out, all or nothing, one shape of error."""

from pathlib import Path

import pytest

from running_controller import running_app
from shop import HOST, ROUTE, SERVICE, actions


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


def services(count: int) -> str:
    return "---".join(SERVICE.replace("reviews", f"s{number}") for number in range(count))


async def test_most_of_a_mesh_is_deleted_by_who_says_so_and_by_nobody_else(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(services(15))
        keys = [{"kind": "Service", "namespace": "shop", "name": f"s{number}"} for number in range(15)]
        refused = await app.root.post("/v1/delete", json={"keys": keys[:8]})
        assert refused.status_code == 409
        error = refused.json()["error"]
        assert error["code"] == "most_would_go"
        assert "8 of 15 services would go (Service shop/s0," in error["message"]
        assert "and 3 more)" in error["message"]
        assert (await app.root.post("/v1/delete", json={"sources": [{"name": "a", "text": services(8)}]})).is_error
        assert len((await app.root.get("/v1/objects")).json()["items"]) == 15, "nothing was deleted"
        assert (await app.root.post("/v1/delete", json={"keys": keys[:7]})).is_success, (
            "fewer than 8 are an application"
        )
        assert (await app.root.post("/v1/delete", json={"keys": keys[7:], "confirmed": True})).is_success
        assert (await app.root.get("/v1/objects")).json()["items"] == []


async def test_half_of_a_large_mesh_is_not_most_of_it(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(services(20))
        assert (await app.root.post("/v1/delete", json={"sources": [{"name": "a", "text": services(10)}]})).is_success
