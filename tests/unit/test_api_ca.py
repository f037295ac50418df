"""The steps of a change of roots through the API: who is in the way is named, and what was done is written down."""

import asyncio
import json
import signal
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from envoy.service.discovery.v3.discovery_pb2 import Resource
from structlog.testing import capture_logs

from hostmesh_api import wire
from hostmesh_api.v1.hostmesh_pb2 import HeldCertificate, HostConfig, HostReport, TrustState
from hostmesh_controller import xds
from hostmesh_controller.authority import Authority
from hostmesh_controller.cli import authority
from hostmesh_controller.model.objects import ObjectKey
from hostmesh_controller.rotation import RootRotation
from hostmesh_controller.store import CertificateRecord, StoreError
from running_controller import App, Process, running_app, running_process
from unit.test_authority_cacerts import made, plain

HOSTS = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: web}
spec: {addresses: [10.0.0.1]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: away}
spec: {addresses: [10.0.0.2]}
---
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: never-joined}
spec: {addresses: [10.0.0.3]}
"""


async def with_hosts(app: App) -> None:
    """Have `web` connected and `away` not; both have joined."""
    await app.apply(HOSTS)
    for host in ("web", "away"):
        await app.controller.registrar.states.joined(host)
        await report(app, host, *root_ids(await show(app)).values())
    app.controller.hub.connect("web", "ipv4:10.0.0.1:1", datetime.now(UTC), lambda: None)


async def report(app: App, host: str, *trusted: str, held: tuple[str, ...] = ()) -> None:
    """Report as an agent that trusts roots and has a certificate of each of `held`."""
    end = int((datetime.now(UTC) + timedelta(days=2)).timestamp())
    certificates = [HeldCertificate(spiffe_id=f"spiffe://x/host/{host}", root=each, not_after=end) for each in held]
    whole = HostReport(trust=TrustState(roots=trusted, certificates=certificates))
    await app.controller.registrar.states.reported(host, whole, frozenset())


async def show(app: App) -> dict[str, Any]:
    answer = await app.root.get("/v1/ca")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def root_ids(shown: dict[str, Any]) -> dict[str, str]:
    """Return the fingerprints by state."""
    return {each["state"]: each["fingerprint"] for each in shown["roots"]}


async def step(app: App, name: str, **body: Any) -> httpx.Response:
    return await app.root.post(f"/v1/ca/{name}", json=body)


def refusal(answer: httpx.Response) -> str:
    assert answer.status_code == 409, answer.text
    assert answer.json()["error"]["code"] == "not_now"
    return str(answer.json()["error"]["message"])


async def told(app: App, host: str) -> HostConfig:
    """Return what the host's agent is sent."""
    await app.published()
    found = xds.resource(app.controller.hub.mesh, host, wire.HOST_CONFIG_TYPE, wire.HOST_CONFIG_NAME)
    assert found is not None
    return HostConfig.FromString(Resource.FromString(found.body).resource.value)


