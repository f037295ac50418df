"""Hosts that wait for an operator, by the API and by the command."""

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

import pki
from enrolling import TIMEOUT_S
from hostmesh_agent import keys
from hostmesh_agent.enrol import PendingError, join
from hostmesh_agent.evidence import KeyAlone, SshHostKey
from hostmesh_agent.state import State
from hostmesh_api.joinstring import JoinString
from hostmesh_api.v1.hostmesh_pb2 import HostFacts, JoinRequest
from hostmesh_api.v1.hostmesh_pb2_grpc import EnrolmentStub
from hostmesh_controller.attestors import MAX_FILE_BYTES, attestors
from hostmesh_controller.config import load_config, parse_config
from hostmesh_controller.config_reader import ConfigError
from hostmesh_controller.store import InstanceRecord, PendingRecord
from machines import ssh_fingerprint, ssh_key
from running_controller import (
    START_S,
    App,
    Process,
    free_ports,
    running_app,
    running_process,
    start_controller,
    write_config,
)


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    async with running_app(tmp_path) as running:
        yield running


def waits(app: App, number: int, host: str = "web-1", address: str = "10.0.0.9") -> PendingRecord:
    now = pki.now()
    entry = PendingRecord(f"id{number}", host, "key_alone", f"{number:064x}", address, "nothing", now, now)
    app.controller.store.put_pending(entry)
    return entry


async def test_a_host_that_is_approved_is_registered_at_its_address_if_it_was_not(app: App) -> None:
    waits(app, 1)
    (listed,) = (await app.root.get("/v1/pending")).json()["items"]
    assert (listed["host"], listed["address"], listed["state"]) == ("web-1", "10.0.0.9", "pending")
    assert listed["key_fingerprint"].startswith("SHA256:AAAA")
    answer = (await app.root.post("/v1/pending/web-1/approve")).json()
    assert answer["state"] == "approved"
    assert answer["decided_by"] == "root"
    assert [(each["kind"], each["action"]) for each in answer["objects"]] == [("Host", "created")]
    document = (await app.root.get("/v1/objects/Host/-/web-1")).json()["document"]
    assert document["spec"]["addresses"] == ["10.0.0.9"]
    assert (await app.root.post("/v1/pending/web-1/approve")).status_code == 404
    actions = [(each["action"], each["object"]) for each in (await app.root.get("/v1/audit")).json()["items"]]
    assert actions[:2] == [("host.approve", "host/web-1"), ("create", "host/web-1")]


async def test_who_waits_under_one_name_with_several_keys_is_approved_by_id(app: App) -> None:
    waits(app, 1)
    waits(app, 2)
    refused = await app.root.post("/v1/pending/web-1/approve")
    assert refused.status_code == 409
    assert "id1 (SHA256:" in refused.text
    assert (await app.root.post("/v1/pending/id2/deny")).json()["state"] == "denied"
    assert (await app.root.post("/v1/pending/web-1/approve")).json()["id"] == "id1"


async def test_an_address_that_is_anothers_is_not_approved(app: App) -> None:
    await app.root.post("/v1/register", json={"host": "db-1", "addresses": ["10.0.0.9"]})
    waits(app, 1)
    refused = await app.root.post("/v1/pending/web-1/approve")
    assert refused.status_code == 422
    assert [each["state"] for each in (await app.root.get("/v1/pending")).json()["items"]] == ["pending"]


async def test_what_is_too_old_is_not_shown_and_not_approved(app: App) -> None:
    entry = waits(app, 1)
    app.controller.store.put_pending(replace(entry, seen_at=pki.now() - timedelta(days=2)))
    assert (await app.root.get("/v1/pending")).json()["items"] == []
    assert (await app.root.post("/v1/pending/web-1/approve")).status_code == 404


async def test_a_host_that_is_removed_lets_its_machine_join_anew(app: App) -> None:
    store = app.controller.store
    await app.root.post("/v1/register", json={"host": "web-1", "addresses": ["10.0.0.9"]})
    first = InstanceRecord("aws:1/i-1", "web-1", "ab", pki.now())
    assert store.claim_instance(first) == first
    second = replace(first, host="web-2", key_sha256="cd")
    assert store.claim_instance(second) == first
    await app.root.delete("/v1/hosts/web-1")
    assert store.claim_instance(second) == second


async def test_the_token_of_a_host_can_be_bound_to_addresses_and_a_host_to_ssh_keys(app: App) -> None:
    body = {"host": "web-1", "addresses": ["10.0.0.9"], "ssh_host_keys": ["SHA256:" + "A" * 43]}
    assert (await app.root.post("/v1/register", json=body)).status_code == 200
    document = (await app.root.get("/v1/objects/Host/-/web-1")).json()["document"]
    assert document["spec"]["sshHostKeys"] == ["SHA256:" + "A" * 43]
    refused = await app.root.post("/v1/register", json={**body, "ssh_host_keys": ["MD5:00"]})
    assert "ssh-keygen -lf" in refused.text
    wish = {"host": "web-1", "allowed_addresses": ["10.0.0.0/8"]}
    assert (await app.root.post("/v1/tokens", json=wish)).json()["allowed_addresses"] == ["10.0.0.0/8"]
    wrong = await app.root.post("/v1/tokens", json={**wish, "allowed_addresses": ["10.0.0.1/8"]})
    assert (wrong.status_code, "host bits" in wrong.text) == (422, True)


