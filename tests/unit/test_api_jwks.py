"""Keys by URL through a whole controller: fetched, kept, rotated, told; and nobody's where there are none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostmesh_api import wire
from hostmesh_controller import xds
from hostmesh_controller.mesh import Mesh, Touched
from hostmesh_controller.model.jwks import NOBODYS, read_jwks
from hostmesh_controller.xds.messages import as_json, message_of
from key_server import KeyServer, key_server
from running_controller import App, running_app, running_process
from signing import Signer, key_set
from waiting import until

ONE, TWO = Signer("one"), Signer("two", elliptic=True)
SETTINGS = '[jwks]\nallow_cidrs = ["127.0.0.0/8"]\nrefresh_s = 1\n'
"""This machine may be asked, and soon again."""

HOSTS = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: one}
spec: {addresses: [10.9.0.1]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: one}
spec: {address: 10.9.0.1, labels: {app: one}}
---
apiVersion: v1
kind: Service
metadata: {name: one}
spec: {selector: {app: one}, ports: [{name: http, port: 80}]}
"""


def policy(rule: str, name: str = "one") -> str:
    return (
        "\n---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n"
        f"metadata: {{name: {name}}}\nspec: {{jwtRules: [{{{rule}}}]}}\n"
    )


@pytest.fixture
def server() -> Iterator[KeyServer]:
    with key_server() as found:
        found.says("/keys", key_set(ONE))
        yield found


def keys_at(app: App, host: str = "one") -> list[str]:
    """Return the key sets in a host's inbound listener."""
    found = xds.resource(app.controller.hub.mesh, host, wire.LISTENER_TYPE, "virtualInbound")
    assert found is not None
    message = message_of(found)
    assert message is not None
    return sorted(set(_inline(as_json(message))))


