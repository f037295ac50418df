"""Found programs and the graph over the API: what is shown to whom, and what adopting makes."""

from pathlib import Path
from typing import Any

import pytest

from hostmesh_api.v1.hostmesh_pb2 import Flow, HostReport, ListeningSocket, ObservedFlows
from hostmesh_controller.reports import bounded
from running_controller import App, running_app

MESH = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: db}
spec: {addresses: [10.0.0.2, fd00::2], workloadNamespaces: [shop]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: web}
spec: {addresses: [10.0.0.1]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: cache, namespace: bank}
spec: {address: 10.0.0.2, ports: {tcp: 6379}}
---
apiVersion: v1
kind: Service
metadata: {name: cache, namespace: bank}
spec: {ports: [{port: 6379, name: tcp}], selector: {app: cache}}
"""


def socket_at(address: str, port: int, program: str, unit: str = "") -> ListeningSocket:
    return ListeningSocket(address=address, port=port, program=program, unit=unit, uid=7, protocol="tcp")


LISTENING = [
    socket_at("0.0.0.0", 22, "sshd"),
    socket_at("::", 8080, "java", "tomcat@9.service"),
    socket_at("127.0.0.1", 5432, "postgres"),
    socket_at("10.0.0.2", 6379, "redis-server", "redis.service"),
    socket_at("0.0.0.0", 7001, "pair", "pair.service"),
    socket_at("0.0.0.0", 7002, "pair", "pair.service"),
    socket_at("0.0.0.0", 15006, "envoy"),
    socket_at("192.0.2.1", 9000, "elsewhere"),
    socket_at("\x1b[2J", 9001, "evil\x1b[2J"),
]


async def reported(app: App) -> None:
    assert (await app.apply(MESH)).status_code == 200
    await app.published()
    flows = [Flow(program="app", peer="10.0.0.2", port=8080, count=2), Flow(program="x", peer="192.0.2.7", port=1)]
    for host, report in (
        ("db", HostReport(listening=LISTENING)),
        ("web", HostReport(flows=ObservedFlows(epoch="e", flows=flows))),
    ):
        await app.controller.registrar.states.reported(host, bounded(report), frozenset())
        app.controller.observations.reported(host, report, app.controller.registrar.mesh)


async def adopt(app: App, headers: dict[str, str] | None = None, **body: Any) -> tuple[int, Any]:
    client = app.root if headers is None else app.outside
    answer = await client.post("/v1/hosts/db/adopt", json=body, headers=headers or {})
    return answer.status_code, answer.json()


async def test_found_programs_are_told_with_what_they_would_be_and_why_not(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await reported(app)
        items = (await app.root.get("/v1/hosts/db/services")).json()["items"]
        found = {each["port"]: each for each in items}
        assert found[22]["refused"] == "SSH is never captured"
        assert found[5432]["refused"] == "listens on loopback alone: others cannot reach it"
        assert found[15006]["refused"] == "a port of the mesh itself"
        assert (found[8080]["protocol"], found[8080]["would_be"]) == ("http", "bank/tomcat")
        assert (found[9001]["addresses"], found[9001]["program"]) == ([], "evil\ufffd[2J")


async def test_adopting_makes_an_entry_and_a_service_that_the_mesh_then_has(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await reported(app)
        code, tried = await adopt(app, port=8080, namespace="shop", dry_run=True)
        assert (code, [each["kind"] for each in tried["documents"]]) == (200, ["Service", "WorkloadEntry"])
        assert (await app.root.get("/v1/objects/Service/shop/tomcat")).status_code == 404
        code, made = await adopt(app, unit="tomcat@9", namespace="shop", protocol="grpc", service_port=80)
        assert (code, [each["action"] for each in made["objects"]]) == (200, ["created", "created"])
        await app.published()
        entry = (await app.root.get("/v1/objects/WorkloadEntry/shop/tomcat-db")).json()["document"]["spec"]
        assert (entry["address"], entry["ports"], entry["serviceAccount"]) == ("10.0.0.2", {"grpc": 8080}, "tomcat")
        found = (await app.root.get("/v1/hosts/db/services")).json()["items"]
        (mine,) = [each for each in found if each["port"] == 8080]
        assert (mine["adopted"], mine["would_be"]) == (["shop/tomcat-db"], None)
        assert (await adopt(app, port=8080, namespace="shop"))[0] == 409
        audit = (await app.root.get("/v1/audit", params={"kind": "WorkloadEntry"})).json()["items"]
        assert (audit[0]["name"], audit[0]["actor"]) == ("tomcat-db", "root")


async def test_a_service_that_is_there_gets_the_program_as_one_more_workload(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await reported(app)
        code, made = await adopt(app, port=8080, service="cache", namespace="bank")
        assert (code, [each["kind"] for each in made["documents"]]) == (200, ["WorkloadEntry"])
        spec = made["documents"][0]["spec"]
        assert (spec["labels"], spec["ports"]) == ({"app": "cache"}, {"tcp": 8080})


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"port": 22}, "SSH is never captured"),
        ({"port": 5432}, "loopback alone"),
        ({"port": 15006}, "a port of the mesh itself"),
        ({"port": 7}, "nothing on port 7 was found"),
        ({"unit": "nginx"}, "nothing of nginx was found"),
        ({"port": 9000}, "no address in Host.spec.addresses"),
        ({"port": 9001}, "no address in Host.spec.addresses"),
        ({}, "several programs listen"),
    ],
)
async def test_what_cannot_be_adopted_is_refused_with_the_cure(tmp_path: Path, body: Any, part: str) -> None:
    async with running_app(tmp_path) as app:
        await reported(app)
        code, answer = await adopt(app, **body)
        assert (code, part in answer["error"]["message"]) == (409, True), answer


async def test_a_program_of_several_ports_is_adopted_once(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await reported(app)
        assert (await adopt(app, unit="pair", namespace="shop"))[0] == 200
        await app.published()
        services: list[dict[str, Any]] = [{}, {"service": "other"}]
        for service in services:
            code, answer = await adopt(app, unit="pair", namespace="shop", **service)
            assert code == 409
            assert "port 7001 of host db is that of shop/" in str(answer)
            assert "port 7002 of host db is that of shop/" in str(answer)


async def test_adopting_needs_the_rights_that_applying_needs(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await reported(app)

        async def headers(grant: str) -> dict[str, str]:
            name = grant.replace(":", "-")
            made = await app.root.post("/v1/api-tokens", json={"name": name, "grants": [grant]})
            return {"Authorization": f"Bearer {made.json()['token']}"}

        assert (await adopt(app, await headers("editor:shop:VirtualService"), port=8080, namespace="shop"))[0] == 403
        # It sees the host by its own workload, and places nothing there without the administrator's word.
        assert (await adopt(app, await headers("editor:bank"), port=8080, namespace="bank"))[0] == 403
        assert (await adopt(app, await headers("editor:shop"), port=8080, namespace="bank"))[0] == 403
        assert (await adopt(app, await headers("editor:other"), port=8080, namespace="other"))[0] == 403
        assert (await adopt(app, await headers("viewer"), port=8080, namespace="shop"))[0] == 403
        assert (await adopt(app, await headers("editor:shop"), port=8080, namespace="shop"))[0] == 200


async def test_the_graph_tells_of_what_has_an_end_in_a_namespace_of_the_caller(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await reported(app)
        await adopt(app, port=8080, namespace="shop")
        await app.published()
        everything = (await app.root.get("/v1/graph")).json()
        assert [(each["source"], each["target"]) for each in everything["edges"]] == [
            ("program/web/app", "service/shop/tomcat"),
            ("program/web/x", "external/192.0.2.7"),
        ]
        for params, count in (
            ({"namespace": "shop"}, 1),
            ({"host": "db"}, 1),
            ({"host": "web"}, 2),
            ({"host": "z"}, 0),
        ):
            assert len((await app.root.get("/v1/graph", params=params)).json()["edges"]) == count
        for namespace, count in (("shop", 1), ("bank", 0)):
            made = await app.root.post("/v1/api-tokens", json={"name": namespace, "grants": [f"viewer:{namespace}"]})
            headers = {"Authorization": f"Bearer {made.json()['token']}"}
            assert len((await app.outside.get("/v1/graph", headers=headers)).json()["edges"]) == count