# The whole, as processes


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    extra = '[attest.key_alone]\napproval = "manual"\n'
    with running_process(tmp_path_factory.mktemp("controller"), extra) as process:
        yield process


def string_of(controller: Process) -> JoinString:
    return JoinString.decode(controller.cli("join-string").stdout)


async def test_a_stranger_waits_is_approved_by_its_fingerprint_and_joins(controller: Process, tmp_path: Path) -> None:
    state, where = State(tmp_path / "agent"), string_of(controller)
    assert where.token == ""
    facts = HostFacts(hostname="new-1", os="Debian")
    with pytest.raises(PendingError) as raised:
        await join(where, state, facts, pki.now, evidence=KeyAlone(), pause_s=0.01)
    shown = controller.cli("host", "pending").stdout
    assert "new-1" in shown
    (listed,) = json.loads(controller.cli("host", "pending", "-o", "json").stdout)
    assert listed["key_fingerprint"] in str(raised.value)
    assert listed["evidence"] == "nothing but its key; says it is new-1, Debian"
    approved = controller.cli("host", "approve", "new-1")
    assert (approved.returncode, approved.stdout.split(",")[0]) == (0, "host new-1 approved")
    record = await join(where, state, facts, pki.now, evidence=KeyAlone(), pause_s=0.01)
    assert record.host == "new-1"
    assert controller.cli("host", "deny", "new-1").returncode != 0


async def test_a_host_joins_by_its_registered_ssh_key_without_any_token(controller: Process, tmp_path: Path) -> None:
    key = ssh_key(tmp_path / "key")
    words = ("register", "ssh-1", "--address", "10.0.0.77", "--ssh-host-key", ssh_fingerprint(key))
    assert controller.cli(*words).returncode == 0
    facts = HostFacts(hostname="ssh-1")
    evidence = SshHostKey(key)
    record = await join(string_of(controller), State(tmp_path / "agent"), facts, pki.now, evidence=evidence)
    assert record.host == "ssh-1"


async def test_what_a_stranger_sends_is_bounded(controller: Process) -> None:
    where = string_of(controller)
    root = keys.root_pem(where.root_der)
    async with grpc.aio.secure_channel(where.endpoints[0], grpc.ssl_channel_credentials(root)) as channel:
        call = EnrolmentStub(channel).Join(JoinRequest(aws=b"x" * 70_000), timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[attest.x509]\n", "unknown setting 'x509'; did you mean 'x509pop'?"),
        ("[attest.x509pop]\n", "attest.x509pop.ca_files: name what says whom to trust"),
        ('[attest.ssh]\nca_files = ["ca.pub"]\n', "must be absolute paths, not 'ca.pub'"),
        ('[attest.x509pop]\nca_files = ["/x"]\n', "attest.x509pop.allow_names: name the hosts for which"),
        ('[attest.x509pop]\nname = "{ip}"\n', "'{ip}' is no template of a name with one or more of {dns}"),
        ('[attest.x509pop]\napproval = "none"\n', "'none' is not one of auto, manual"),
        ('[attest.aws]\nca_files = ["/x"]\n', "attest.aws.accounts: name whose instances may join"),
        ('[attest.key_alone]\napproval = "auto"\n', "'auto' is not one of manual"),
        ('[attest.gcp]\nallow_addresses = ["10.0.0.1/8"]\n', "'10.0.0.1/8' is not a block of addresses"),
        ('[attest.gcp]\ngroup = "pool"\n', "'pool' names no WorkloadGroup; write NAMESPACE/NAME"),
        ('[attest]\nreattest_within = "1 month"\n', "'1 month' is not a time such as '30d'"),
        ('[attest]\nreattest_within = "999d"\n', "must be at most 366 days"),
    ],
)
def test_a_mistake_in_the_configuration_of_attestors_is_named(table: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(table, "controller.toml", ("10.0.0.1",))
    assert said in str(raised.value)


def test_a_file_that_cannot_be_used_keeps_the_controller_from_starting(tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "long").write_text("\n" * (MAX_FILE_BYTES + 1))
    for kind, name, said in (
        ("x509pop", "none", "none: cannot be read"),
        ("x509pop", "junk", "junk: no certificates in PEM"),
        ("x509pop", "long", "long: is larger than 1048576 bytes"),
        ("ssh", "junk", "junk: line 1: no SSH public key"),
    ):
        table = f'[attest.{kind}]\nca_files = ["{tmp_path / name}"]\nallow_names = ["*"]\n'
        path = write_config(tmp_path, free_ports(), extra=table)
        trust = load_config(path, tuple).attest.trust
        with pytest.raises(ConfigError, match=said):
            attestors(trust, lambda _: ())
    process = start_controller(path, tmp_path / "log")
    assert process.wait(START_S) == 1
    assert "junk: line 1: no SSH public key" in (tmp_path / "log").read_text()
