"""What a writer is told by the running controller: warnings of what changes, and of what others lose."""

from pathlib import Path
from typing import Any

from checking import istio, service
from running_controller import running_app

RULE = istio("DestinationRule", "rule", "host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}")
ROUTES = istio("VirtualService", "r", "hosts: [a.test], http: [{route: [{destination: {host: reviews}}]}]")


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"sources": [{"name": "f.yaml", "text": text}], **more}


def told(answer: Any) -> list[tuple[str, str]]:
    assert answer.status_code == 200, answer.text
    return [(each["istio_code"], each["code"]) for each in answer.json()["warnings"]]


async def test_a_write_is_judged_by_what_was_written_before(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        assert told(await app.root.post("/v1/apply", json=body(RULE))) == [("IST0174", "unknown-host")]
        assert told(await app.root.post("/v1/apply", json=body(service("reviews")))) == []
        assert told(await app.root.post("/v1/apply", json=body(ROUTES))) == []
        # Only what is applied is reported on.
        assert told(await app.root.post("/v1/apply", json=body(service("other")))) == []
        assert told(await app.root.post("/v1/apply", json=body(RULE, dry_run=True))) == []


async def test_a_deletion_says_who_is_left_behind(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.root.post("/v1/apply", json=body(service("reviews") + ROUTES))
        keys = [{"kind": "Service", "namespace": "default", "name": "reviews"}]
        deleted = await app.root.post("/v1/delete", json={"keys": keys})
        assert told(deleted) == [("IST0101", "still-referred")]
        [warning] = deleted.json()["warnings"]
        assert (warning["file"], warning["line"]) == ("Service default/reviews", None)
        assert "VirtualService default/r refers to 'reviews.default.svc.cluster.local'" in warning["message"]
        assert (await app.root.get("/v1/objects/Service/default/reviews")).status_code == 404


async def test_a_name_that_nothing_defines_any_more_gives_its_address_back(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        entry = istio(
            "ServiceEntry",
            "e",
            "hosts: [a.test, b.test], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]",
        )
        await app.root.post("/v1/apply", json=body(entry + service("kept")))
        await app.published()
        names = set(app.controller.registrar.mesh.vips)
        assert {"a.test", "b.test", "kept.default.svc.cluster.local"} <= names
        await app.root.post("/v1/apply", json=body(entry.replace(", b.test", "")))
        await app.published()
        assert set(app.controller.registrar.mesh.vips) == names - {"b.test"}
        await app.root.post("/v1/delete", json=body(entry.replace(", b.test", "")))
        await app.published()
        assert set(app.controller.registrar.mesh.vips) == names - {"a.test", "b.test"}
