"""Whether a port can demand mutual TLS, by what was seen; who still speaks plaintext, and why."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from golden.objects import mesh_of, obj
from hostmesh_api.call_stats import Security
from hostmesh_controller.mesh import HostRuntime, Mesh
from hostmesh_controller.model.objects import ApiObject
from hostmesh_controller.observed import host_itself
from hostmesh_controller.readiness import Readiness, Seen, State, readiness, refused_by, security_of
from hostmesh_controller.store import CallKey, CallRecord, HostState, PortKey, WatchedPort

NOW = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
DB = PortKey("default", "db", 8080)
WEB = "spiffe://cluster.local/ns/default/sa/web"
OBJECTS = [
    obj("Host", "web", {"addresses": ["10.0.0.1"]}),
    obj("Host", "db", {"addresses": ["10.0.0.2"]}),
    obj("Host", "late", {"addresses": ["10.0.0.3", "fd00::3"]}),
    obj("WorkloadEntry", "web", {"address": "10.0.0.1", "labels": {"app": "web"}, "serviceAccount": "web"}),
    obj("WorkloadEntry", "db", {"address": "10.0.0.2", "labels": {"app": "db"}, "serviceAccount": "db"}),
    obj("WorkloadEntry", "far", {"address": "10.0.0.8", "labels": {"app": "far"}}),
    obj("Service", "db", {"selector": {"app": "db"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}),
    obj("Service", "far", {"selector": {"app": "far"}, "ports": [{"name": "http", "port": 80}]}),
]
DISABLE = {"host": "db", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}


def peers(mode: str, name: str = "default", namespace: str = "default", **more: Any) -> ApiObject:
    return obj("PeerAuthentication", name, {"mtls": {"mode": mode}, **more}, namespace)


def meshed(*more: ApiObject, **runtime: HostRuntime) -> Mesh:
    objects = [*OBJECTS, *more]
    joined = {"web": frozenset({("default", "web")}), "db": frozenset({("default", "db")}), "late": frozenset()}
    known = {host: HostRuntime(host != "late", ready, healthy=ready) for host, ready in joined.items()}
    return mesh_of(objects, {**known, **runtime})


def plain(caller: str, ago: timedelta = timedelta(hours=1), count: int = 3, **more: Any) -> CallRecord:
    key = CallKey(*DB, more.pop("kind", "plaintext"), caller)
    values = {"denied": 0, "host": "db", "epoch": "e", "told": 0, "told_denied": 0, **more}
    return CallRecord(key, frozenset({"GET"}), count, first_seen=NOW - 9 * DAY, last_seen=NOW - ago, **values)


def seen(*calls: CallRecord, since: timedelta | None = 9 * DAY, reported: timedelta = timedelta(0)) -> Seen:
    ports = {} if since is None else {key: WatchedPort(key, "db", NOW - since) for key in (DB, host_itself("db"))}
    state = HostState(joined_at=NOW - 20 * DAY, last_report_at=NOW - reported)
    return Seen({each.key: each for each in calls}, ports, {"db": state}, timedelta(minutes=2))


def of_db(mesh: Mesh, what: Seen, window: timedelta = DAY) -> Readiness:
    return next(each for each in readiness(mesh, what, NOW, window) if each.workload.name == "db")


def test_a_port_is_ready_when_it_was_watched_for_long_enough_and_nobody_spoke_plaintext() -> None:
    found = of_db(meshed(), seen(plain(WEB, kind="mtls")))
    assert (found.state, found.ready, found.port) == (State.READY, True, 8080)
    assert found.why == "no plaintext for 1d; watched since 2026-02-20 00:00:00 UTC"


def test_whoever_spoke_plaintext_within_the_window_is_named() -> None:
    old = plain("10.0.0.9", 2 * DAY)
    found = of_db(meshed(), seen(plain("10.0.0.1"), old))
    assert (found.state, found.ready) == (State.PLAINTEXT, False)
    assert [each.record.key.caller for each in found.callers] == ["10.0.0.1"]
    assert found.why == "1 caller(s) without mutual TLS, 3 call(s), last 2026-02-28 23:00:00 UTC"
    assert of_db(meshed(), seen(old)).state is State.READY
    assert of_db(meshed(), seen(old), 3 * DAY).state is State.PLAINTEXT


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (seen(since=None), "not watched: its agent has not said that it captures and counts the port's calls"),
        (seen(since=timedelta(hours=2)), "watched since 2026-02-28 22:00:00 UTC only: less than 1d"),
        (
            seen(reported=timedelta(hours=1)),
            "not watched since 2026-02-28 23:00:00 UTC: the agent of db is silent",
        ),
    ],
)
def test_what_was_not_seen_is_not_taken_for_ready(what: Seen, reason: str) -> None:
    found = of_db(meshed(), what)
    assert (found.state, found.ready, found.why) == (State.UNKNOWN, False, reason)


def test_what_was_watched_before_the_host_joined_anew_does_not_count() -> None:
    what = seen()
    what.hosts["db"] = HostState(joined_at=NOW - timedelta(hours=1), last_report_at=NOW)  # type: ignore[index] # a dict, read as a mapping
    assert of_db(meshed(), what).state is State.UNKNOWN


def test_a_host_that_has_not_joined_and_a_workload_without_a_host_are_not_ready() -> None:
    assert "has not joined" in of_db(meshed(db=HostRuntime()), seen()).why
    far = next(each for each in readiness(meshed(), seen(), NOW, DAY) if each.workload.name == "far")
    assert (far.state, far.host) == (State.UNKNOWN, None)


def test_a_port_that_demands_it_is_ready_and_one_where_it_is_off_is_not() -> None:
    assert of_db(meshed(peers("STRICT")), seen(since=None)).state is State.STRICT
    off = of_db(meshed(peers("DISABLE")), seen())
    assert off.state is State.UNKNOWN
    assert "make it PERMISSIVE first" in off.why


def test_a_programs_own_tls_and_a_kind_that_is_not_known_are_not_the_meshs() -> None:
    found = of_db(meshed(), seen(plain("10.0.0.9", kind="own-tls")))
    assert found.state is State.PLAINTEXT
    assert found.callers[0].own_tls
    assert security_of(CallKey(*DB, "brand-new", WEB)) is Security.PLAINTEXT


def test_callers_that_a_policy_refuses_anyway_are_no_reason_to_wait() -> None:
    assert of_db(meshed(), seen(plain("10.0.0.9", denied=3))).state is State.READY
    assert of_db(meshed(), seen(plain("10.0.0.9", denied=2))).state is State.PLAINTEXT
    assert of_db(meshed(), seen(plain("10.0.0.9", count=0))).state is State.PLAINTEXT


def test_callers_that_are_not_told_apart_are_callers() -> None:
    found = of_db(meshed(), seen(plain("", count=0)))
    assert found.state is State.PLAINTEXT
    assert found.callers[0].whence.why == "more callers than can be told apart"


@pytest.mark.parametrize(
    ("caller", "more", "runtime", "host", "reason", "why"),
    [
        ("10.0.0.9", [], {}, None, "outside-the-mesh", "outside the mesh"),
        ("10.0.0.8", [], {}, None, "outside-the-mesh", "its machine is no Host of the mesh"),
        ("fd00::3", [], {}, "late", "not-joined", "its agent has not joined"),
        ("10.0.0.2", [], {}, "db", "same-host", "a program of the same host"),
        ("10.0.0.1", [], {}, "web", "not-captured", "dials the workload's own address"),
        ("10.0.0.1", [obj("DestinationRule", "off", DISABLE)], {}, "web", "destination-rule",
         "DestinationRule default/off turns mutual TLS off"),
        ("10.0.0.1", [obj("DestinationRule", "off", {"host": "db", "trafficPolicy": {
            "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "DISABLE"}}]}})], {}, "web",
         "destination-rule", "DestinationRule default/off"),
        ("10.0.0.1", [obj("DestinationRule", "other", {"host": "db", "trafficPolicy": {
            "portLevelSettings": [{"port": {"number": 81}, "tls": {"mode": "DISABLE"}}]}})], {}, "web",
         "not-captured", "dials"),
        ("10.0.0.1", [], {"db": HostRuntime(joined=True)}, "web", "not-served", "mutual TLS is not served"),
        ("10.0.0.1", [obj("MeshConfig", "default", {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}})], {}, "web",
         "not-captured", "left out of capture"),
    ],
)  # fmt: skip
def test_why_a_caller_speaks_plaintext_is_told_as_far_as_the_mesh_can_tell(
    caller: str, more: list[ApiObject], runtime: dict[str, HostRuntime], host: str | None, reason: str, why: str
) -> None:
    (found,) = of_db(meshed(*more, **runtime), seen(plain(caller))).callers
    assert (found.whence.host, found.whence.reason.value) == (host, reason)
    assert why in found.whence.why


def test_a_policy_that_would_refuse_callers_that_were_seen_says_whom() -> None:
    what, mesh = seen(plain("10.0.0.1"), plain("10.0.0.9")), meshed()
    expected = (
        "refuses callers of default/db port 8080 that were seen without mutual TLS: 10.0.0.1 (host web), 10.0.0.9; "
        "last 2026-02-28 23:00:00 UTC"
    )
    for item in (
        peers("STRICT"),
        peers("STRICT", namespace="istio-system"),
        peers("STRICT", "db", selector={"matchLabels": {"app": "db"}}),
        peers("PERMISSIVE", "db", selector={"matchLabels": {"app": "db"}}, portLevelMtls={8080: {"mode": "STRICT"}}),
    ):
        assert [text for _, text in refused_by(mesh, what, [item])] == [expected]
    for item in (
        peers("PERMISSIVE"),
        peers("STRICT", namespace="elsewhere"),
        peers("STRICT", "web", selector={"matchLabels": {"app": "web"}}),
    ):
        assert list(refused_by(mesh, what, [item])) == []


def test_a_policy_that_replaces_another_is_judged_by_what_holds_then() -> None:
    what = seen(plain("10.0.0.9"))
    assert list(refused_by(meshed(peers("STRICT")), what, [peers("STRICT")])) == []
    assert len(list(refused_by(meshed(peers("PERMISSIVE")), what, [peers("STRICT")]))) == 1
    assert list(refused_by(meshed(), seen(plain("10.0.0.9", denied=3)), [peers("STRICT")])) == []
    older = meshed(peers("PERMISSIVE", "db", selector={"matchLabels": {"app": "db"}}))
    assert list(refused_by(older, what, [peers("STRICT")])) == []
