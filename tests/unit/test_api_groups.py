"""Groups and members through the API and the registrar, with a real store: one commit for a group and its members."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from hostmesh_api.v1.hostmesh_pb2 import HostReport, WorkloadLease
from hostmesh_controller.groups import Candidate, NotAdmittedError
from hostmesh_controller.model.objects import ObjectKey
from running_controller import App, run_cli, running_app

GROUP = ObjectKey("WorkloadGroup", "default", "web")
POOL = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {{name: web}}
spec:
  metadata: {{labels: {{app: web, version: {version}}}}}
  template: {{serviceAccount: web, ports: {{http: 8080}}}}
"""


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with running_app(tmp_path) as running:
        assert (await running.apply(POOL.format(version="v1"))).status_code == 200
        for number in (1, 2):
            await admit(running, f"vm-{number}", f"10.0.0.{number}")
        yield running


async def admit(app: App, name: str, address: str) -> None:
    await app.controller.registrar.admit(Candidate(GROUP, name, address), actor="token:t")


async def entry(app: App, host: str) -> dict[str, Any]:
    answer = await app.root.get(f"/v1/objects/WorkloadEntry/default/web-{host}")
    document: dict[str, Any] = answer.json().get("document", {})
    return document


async def test_a_member_is_a_host_with_an_entry_in_one_revision(app: App) -> None:
    before = app.controller.registrar.revision
    await admit(app, "vm-3", "10.0.0.3")
    assert app.controller.registrar.revision == before + 1
    assert (await entry(app, "vm-3"))["spec"]["address"] == "10.0.0.3"
    assert app.controller.registrar.registered("vm-3")
    await admit(app, "vm-3", "10.0.0.3")
    assert app.controller.registrar.revision == before + 1


async def test_a_group_that_is_edited_takes_its_members_along_in_one_revision(app: App) -> None:
    before = app.controller.registrar.revision
    answer = await app.apply(POOL.format(version="v2"))
    assert [(each["name"], each["action"]) for each in answer.json()["objects"]] == [
        ("web", "configured"),
        ("web-vm-1", "configured"),
        ("web-vm-2", "configured"),
    ]
    assert app.controller.registrar.revision == before + 1
    assert (await entry(app, "vm-1"))["metadata"]["labels"]["version"] == "v2"
    await app.published()
    workloads = app.controller.registrar.mesh.workloads_of("vm-1")
    assert [dict(each.labels)["version"] for each in workloads] == ["v2"]


async def test_a_dry_run_tells_of_the_members_and_changes_none(app: App) -> None:
    answer = await app.apply(POOL.format(version="v2"), dry_run=True)
    assert [each["name"] for each in answer.json()["objects"]] == ["web", "web-vm-1", "web-vm-2"]
    assert (await entry(app, "vm-1"))["metadata"]["labels"]["version"] == "v1"


async def test_a_members_entry_is_not_edited_and_not_deleted_by_hand(app: App) -> None:
    document = await entry(app, "vm-1")
    url = "/v1/objects/WorkloadEntry/default/web-vm-1"
    assert (await app.root.put(url, json=document)).json()["action"] == "unchanged"
    document["spec"]["weight"] = 5
    refused = await app.root.put(url, json=document)
    assert refused.status_code == 422
    assert "edit the group, and all its members follow" in refused.text
    refused = await app.root.delete(url)
    assert refused.status_code == 422
    assert "hostmesh host remove vm-1" in refused.text


async def test_a_group_is_deleted_when_nobody_is_left_in_it(app: App) -> None:
    url = "/v1/objects/WorkloadGroup/default/web"
    token = (await app.root.post("/v1/tokens", json={"group": "default/web", "max_joins": 5})).json()
    refused = await app.root.delete(url)
    assert refused.status_code == 422
    assert "it has members: vm-1, vm-2" in refused.text
    removed = await app.root.delete("/v1/hosts/vm-1")
    assert [each["name"] for each in removed.json()["objects"]] == ["vm-1", "web-vm-1"]
    await app.controller.registrar.left("vm-2")
    assert not app.controller.registrar.registered("vm-2")
    assert await entry(app, "vm-2") == {}
    tokens = (await app.root.get("/v1/tokens")).json()["items"]
    assert [each["state"] for each in tokens if each["id"] == token["id"]] == ["open"]
    assert (await app.root.delete(url)).status_code == 200
    tokens = (await app.root.get("/v1/tokens")).json()["items"]
    assert [each["state"] for each in tokens if each["id"] == token["id"]] == ["revoked"]


async def test_a_host_that_is_no_member_stays_registered_when_it_leaves(app: App) -> None:
    body = {"host": "solo", "addresses": ["10.0.0.9"], "workload": "solo"}
    assert (await app.root.post("/v1/register", json=body)).status_code == 200
    await app.controller.registrar.left("solo")
    assert app.controller.registrar.registered("solo")