def _inline(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "localJwks" in value:
            yield value["localJwks"]["inlineString"]
        for each in value.values():
            yield from _inline(each)
    elif isinstance(value, list):
        for each in value:
            yield from _inline(each)


def text(*signers: Signer) -> str:
    return read_jwks(key_set(*signers)).text


async def listed(app: App) -> dict[str, dict[str, Any]]:
    return {each["url"]: each for each in (await app.root.get("/v1/jwks")).json()["items"]}


async def test_a_policy_begins_with_its_keys_and_follows_their_rotation(tmp_path: Path, server: KeyServer) -> None:
    async with running_app(tmp_path, SETTINGS) as app:
        shown: list[list[str]] = []
        publish = app.controller.hub.publish

        def noted(mesh: Mesh, touched: Touched, revision: int) -> None:
            publish(mesh, touched, revision)
            shown.append(keys_at(app) if "one" in app.controller.hub.mesh.hosts else [])

        app.controller.hub.publish = noted  # type: ignore[method-assign] # what proxies were shown, one after the other
        answer = (await app.apply(HOSTS + policy(f"jwksUri: '{server.url()}'"))).json()
        assert [each["code"] for each in answer["warnings"]] == ["unverified-keys"]
        await until(lambda: bool(shown), "it is published")
        assert shown[0] == [text(ONE)]
        server.says("/keys", key_set(TWO))
        await until(lambda: keys_at(app) == [text(TWO)], "the new key is there")
        assert NOBODYS not in {each for found in shown for each in found}
        found = (await listed(app))[server.url()]
        assert (found["state"], found["keys"], found["users"], found["error"]) == ("ok", ["two"], ["default/one"], "")
        assert found["fetched_at"] < found["next_at"]


async def test_the_same_keys_change_nothing_and_are_not_sent_again(tmp_path: Path, server: KeyServer) -> None:
    server.says("/keys", key_set(ONE), ETag='"1"')
    async with running_app(tmp_path, SETTINGS) as app:
        await app.apply(HOSTS + policy(f"jwksUri: '{server.url()}'"))
        await app.published()
        mesh = app.controller.hub.mesh
        asked = len(server.asked)
        await until(lambda: len(server.asked) > asked + 2, "it is asked again")
        assert app.controller.hub.mesh is mesh
        assert server.asked[-1][1]["if-none-match"] == '"1"'


async def test_a_server_that_is_away_is_told_and_refuses_everybody_until_it_is_there(
    tmp_path: Path, server: KeyServer
) -> None:
    server.says("/keys", "root:x:0:0:secret", 503)
    async with running_app(tmp_path, SETTINGS) as app:
        answer = (await app.apply(HOSTS + policy(f"jwksUri: '{server.url()}'"))).json()
        warned = next(each for each in answer["warnings"] if each["code"] == "no-keys-yet")
        assert warned["path"] == "spec.jwtRules[0].jwksUri"
        assert "HTTP status 503. Until there are, every token of this rule is refused" in warned["message"]
        await app.published()
        assert keys_at(app) == [NOBODYS]
        found = (await listed(app))[server.url()]
        assert (found["state"], found["keys"], found["error"]) == ("none", [], "HTTP status 503")
        assert "secret" not in json.dumps([answer, found])
        assert 'hostmesh_controller_jwks{state="none"} 1.0' in (await app.root.get("/metrics")).text
        server.says("/keys", key_set(ONE))
        await until(lambda: keys_at(app) == [text(ONE)], "the keys are there")
        server.says("/keys", "", 500)
        await until(lambda: app.controller.registrar.keys.states()[0][0].state == "stale", "it fails")
        assert keys_at(app) == [text(ONE)], "older keys count"


async def test_an_issuer_is_asked_where_its_keys_are(tmp_path: Path, server: KeyServer) -> None:
    server.says("/.well-known/openid-configuration", json.dumps({"jwks_uri": server.url()}))
    server.says("/realm/.well-known/openid-configuration", json.dumps({"jwks_uri": "http://169.254.169.254/keys"}))
    async with running_app(tmp_path, SETTINGS) as app:
        await app.apply(HOSTS + policy(f"issuer: '{server.url('/')}'"))
        await app.published()
        assert keys_at(app) == [text(ONE)]
        answer = (await app.apply(policy(f"issuer: '{server.url('/realm')}'"))).json()
        assert "169.254.169.254 (link-local)" in str(answer["warnings"])
        await app.published()
        assert keys_at(app) == [NOBODYS]
        assert [each["state"] for each in (await listed(app)).values()] == ["none"], "the other is not wanted any more"
        await until(lambda: not app.controller.store.jwks(), "nor kept")


async def test_a_refused_or_tried_change_leaves_no_keys_behind(tmp_path: Path, server: KeyServer) -> None:
    async with running_app(tmp_path, SETTINGS) as app:
        assert (await app.apply(policy(f"jwksUri: '{server.url()}'"), dry_run=True)).status_code == 200
        assert server.asked == []
        viewer = await app.as_role("viewer")
        body = {"sources": [{"name": "x", "text": policy(f"jwksUri: '{server.url()}'")}]}
        assert (await app.outside.post("/v1/apply", json=body, headers=viewer)).status_code == 403
        assert server.asked == [], "who may not apply makes nobody be asked"
        assert (await app.outside.get("/v1/jwks", headers=viewer)).json() == {"items": []}
        duplicate = HOSTS.replace("name: one", "name: two")
        refused = await app.apply(HOSTS + "\n---\n" + duplicate + policy(f"jwksUri: '{server.url()}'"))
        assert refused.status_code == 422
        assert await listed(app) == {}
        assert app.controller.store.jwks() == []


async def test_by_default_this_machine_is_not_asked(tmp_path: Path, server: KeyServer) -> None:
    async with running_app(tmp_path) as app:
        answer = (await app.apply(HOSTS + policy(f"jwksUri: '{server.url()}'"))).json()
        assert "127.0.0.1 (loopback)" in str(answer["warnings"])
        assert server.asked == []


def test_a_controller_that_starts_anew_while_the_server_is_away_has_the_keys_it_had(tmp_path: Path) -> None:
    with key_server() as server:
        server.says("/keys", key_set(ONE))
        url = server.url()
        with running_process(tmp_path, SETTINGS) as controller:
            applied = controller.cli("apply", "-f", "-", stdin=HOSTS + policy(f"jwksUri: '{url}'"))
            assert applied.returncode == 0, applied.stderr
            assert "no keys from" not in applied.stdout + applied.stderr
    with running_process(tmp_path, SETTINGS) as controller:
        [item] = json.loads(controller.cli("jwks", "list", "-o", "json").stdout)
        assert (item["url"], item["state"], item["keys"]) == (url, "stale", ["one"])
        table = controller.cli("jwks", "list").stdout
        assert "older keys count" in table
        assert "stale" in table
