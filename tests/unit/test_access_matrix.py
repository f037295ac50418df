"""Every route of the API and every kind of caller: who gets what. A route without a line here fails the test."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from admin_certificates import AdminCa
from hostmesh_controller.api.app import create_app, roles
from hostmesh_controller.api.principals import PEER_CERTIFICATE, LocalSocket
from hostmesh_controller.tokens import digest
from running_controller import App, running_app

NOBODY: Final = ("nobody", "made-up", "expired", "revoked", "stranger's certificate")
"""Who is not known: 401, but where a route is open."""
TOKENS: Final = {
    "viewer": "viewer",
    "viewer of shop": "viewer:shop",
    "viewer of bank": "viewer:bank",
    "editor": "editor",
    "editor of shop": "editor:shop",
    "editor of bank": "editor:bank",
    "editor of routes in shop": "editor:shop:VirtualService",
    "admin": "admin",
}
CERTIFICATE: Final = "certificate of an editor of shop"
KNOWN: Final = (*TOKENS, CERTIFICATE, "root")

ALL: Final = frozenset(KNOWN)
READ_SHOP: Final = ALL - {"viewer of bank", "editor of bank"}
EDITORS: Final = frozenset(
    {"editor", "editor of shop", "editor of bank", "editor of routes in shop", "admin", "root"}
) | {CERTIFICATE}
WRITE_SHOP: Final = EDITORS - {"editor of bank", "editor of routes in shop"}
ADMINS: Final = frozenset({"admin", "root"})

SERVICE: Final[Mapping[str, Any]] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "x", "namespace": "shop"},
    "spec": {"ports": [{"port": 80, "name": "http"}]},
}
_KEY: Final = {"kind": "Service", "namespace": "shop", "name": "x"}


@dataclass(frozen=True)
class Line:
    """Who may; with what the route is called. None: it is open to anybody."""

    may: frozenset[str] | None
    json: Any = None
    params: Mapping[str, str] = field(default_factory=dict)


TABLE: Final[Mapping[tuple[str, str], Line]] = {
    ("GET", "/healthz"): Line(None),
    ("GET", "/readyz"): Line(None),
    ("GET", "/metrics"): Line(None),
    ("GET", "/v1/version"): Line(ALL),
    ("GET", "/v1/audit"): Line(ALL),
    ("GET", "/v1/objects"): Line(ALL),
    ("GET", "/v1/objects/{kind}/{namespace}/{name}"): Line(READ_SHOP),
    ("PUT", "/v1/objects/{kind}/{namespace}/{name}"): Line(WRITE_SHOP, SERVICE),
    ("DELETE", "/v1/objects/{kind}/{namespace}/{name}"): Line(WRITE_SHOP),
    ("POST", "/v1/apply"): Line(WRITE_SHOP, {"documents": [SERVICE]}),
    ("POST", "/v1/delete"): Line(WRITE_SHOP, {"keys": [_KEY], "ignore_missing": True}),
    ("POST", "/v1/validate"): Line(ALL, {"documents": [SERVICE]}),
    ("POST", "/v1/diff"): Line(READ_SHOP, {"documents": [SERVICE]}),
    ("GET", "/v1/hosts"): Line(ALL),
    ("GET", "/v1/leases"): Line(ALL),
    ("GET", "/v1/hosts/{host}"): Line(READ_SHOP),
    ("DELETE", "/v1/hosts/{host}"): Line(ADMINS),
    ("POST", "/v1/hosts/{host}/expel"): Line(ADMINS, {}),
    ("POST", "/v1/hosts/{host}/readmit"): Line(ADMINS),
    ("POST", "/v1/hosts/{host}/confirm"): Line(ADMINS),
    ("GET", "/v1/pending"): Line(ADMINS),
    ("POST", "/v1/pending/{name}/approve"): Line(ADMINS),
    ("POST", "/v1/pending/{name}/deny"): Line(ADMINS),
    ("GET", "/v1/join-string"): Line(ADMINS),
    ("GET", "/v1/rollouts"): Line(ADMINS),
    ("GET", "/v1/rollouts/{name}"): Line(ADMINS),
    ("POST", "/v1/rollouts/{name}/pause"): Line(ADMINS, {}),
    ("POST", "/v1/rollouts/{name}/resume"): Line(ADMINS, {}),
    ("POST", "/v1/rollouts/{name}/abort"): Line(ADMINS, {}),
    ("GET", "/v1/ca"): Line(ADMINS),
    ("POST", "/v1/ca/prepare"): Line(ADMINS),
    ("POST", "/v1/ca/activate"): Line(ADMINS, {}),
    ("POST", "/v1/ca/taint"): Line(ADMINS, {}),
    ("POST", "/v1/ca/revoke"): Line(ADMINS, {}),
    ("POST", "/v1/authz/explain"): Line(READ_SHOP, {"caller": "10.0.0.9", "target": "shop/web", "port": 80}),
    ("GET", "/v1/jwks"): Line(ALL),
    ("GET", "/v1/hosts/{host}/services"): Line(READ_SHOP),
    ("POST", "/v1/hosts/{host}/adopt"): Line(EDITORS - {"editor of bank"}, {"port": 8080}),
    ("GET", "/v1/graph"): Line(ALL),
    ("GET", "/v1/calls"): Line(ALL),
    ("GET", "/v1/mtls/readiness"): Line(ALL),
    ("GET", "/v1/authz/suggestions"): Line(ALL),
    ("POST", "/v1/register"): Line(ADMINS, {"host": "new", "addresses": ["10.0.0.77"]}),
    ("GET", "/v1/proxies"): Line(ALL),
    ("GET", "/v1/proxies/{host}"): Line(READ_SHOP),
    ("GET", "/v1/converged"): Line(ALL, params={"revision": "0"}),
    ("POST", "/v1/explain"): Line(READ_SHOP, {"host": "h1", "target": "http://reviews"}),
    ("GET", "/v1/tokens"): Line(ADMINS),
    ("POST", "/v1/tokens"): Line(ADMINS, {"host": "h1"}),
    ("DELETE", "/v1/tokens/{token_id}"): Line(ADMINS),
    ("GET", "/v1/api-tokens"): Line(ADMINS),
    ("POST", "/v1/api-tokens"): Line(ADMINS, {"name": "new", "role": "viewer"}),
    ("DELETE", "/v1/api-tokens/{token_id}"): Line(ADMINS),
}

WORKLOADS: Final = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1}
spec: {addresses: [10.0.0.1]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: web, namespace: shop}
spec: {address: 10.0.0.1, ports: {http: 80}}
"""


