"""The admin API: what is no good request is told in one shape; restarts, bursts and metrics."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from hostmesh_controller.api.app import roles
from hostmesh_controller.api.bounds import depth_of
from hostmesh_controller.limits import Limits
from running_controller import running_app
from shop import HOST, ROUTE, SERVICE


async def test_a_body_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        declared = await app.root.post("/v1/apply", content=b"x" * (Limits().request_bytes + 1))

        async def endless() -> Any:
            for _ in range(Limits().request_bytes // 65536 + 2):
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
        keys = [{"kind": "Service", "namespace": "shop", "name": f"s{n}"} for n in range(19)]
        await app.root.post("/v1/delete", json={"keys": keys, "confirmed": True})
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