async def test_an_address_of_another_host_is_not_a_members(app: App) -> None:
    with pytest.raises(NotAdmittedError, match=r"address 10\.0\.0\.1 belongs to Host vm-1"):
        await admit(app, "vm-9", "10.0.0.1")
    assert not app.controller.registrar.registered("vm-9")


async def test_members_are_members_after_a_restart_of_the_controller(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(POOL.format(version="v1"))
        await admit(app, "vm-1", "10.0.0.1")
    async with running_app(tmp_path) as app:
        await app.apply(POOL.format(version="v2"))
        assert (await entry(app, "vm-1"))["metadata"]["labels"]["version"] == "v2"


async def test_a_token_of_a_group_says_what_it_is_for(app: App) -> None:
    wish = {"group": "default/web", "max_joins": 2, "allowed_addresses": ["10.0.0.0/8"], "ttl_s": 86_400 * 30}
    made = (await app.root.post("/v1/tokens", json=wish)).json()
    assert (made["host"], made["group"], made["joins"], made["max_joins"]) == (None, "default/web", 0, 2)
    assert made["allowed_addresses"] == ["10.0.0.0/8"]
    assert made["join_string"].startswith("hm1.")


@pytest.mark.parametrize(
    ("wish", "status", "said"),
    [
        ({"group": "default/none"}, 404, "there is no WorkloadGroup 'default/none'; name one as NAMESPACE/NAME"),
        ({"group": "web"}, 404, "there is no WorkloadGroup 'web'"),
        ({"group": "default/web", "host": "vm-1"}, 422, "name one of host and group"),
        ({}, 422, "name one of host and group"),
        ({"host": "vm-1", "max_joins": 2}, 422, "is for a group"),
        ({"host": "vm-1", "ttl_s": 86_400 * 2}, 422, "lives for at most"),
        ({"group": "default/web", "allowed_addresses": ["x"]}, 422, "does not appear to be an IPv4 or IPv6 network"),
    ],
)
async def test_a_wish_for_a_token_that_cannot_be_is_refused(
    app: App, wish: dict[str, Any], status: int, said: str
) -> None:
    answer = await app.root.post("/v1/tokens", json=wish)
    assert answer.status_code == status
    assert said in answer.text


async def test_a_member_is_shown_with_its_group_and_its_health(app: App) -> None:
    report = HostReport(
        leases=[WorkloadLease(namespace="default", name="web-vm-1", health=WorkloadLease.UNHEALTHY, health_reason="x")]
    )
    await app.published()
    await app.controller.registrar.states.reported("vm-1", report, frozenset())
    shown = {each["name"]: each for each in (await app.root.get("/v1/hosts")).json()["items"]}
    assert (shown["vm-1"]["group"], shown["vm-1"]["unhealthy"]) == ("default/web", {"default/web-vm-1": "x"})
    assert shown["vm-2"]["unhealthy"] == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name the HOST that may join, or the --group"),
        (("vm-1", "--group", "default/web"), "name the HOST that may join, or the --group"),
        (("vm-1", "--max-joins", "2"), "is for a --group"),
    ],
)
def test_a_token_is_asked_for_a_host_or_for_a_group(words: tuple[str, ...], said: str) -> None:
    done = run_cli("token", "create", *words)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


async def test_a_host_cannot_choose_a_name_that_makes_it_another_member_s_entry(app: App) -> None:
    answer = await app.apply(POOL.format(version="v1").replace("{name: web}", "{name: web-a}"))
    assert answer.status_code == 200
    other = ObjectKey("WorkloadGroup", "default", "web-a")
    await app.controller.registrar.admit(Candidate(other, "x", "10.0.0.7"), actor="token:t")
    before = await entry(app, "a-x")
    with pytest.raises(NotAdmittedError, match="WorkloadEntry default/web-a-x is there and not of"):
        await admit(app, "a-x", "10.0.0.66")
    assert await entry(app, "a-x") == before
    assert before["spec"]["address"] == "10.0.0.7"
    assert not app.controller.registrar.registered("a-x")


async def test_what_will_be_refused_is_known_before_the_token_is_used(app: App) -> None:
    registrar = app.controller.registrar
    assert registrar.membership_problem(Candidate(GROUP, "vm-9", "10.0.0.9")) is None
    assert registrar.membership_problem(Candidate(GROUP, "vm-1", "10.0.0.1")) is None
    taken = registrar.membership_problem(Candidate(GROUP, "vm-9", "10.0.0.1"))
    with pytest.raises(NotAdmittedError) as refused:
        await admit(app, "vm-9", "10.0.0.1")
    assert taken == str(refused.value)
    assert "vm-1" in taken