class _Shown:
    """The app as a client with a certificate reaches it."""

    def __init__(self, app: ASGIApp, der: bytes) -> None:
        self._app, self._der = app, der

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, PEER_CERTIFICATE: self._der}, receive, send)


class Callers:
    """A client for each kind of caller."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.headers: dict[str, dict[str, str]] = {"nobody": {}, "made-up": _bearer("made-up")}
        self.ca = AdminCa()

    async def make(self) -> None:
        for name, grant in TOKENS.items():
            made = await self._app.root.post("/v1/api-tokens", json={"name": name.replace(" ", "-"), "grants": [grant]})
            assert made.status_code == 200, made.text
            self.headers[name] = _bearer(made.json()["token"])
        revoked = (await self._app.root.post("/v1/api-tokens", json={"name": "r", "role": "admin"})).json()
        await self._app.root.delete(f"/v1/api-tokens/{revoked['id']}")
        self.headers["revoked"] = _bearer(revoked["token"])
        expired = (await self._app.root.post("/v1/api-tokens", json={"name": "e", "role": "admin", "ttl_s": 10})).json()
        _expire(self._app, expired["token"])
        self.headers["expired"] = _bearer(expired["token"])

    def client(self, who: str) -> httpx.AsyncClient:
        app: ASGIApp = create_app(self._app.controller.parts())
        if who == "root":
            app = LocalSocket(app)
        elif who == CERTIFICATE:
            app = _Shown(app, self.ca.issue("carol", unit="shop-team")[0])
        elif who == "stranger's certificate":
            app = _Shown(app, self.ca.issue("mallory", unit="lunch")[0])
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://h", headers=self.headers.get(who, {}))


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _expire(app: App, token: str) -> None:
    """Make a token one of yesterday: the API makes none that lives for less than 10 s."""
    from sqlalchemy import update

    from hostmesh_controller.store import tables

    store: Any = app.controller.store
    found = store.find_api_token(digest(token))
    with store._write() as connection:
        yesterday = found.created_at - timedelta(days=1)
        connection.execute(
            update(tables.api_tokens).where(tables.api_tokens.c.id == found.id).values(expires_at=yesterday)
        )


def filled(path: str) -> str:
    return path.format(kind="Service", namespace="shop", name="x", token_id="none", host="h1")


def expected(line: Line, who: str) -> int | None:
    """The status that refuses the caller; None where it is not refused."""
    if line.may is None:
        return None
    if who in NOBODY:
        return 401
    return None if who in line.may else 403


def test_every_route_is_in_the_table_and_every_line_is_a_route() -> None:
    assert {(method, path) for method, path, _ in roles()} == set(TABLE)


def test_only_what_probes_and_scrapers_need_is_open() -> None:
    assert {path for _, path, role in roles() if role is None} == {"/healthz", "/readyz", "/metrics"}
    assert {path for (_, path), line in TABLE.items() if line.may is None} == {"/healthz", "/readyz", "/metrics"}


CONFIG: Final = """
[admin]
client_ca = "/unused.pem"
[[admin.client]]
ou = "shop-team"
grants = ["editor:shop"]
"""


@pytest.mark.timeout(120)
async def test_each_caller_gets_of_each_route_what_the_table_says(tmp_path: Path) -> None:
    wrong = []
    async with running_app(tmp_path, CONFIG) as app:
        callers = Callers(app)
        await callers.make()
        for who in (*NOBODY, *KNOWN):
            async with callers.client(who) as client:
                for (method, path), line in TABLE.items():
                    applied = await app.apply(WORKLOADS)
                    assert applied.status_code == 200
                    if applied.json()["objects"][0]["action"] != "unchanged":
                        await app.published()
                    answer = await client.request(method, filled(path), json=line.json, params=line.params)
                    got = answer.status_code if answer.status_code in {401, 403} else None
                    if got != expected(line, who) or answer.status_code == 500:
                        wrong.append((who, method, path, answer.status_code, answer.text[:200]))
    assert wrong == []


async def test_readers_of_a_namespace_see_of_lists_what_is_theirs(tmp_path: Path) -> None:
    async with running_app(tmp_path, CONFIG) as app:
        callers = Callers(app)
        await callers.make()
        await app.apply(
            WORKLOADS + "---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: b, namespace: bank}}\n"
        )
        await app.published()
        seen = {}
        for who in ("viewer", "viewer of shop", "viewer of bank", CERTIFICATE):
            async with callers.client(who) as client:
                objects = (await client.get("/v1/objects")).json()["items"]
                hosts = (await client.get("/v1/hosts")).json()["items"]
                proxies = (await client.get("/v1/proxies")).json()["items"]
                audit = (await client.get("/v1/audit", params={"limit": 1000})).json()["items"]
                assert [each["name"] for each in hosts] == [each["host"] for each in proxies]
                seen[who] = (
                    sorted(f"{each['kind']}/{each['name']}" for each in objects),
                    [each["name"] for each in hosts],
                    {each["namespace"] for each in audit},
                )
        assert seen["viewer"] == (["Host/h1", "ServiceAccount/b", "WorkloadEntry/web"], ["h1"], {"", "shop", "bank"})
        assert seen["viewer of shop"] == seen[CERTIFICATE] == (["WorkloadEntry/web"], ["h1"], {"shop"})
        assert seen["viewer of bank"] == (["ServiceAccount/b"], [], {"bank"})
        for who, workloads in (("viewer of shop", ["web"]), ("viewer of bank", [])):
            async with callers.client(who) as client:
                ports = (await client.get("/v1/mtls/readiness")).json()["items"]
                assert [each["workload"] for each in ports] == workloads
        async with callers.client("viewer of bank") as client:
            other = await client.get("/v1/audit", params={"namespace": "shop"})
            assert other.json()["items"] == []


async def test_a_token_wins_over_a_certificate_and_a_bad_one_is_not_made_good_by_it(tmp_path: Path) -> None:
    async with running_app(tmp_path, CONFIG) as app:
        callers = Callers(app)
        await callers.make()
        async with callers.client(CERTIFICATE) as client:
            assert (await client.get("/v1/api-tokens")).status_code == 403
            assert (await client.get("/v1/api-tokens", headers=callers.headers["admin"])).status_code == 200
            assert (await client.get("/v1/objects", headers=callers.headers["revoked"])).status_code == 401
            assert (await client.get("/v1/objects", headers={"Authorization": "Basic eDp5"})).status_code == 401


async def test_a_token_tells_its_grants_who_made_it_and_when_it_was_used(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        body = {"name": "ci", "role": "editor", "namespaces": ["shop"], "kinds": ["VirtualService", "DestinationRule"]}
        made = (await app.root.post("/v1/api-tokens", json=body)).json()
        assert made["grants"] == ["editor:shop:DestinationRule,VirtualService"]
        before = (await app.root.get("/v1/api-tokens")).json()["items"][0]
        assert (before["created_by"], before["last_used_at"], before["role"]) == ("root", None, "editor")
        assert "token" not in before
        await app.outside.get("/v1/objects", headers=_bearer(made["token"]))
        assert (await app.root.get("/v1/api-tokens")).json()["items"][0]["last_used_at"] is not None


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"role": "admin", "namespaces": ["shop"]}, "an admin is one of the whole mesh"),
        ({"role": "editor", "namespaces": ["istio-system"]}, "the root namespace"),
        ({"role": "editor", "kinds": ["Potato"]}, "unknown kind 'Potato'"),
        ({"role": "viewer", "kinds": ["Service"]}, "kinds restrict what is written"),
        ({"role": "viewer", "grants": ["viewer"]}, "give one of role and grants"),
        ({"grants": ["viewer"], "namespaces": ["x"]}, "namespaces and kinds go with role"),
        ({"grants": []}, "give one of role and grants"),
        ({"grants": ["emperor"]}, "is no grant"),
    ],
)
async def test_grants_that_make_no_sense_are_refused(tmp_path: Path, body: dict[str, Any], part: str) -> None:
    async with running_app(tmp_path) as app:
        answer = await app.root.post("/v1/api-tokens", json={"name": "x", **body})
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert part in error["message"] + " ".join(each["message"] for each in error["problems"])


async def test_an_all_or_nothing_write_is_refused_for_one_foreign_object(tmp_path: Path) -> None:
    foreign = {**SERVICE, "metadata": {"name": "y", "namespace": "bank"}}
    async with running_app(tmp_path) as app:
        made = (await app.root.post("/v1/api-tokens", json={"name": "ci", "grants": ["editor:shop"]})).json()
        answer = await app.outside.post(
            "/v1/apply", json={"documents": [SERVICE, foreign]}, headers=_bearer(made["token"])
        )
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            403,
            "ci has the role editor; no grant for namespace 'bank'",
        )
        assert (await app.root.get("/v1/objects")).json()["items"] == []