async def test_activation_waits_for_those_who_are_connected_and_names_those_who_are_away(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await with_hosts(app)
        assert (await step(app, "prepare")).status_code == 200
        both = root_ids(await show(app))
        assert "web has not acknowledged root" in refusal(await step(app, "activate"))
        await report(app, "web", *both.values())
        taken = (await step(app, "activate")).json()
        assert taken["offline"] == ["away"]
        assert root_ids(await show(app)) == {"old": both["active"], "active": both["prepared"]}


async def test_activation_can_be_forced(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await with_hosts(app)
        await step(app, "prepare")
        assert (await step(app, "activate", force=True)).status_code == 200


async def test_a_root_in_use_is_not_revoked_and_who_uses_it_is_named(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await with_hosts(app)
        await step(app, "prepare")
        both = root_ids(await show(app))
        old, new = both["active"], both["prepared"]
        await report(app, "web", old, new, held=(old, old))
        await report(app, "away", old, held=(old,))
        await step(app, "activate")
        tainted = (await step(app, "taint", within_s=1)).json()
        assert tainted["holders"] == {"web": 2, "away": 1}
        message = refusal(await step(app, "revoke"))
        assert "web (2, until" in message
        assert "away (1, until" in message
        assert "offline" in message
        await report(app, "web", old, new, held=(new,))
        assert "web" not in refusal(await step(app, "revoke"))
        forced = await step(app, "revoke", force=True)
        assert forced.json()["offline"] == ["away"]
        assert set(root_ids(await show(app))) == {"active", "revoked"}


async def test_hosts_are_sent_the_bundle_and_what_is_tainted(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await app.apply(HOSTS)
        await app.controller.registrar.states.joined("web")
        for name, body, expected in (
            ("prepare", {}, (2, 0, 0)),
            ("activate", {"force": True}, (2, 0, 0)),
            ("taint", {"within_s": 2}, (2, 1, 2000)),
            ("revoke", {}, (1, 0, 0)),
        ):
            assert (await step(app, name, **body)).status_code == 200
            await told_soon(app, "web", expected)


async def told_soon(app: App, host: str, expected: tuple[int, int, int]) -> None:
    """Wait until a host is told so many roots, so many tainted ones, and the time to renew within."""
    async with asyncio.timeout(10):
        while True:
            found = await told(app, host)
            roots = found.bundle_pem.count(b"BEGIN"), len(found.tainted_roots), found.renew_within_ms
            if roots == expected and found.bundle_pem == app.controller.authority.bundle_pem:
                return
            await asyncio.sleep(0.01)


async def test_steps_are_in_the_audit_log_with_who_took_them(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        admin = await app.as_role("admin")
        made = (await app.outside.post("/v1/ca/prepare", json={}, headers=admin)).json()
        await app.outside.post("/v1/ca/activate", json={}, headers=admin)
        first, second = (await app.root.get("/v1/audit", params={"limit": 2})).json()["items"]
        assert (first["action"], second["action"]) == ("ca.activate", "ca.prepare")
        assert {first["actor"], second["actor"]} == {"a-admin"}
        assert first["object"] == second["object"] == f"root/{made['id']}"
        assert first["after"]["state"] == "active"


async def test_a_refused_step_is_not_in_the_audit_log(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        for name in ("activate", "taint", "revoke"):
            refusal(await step(app, name))
        items = (await app.root.get("/v1/audit")).json()["items"]
        assert not [each for each in items if each["action"].startswith("ca.")]


class FullStore:
    """A store whose disk is full."""

    def certificates(self, host: str) -> list[CertificateRecord]:
        return []

    def add_event(self, action: str, key: ObjectKey, **more: Any) -> None:
        raise StoreError("the disk is full")


async def test_a_step_that_the_store_cannot_write_down_is_done_and_logged(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        parts = app.controller
        rotation = RootRotation(
            parts.authority, parts.registrar, FullStore(), lambda: (), lambda: None, lambda: datetime.now(UTC)
        )
        with capture_logs() as logs:
            taken = await rotation.prepare(actor="root")
        assert taken.root.id == root_ids(await show(app))["prepared"][:12]
        assert [each["actor"] for each in logs if each["event"] == "audit_not_written"] == ["root"]


async def test_states_are_told_at_a_scrape(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await step(app, "prepare")
        text = (await app.root.get("/metrics")).text
        assert 'hostmesh_controller_ca_roots{state="prepared"} 1.0' in text
        assert 'hostmesh_controller_ca_roots{state="revoked"} 0.0' in text
        assert "hostmesh_controller_ca_intermediate_failing 0.0" in text
        assert text.count("hostmesh_controller_ca_root_not_after_seconds{") == 2


async def test_malformed_steps_are_refused(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        for name, body in (
            ("taint", {"root": "../x"}),
            ("taint", {"within_s": 3601}),
            ("revoke", {"root": "a" * 65}),
            ("activate", {"forced": True}),
        ):
            assert (await step(app, name, **body)).status_code == 422, (name, body)


async def test_what_hosts_told_survives_a_restart(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await with_hosts(app)
        await step(app, "prepare")
        await report(app, "web", *root_ids(await show(app)).values())
    async with running_app(tmp_path) as app:
        shown = await show(app)
        prepared = next(each for each in shown["roots"] if each["state"] == "prepared")
        assert prepared["unacknowledged"] == {"connected": [], "offline": ["away"]}


def test_a_person_sees_the_steps_and_rotate_does_them_all(tmp_path: Path) -> None:
    with running_process(tmp_path) as controller:
        first = _first(controller)
        done = controller.cli("ca", "rotate", "--within", "0s")
        assert done.returncode == 0, done.stderr
        said = [
            each
            for each in ("is prepared", "signs now", "is tainted", "is revoked; make a backup now")
            if each in done.stderr
        ]
        assert len(said) == 4, done.stderr
        table = controller.cli("ca", "show").stdout
        assert f"{first}  revoked" in table
        _wait(lambda: _presents_the_new_root(controller))
        refused = controller.cli("ca", "revoke", first)
        assert refused.returncode == 1
        assert f"root {first} is revoked already" in refused.stderr


def test_who_opens_the_stream_anew_while_roots_change_is_waited_for_and_who_was_away_before_is_not() -> None:
    root = {
        "id": "r",
        "holders": {"there": 1, "reconnecting": 2, "away": 1},
        "unacknowledged": {"connected": ["there"], "offline": ["away", "reconnecting"]},
    }
    found, before = {"roots": [root], "away": ["away", "reconnecting"]}, frozenset({"away", "back"})
    assert authority._holding(found, "r", before) == ["there", "reconnecting"]
    assert authority._lacking(found, "r", before) == ["there", "reconnecting"]
    root["holders"] = {"back": 1}
    assert authority._holding(found, "r", before) == ["back"]


def _presents_the_new_root(controller: Process) -> bool:
    """Tell whether the admin port's certificate is good by the roots that are on disk now."""
    context = ssl.create_default_context(cafile=str(controller.directory / "state/ca/bundle.pem"))
    try:
        with (
            socket.create_connection(("127.0.0.1", controller.ports[2]), 5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1"),
        ):
            return True
    except ssl.SSLError:
        return False


def _first(controller: Process) -> str:
    shown = json.loads(controller.cli("ca", "show", "-o", "json").stdout)
    (root,) = shown["roots"]
    return str(root["id"])


async def test_the_steps_outlive_the_controller(tmp_path: Path) -> None:
    async with running_app(tmp_path) as app:
        await step(app, "prepare")
        await step(app, "activate")
        before = app.controller.authority.roots
    assert Authority.load_or_create(tmp_path, "cluster.local", datetime.now(UTC)).roots == before


def test_a_controller_takes_new_files_when_it_is_told_to_look(tmp_path: Path) -> None:
    first, second = made("first root"), made("second root")
    plain(first).write(tmp_path / "cacerts")
    provider = f'[ca]\nprovider = "files"\ndir = "{tmp_path}/cacerts"\n'
    with running_process(tmp_path, provider) as controller:
        assert _roots(controller) == [("active", "CN=first root")]
        plain(second).write(tmp_path / "cacerts")
        controller.process.send_signal(signal.SIGHUP)
        _wait(lambda: _roots(controller) == [("active", "CN=first root"), ("prepared", "CN=second root")])
        assert controller.cli("ca", "activate").returncode == 0
        (tmp_path / "cacerts/ca-key.pem").chmod(0o644)
        (tmp_path / "cacerts/ca-key.pem").write_bytes(b"junk")
        controller.process.send_signal(signal.SIGHUP)
        _wait(lambda: "open to others" in controller.cli("ca", "show").stderr)
        log = controller.log.read_text()
        assert "root_prepared" in log
        assert "PRIVATE" not in log


def _roots(controller: Process) -> list[tuple[str, str]]:
    shown = json.loads(controller.cli("ca", "show", "-o", "json").stdout)
    return [(each["state"], each["subject"]) for each in shown["roots"]]


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not holds():
        assert time.monotonic() < deadline
