"""What a change would send and what a call would meet, asked of the API."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from hostmesh_api.wire import CLUSTER_TYPE, VIRTUAL_HOST_TYPE
from running_controller import App, running_app
from shop import HOST, SERVICE

REVIEWS = "reviews.shop.svc.cluster.local"
MEMBER = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: reviews-1, namespace: shop}
spec: {address: 10.0.0.9, labels: {app: reviews}}
"""
OBJECTS = f"{SERVICE}---{MEMBER}---{HOST}"
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - name: slow
    timeout: 7s
    route: [{destination: {host: reviews}}]
"""
WRONG = ROUTE.replace("7s", "seven")


async def connected(app: App) -> None:
    """Apply the objects, and let the host ask for the service as an Envoy does."""
    assert (await app.apply(OBJECTS)).status_code == 200
    await app.published()
    hub = app.controller.hub
    connection = hub.connect("h1", "peer", datetime.now(UTC), lambda: None)
    for type_url, name in ((VIRTUAL_HOST_TYPE, f"80/{REVIEWS}"), (CLUSTER_TYPE, f"outbound|80||{REVIEWS}")):
        request = DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=[name])
        hub.receive(connection, request, datetime.now(UTC))


async def diff(app: App, text: str) -> dict[str, Any]:
    answer = await app.root.post("/v1/diff", json={"sources": [{"name": "a.yaml", "text": text}]})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_diff_names_the_proxies_and_shows_the_resource_on_both_sides(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await connected(app)
        found = await diff(app, ROUTE)
        assert found["proxies"] == ["h1"]
        (resource,) = found["resources"]
        assert (resource["type"], resource["name"], resource["action"], resource["proxies"]) == (
            "virtualhost",
            f"80/{REVIEWS}",
            "changed",
            ["h1"],
        )
        assert resource["before"]["routes"][0]["name"] == "default"
        assert (resource["after"]["routes"][0]["name"], resource["after"]["routes"][0]["route"]["timeout"]) == (
            "slow",
            "7s",
        )


async def test_a_dry_run_names_them_without_what_they_hold_and_changes_nothing(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await connected(app)
        revision = app.controller.registrar.revision
        found = (await app.apply(ROUTE, dry_run=True)).json()
        assert [(each["name"], "before" in each) for each in found["resources"]] == [(f"80/{REVIEWS}", False)]
        assert app.controller.registrar.revision == revision
        assert (await diff(app, ROUTE))["resources"]


async def test_a_new_service_is_shown_before_it_has_its_address(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await connected(app)
        vips = dict(app.controller.registrar.mesh.vips)
        found = await diff(app, OBJECTS.split("---", maxsplit=1)[0].replace("name: reviews", "name: new"))
        assert [each["action"] for each in found["objects"]] == ["created"]
        assert dict(app.controller.registrar.mesh.vips) == vips


async def test_what_is_refused_is_refused_before_anything_is_shown(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await connected(app)
        answer = await app.root.post("/v1/diff", json={"sources": [{"name": "a.yaml", "text": WRONG}]})
        assert answer.status_code == 422
        assert "timeout" in answer.text


async def test_a_call_is_explained_and_a_bad_target_or_host_says_what_is_wrong(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await connected(app)
        asked = {"host": "h1", "target": "http://reviews.shop/1"}
        story = (await app.root.post("/v1/explain", json=asked)).json()
        assert story["reached"]
        assert story["proxy"]["connected"]
        assert [each["what"] for each in story["steps"] if each["stage"] == "endpoint"] == ["10.0.0.9:80"]
        wrong = await app.root.post("/v1/explain", json={**asked, "target": "db"})
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "bad_target")
        assert (await app.root.post("/v1/explain", json={**asked, "host": "nobody"})).status_code == 404
