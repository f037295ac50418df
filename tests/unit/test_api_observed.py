"""Observed calls over the API and in the command's output: what was seen, readiness, warnings and suggestions."""

from pathlib import Path

import pytest

from hostmesh_api.v1.hostmesh_pb2 import HostReport, ObservedCall, ObservedCalls, WorkloadLease
from hostmesh_controller.cli.authz_suggest import _document
from hostmesh_controller.load import load_documents
from running_controller import App, running_app

MESH = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: db}
spec: {addresses: [10.0.0.2]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: web}
spec: {addresses: [10.0.0.1]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: db, namespace: shop}
spec: {address: 10.0.0.2, labels: {app: db}, serviceAccount: db}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {ports: [{port: 8080, name: http}], selector: {app: db}}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


async def seen(app: App, *calls: ObservedCall) -> None:
    assert (await app.apply(MESH)).status_code == 200
    states, registrar = app.controller.registrar.states, app.controller.registrar
    await states.joined("db")
    lease = WorkloadLease(namespace="shop", name="db", captured_ports=[8080])
    report = HostReport(leases=[lease], calls=ObservedCalls(epoch="e", calls=calls))
    await states.reported("db", report, frozenset({("shop", "db")}))
    while registrar.mesh.runtime_of("db").captured != frozenset({8080}):
        await app.published()
    app.controller.observations.reported("db", report, registrar.mesh)


def call(kind: str, caller: str) -> ObservedCall:
    return ObservedCall(chain=f"0.0.0.0_8080|{kind}", caller=caller, methods=["GET"], count=3, last_seen_s=60)


PLAIN, SAFE = call("plaintext", "10.0.0.1"), call("mtls", "spiffe://cluster.local/ns/shop/sa/web")


async def test_calls_are_listed_by_workload_and_those_in_plaintext_with_whom_and_why(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await seen(app, PLAIN, SAFE)
        both = (await app.root.get("/v1/calls")).json()["items"]
        assert [(each["security"], each["caller"]) for each in both] == [
            ("mutual-tls", "spiffe://cluster.local/ns/shop/sa/web"),
            ("plaintext", "10.0.0.1"),
        ]
        (plain,) = (await app.root.get("/v1/calls", params={"plaintext": True})).json()["items"]
        assert (plain["host"], plain["reason"], plain["count"]) == ("web", "not-joined", 3)
        for asked in ({"namespace": "other"}, {"workload": "web"}):
            assert (await app.root.get("/v1/calls", params=asked)).json()["items"] == []


async def test_readiness_names_the_plaintext_caller_and_is_not_given_without_data(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await seen(app, PLAIN)
        found = (await app.root.get("/v1/mtls/readiness")).json()
        (port,) = found["items"]
        assert (found["ready"], port["state"], port["plaintext"][0]["host"]) == (False, "plaintext", "web")
        quiet = (await app.root.get("/v1/mtls/readiness", params={"window_s": 30})).json()["items"][0]
        assert (quiet["state"], quiet["ready"]) == ("unknown", False)
        assert "watched since" in quiet["why"]
        nobody = (await app.root.get("/v1/mtls/readiness", params={"workload": "none"})).json()
        assert nobody["ready"] is False


@pytest.mark.parametrize("dry_run", [True, False])
async def test_apply_of_strict_warns_of_callers_that_were_seen_without_mutual_tls(
    tmp_path: Path, dry_run: bool
) -> None:
    async with running_app(tmp_path) as app:
        await seen(app, PLAIN, SAFE)
        (warning,) = (await app.apply(STRICT, dry_run=dry_run)).json()["warnings"]
        assert (warning["code"], warning["severity"]) == ("plaintext-callers", "warning")
        assert (warning["file"], warning["line"]) == ("test.yaml", 5)
        assert "default" not in warning["message"]
        assert "shop/db port 8080 that were seen without mutual TLS: 10.0.0.1 (host web)" in warning["message"]


async def test_suggestions_are_policies_that_the_mesh_would_read(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await seen(app, PLAIN, SAFE)
        (found,) = (await app.root.get("/v1/authz/suggestions")).json()["items"]
        assert found["workloads"] == ["shop/db"]
        rules = found["policy"]["spec"]["rules"]
        assert rules == [
            {
                "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/web"]}}],
                "to": [{"operation": {"ports": ["8080"], "methods": ["GET"]}}],
            }
        ]
        assert any("10.0.0.1 (host web)" in each for each in found["comments"])


def test_suggestions_as_yaml_are_documents_with_comments_that_stay_comments() -> None:
    policy = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}
    found = {"workloads": ["shop/db"], "policy": policy, "comments": ["one\nkind: Evil", "two"]}
    text = _document(found)
    assert text.startswith("---\n# For shop/db.\n# one kind: Evil\n# two\napiVersion: v1\n")
    objects, problems = load_documents(text, "suggested.yaml")
    assert not problems
    assert [each.key.name for each in objects] == ["x"]
    assert _document({**found, "policy": None}).splitlines()[-1] == "# two"
