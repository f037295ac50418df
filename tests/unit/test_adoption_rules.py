"""A WorkloadGroup adopts what its members listen on: by a rule of the group's editor, and for themselves alone."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from full_store import refusing
from hostmesh_api.v1.hostmesh_pb2 import HostReport, ListeningSocket
from hostmesh_controller.adoption_rules import Listens, Rule, adopted_ports
from hostmesh_controller.groups import Candidate
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.registrar import LISTENING_INTERVAL
from hostmesh_controller.store import StoreError
from running_controller import App, running_app

GROUP = ObjectKey("WorkloadGroup", "default", "web")
POOL = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: web, annotations: {{hostmesh.io/adopt: "{rule}"}}}}
spec:
  metadata: {{labels: {{app: web}}}}
  template: {{ports: {{http: 8080, admin: 9}}}}
"""
RULE = "http=unit:tomcat.service"


def listening(port: int, unit: str = "tomcat.service", address: str = "0.0.0.0") -> HostReport:
    return HostReport(listening=[ListeningSocket(address=address, port=port, program="java", unit=unit)])


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with running_app(tmp_path) as running:
        assert (await running.apply(POOL.format(rule=RULE))).status_code == 200
        for number in (1, 2):
            candidate = Candidate(GROUP, f"vm-{number}", f"10.0.0.{number}")
            await running.controller.registrar.admit(candidate, actor="token:t")
        yield running


async def ports(app: App, host: str) -> dict[str, int]:
    answer = await app.root.get(f"/v1/objects/WorkloadEntry/default/web-{host}")
    found: dict[str, int] = answer.json()["document"]["spec"]["ports"]
    return found


async def test_a_members_port_is_where_its_program_was_found_and_others_keep_the_templates(app: App) -> None:
    registrar = app.controller.registrar
    await registrar.listens("vm-1", listening(9090))
    assert (await ports(app, "vm-1"), await ports(app, "vm-2")) == (
        {"http": 9090, "admin": 9},
        {"http": 8080, "admin": 9},
    )
    before = registrar.revision
    await registrar.listens("vm-1", listening(9090))
    await registrar.listens("stranger", listening(9090))
    assert registrar.revision == before
    (newest,) = (await app.root.get("/v1/audit", params={"kind": "WorkloadEntry", "limit": 1})).json()["items"]
    assert (newest["actor"], newest["name"]) == ("host:vm-1", "web-vm-1")


async def test_what_a_host_says_makes_no_writes_without_end(app: App) -> None:
    registrar = app.controller.registrar
    await registrar.listens("vm-1", listening(9090))
    before = registrar.revision
    for port in range(9100, 9120):
        await registrar.listens("vm-1", listening(port))
    assert registrar.revision == before
    registrar._listened_at["vm-1"] -= LISTENING_INTERVAL
    await registrar.listens("vm-1", listening(9200))
    assert (await ports(app, "vm-1"))["http"] == 9200


async def test_a_port_that_could_not_be_written_follows_with_the_next_report(app: App, tmp_path: Path) -> None:
    registrar = app.controller.registrar
    with refusing(tmp_path / "store.sqlite", "INSERT ON audit"):
        for _ in range(2):
            with pytest.raises(StoreError, match="disk is full"):
                await registrar.listens("vm-1", listening(9090))
    await registrar.listens("vm-1", listening(9090))
    assert (await ports(app, "vm-1"))["http"] == 9090


async def test_a_rule_that_comes_or_goes_takes_the_members_along(app: App) -> None:
    await app.controller.registrar.listens("vm-1", listening(9090))
    assert (await app.apply(POOL.format(rule="http=program:nothing"))).status_code == 200
    assert (await ports(app, "vm-1"))["http"] == 8080
    assert (await app.apply(POOL.format(rule="admin=program:java"))).status_code == 200
    assert await ports(app, "vm-1") == {"http": 8080, "admin": 9090}


async def test_a_new_controller_knows_what_was_found(app: App, tmp_path: Path) -> None:
    registrar, report = app.controller.registrar, listening(9090)
    await registrar.states.reported("vm-1", report, frozenset())
    await registrar.listens("vm-1", report)
    async with running_app(tmp_path) as again:
        assert (await again.apply(POOL.format(rule=f"{RULE}, admin=program:java"))).status_code == 200
        assert await ports(again, "vm-1") == {"http": 9090, "admin": 9090}


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ("nonsense", "is no rule: write PORT=unit:NAME"),
        ("http=uid:0", "is no rule"),
        ("web=unit:a", "is no port of spec.template.ports (there: admin, http)"),
        ("http=unit:a,http=unit:b", "a port has one rule"),
    ],
)
async def test_a_rule_that_makes_no_sense_is_refused_where_it_is_written(app: App, rule: str, part: str) -> None:
    answer = await app.apply(POOL.format(rule=rule))
    assert answer.status_code == 422
    (problem,) = answer.json()["error"]["problems"]
    assert (part in problem["message"], problem["line"]) == (True, 4), problem


@pytest.mark.parametrize(
    ("found", "adopted"),
    [
        ([Listens(90, "java", "a.service")], {"http": 90}),
        ([Listens(90, "java", "a.service"), Listens(91, "java", "a.service")], {}),
        ([Listens(22, "java", "a.service"), Listens(90, "java", "a.service")], {"http": 90}),
        ([Listens(15006, "java", "a.service")], {}),
        ([Listens(90, "java", "b.service")], {}),
        ([], {}),
    ],
)
def test_only_one_port_that_can_be_captured_is_without_doubt(found: list[Listens], adopted: dict[str, Any]) -> None:
    assert adopted_ports([Rule("http", "unit", "a.service")], found) == adopted


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.0.0.53"])
async def test_what_listens_on_loopback_is_not_adopted(app: App, address: str) -> None:
    await app.controller.registrar.listens("vm-1", listening(9090, address=address))
    assert (await ports(app, "vm-1"))["http"] == 8080
