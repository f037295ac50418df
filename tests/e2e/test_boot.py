"""The boot path: restarts in any order, a controller that is away, damaged files, a clock that is wrong."""

import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_strict import CANARY, PORT, SERVICE, canary, seen
from e2e.test_under_load import load

STATE = "/var/lib/hostmesh"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
CLOCK = f"{STATE}/clock"
STOCK = """
apiVersion: v1
kind: Service
metadata: {{name: stock}}
spec: {{selector: {{app: stock}}, ports: [{{name: http, port: 8095}}]}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: stock}}
spec: {{address: {server}, serviceAccount: stock, labels: {{app: stock}}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: stock}}
spec: {{selector: {{matchLabels: {{app: stock}}}}, mtls: {{mode: STRICT}}}}
"""
SVID = f"{STATE}/envoy/certs/ns.default.sa.stock/svid.pem"
NOTIFIED = """
import socket
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.bind("/run/notify")
print("bound", flush=True)
ready = 0
while ready < 3:
    told = manager.recv(4096).decode().replace("\\n", " ")
    ready += bool(ready) or told.startswith("READY=1")
    print(told, flush=True)
"""
"""Stands for the service manager; ends after READY=1 and two more messages."""
STEPS = int(os.environ.get("STEPS", "6"))
"""Twenty take two minutes on a busy machine."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab() as made:
        made.verb("up", "client", "server", "--no-join", "outside")
        serve(made)
        made.apply(SERVICE.format(server=made.ip("server")))
        eventually(lambda: seen(made) is not None, "client calls vault", timeout_s=30)
        yield made


def serve(lab: Lab) -> None:
    lab.detach("server", "python3", CANARY, "serve", PORT, user="app")


def test_everything_comes_back_after_restarts_in_any_order_and_no_plaintext_gets_in(lab: Lab) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1 << 16)))
    chosen = random.Random(seed)
    steps = [
        ("restart", "controller"),
        ("kill", "controller"),
        ("kill", "agent/server"),
        ("restart", "agent/server"),
        ("kill", "envoy/server"),
        ("kill", "agent/client"),
        ("restart", "host/server"),
    ]
    done = []
    with canary(lab) as tally:
        for _ in range(STEPS):
            verb, what = chosen.choice(steps)
            done.append(f"{verb} {what}")
            lab.verb(verb, what, check=False)
            if what == "host/server":
                serve(lab)
            elif verb == "kill" and what != "envoy/server":
                lab.verb("start", what, check=False)
        told = f"SEED={seed}: {', '.join(done)}"
        eventually(lambda: seen(lab) is not None, f"client calls vault again: {told}", timeout_s=60)
        for host in ("client", "server"):
            waited = lab.exec(host, "hostmesh-agent", "wait", "--timeout", "60", check=False)
            assert waited.returncode == 0, f"{told}: {host}: {waited.stderr}"
    assert "answered" not in tally, (told, tally)
    assert seen(lab) == 0, told


def test_a_host_boots_with_damaged_files_and_no_controller_is_ready_and_says_what_was_damaged(lab: Lab) -> None:
    lab.verb("stop", "controller")
    lab.verb("stop", "agent/server")
    files = ("identity/key.pem", "cache/last-known-good.sqlite", "cache/last-known-good.sqlite-wal")
    damage = "; ".join([f"cd {STATE}", *(f": > {each}" for each in files), "echo x > strict-ports.json"])
    lab.exec("server", "sh", "-c", damage)
    with canary(lab) as tally:
        lab.verb("restart", "host/server")
        serve(lab)
        waited = lab.exec("server", "hostmesh-agent", "wait", "--timeout", "60", check=False)
        assert waited.returncode == 0, waited.stderr
        eventually(lambda: seen(lab) is not None, "client calls vault", timeout_s=30)
    assert "answered" not in tally, tally
    status = lab.agent("server")
    assert {"state.repaired", "cache.spare-used"} <= {each["code"] for each in status["alarms"]}
    assert status["ready"]
    assert not status["controller"]["connected"]
    lab.verb("start", "controller")
    eventually(lambda: lab.agent("server")["controller"]["connected"], "the controller is back", timeout_s=60)


def test_a_workload_whose_certificate_was_damaged_gets_another_and_no_caller_notices(lab: Lab) -> None:
    """A lease that says that the workload is not ready, for want of a certificate, would withdraw it."""
    lab.detach("server", "python3", str(PROGRAMS / "http_echo.py"), "8095", "stock", user="app")
    lab.apply(STOCK.format(server=lab.ip("server")))
    lab.wait_for_workloads()
    eventually(lambda: lab.curl("client", "http://stock:8095/").status == 200, "client calls stock")
    with load(lab, "client", "http://stock:8095/") as calls:
        # Which of certificate and report is first is chance.
        for _ in range(3):
            lab.verb("stop", "agent/server")
            # Envoy has it loaded, and reads files anew when another is moved to its place only.
            lab.exec("server", "sh", "-c", f": > {SVID}")
            stopped_at = datetime.now(UTC)
            lab.verb("start", "agent/server")
            eventually(lambda: lab.exec("server", "test", "-s", SVID, check=False).returncode == 0, "there is another")
            heard = partial(_reported_since, lab, stopped_at)
            eventually(heard, "the controller heard of the host", timeout_s=30)
    assert calls["failed"] == 0, calls
    assert calls["sent"] > 0, calls


def _reported_since(lab: Lab, moment: datetime) -> bool:
    shown = json.loads(lab.hostmesh("host", "show", "server", "-o", "json").stdout)
    return datetime.fromisoformat(shown["last_report_at"]) > moment


def boot_with_clock(lab: Lab, days: int) -> None:
    """Start the server's agent anew with a clock that is wrong by so many days, until CLOCK says otherwise."""
    lab.verb("stop", "agent/server")
    lab.put("server", CLOCK, f"{days:+d}d")
    environment = (
        f"LD_PRELOAD={FAKETIME}",
        f"FAKETIME_TIMESTAMP_FILE={CLOCK}",
        "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "FAKETIME_DONT_RESET=1",
    )
    lab.detach("server", "env", *environment, "hostmesh-agent", "run")


def without_certificate(lab: Lab) -> list[str]:
    return [each["name"] for each in lab.agent("server")["certificates"] if not each.get("not_after")]


@pytest.mark.skipif(FAKETIME is None, reason="needs faketime")
def test_a_wrong_clock_and_no_controller_at_boot_leave_a_host_without_certificates_only_until_the_clock_is_right(
    lab: Lab,
) -> None:
    lab.verb("stop", "controller")
    boot_with_clock(lab, -400)
    try:
        eventually(lambda: "clock.behind" in codes(lab), "the alarm is up", timeout_s=30)
        assert without_certificate(lab)
        lab.put("server", CLOCK, "+0d")
        eventually(lambda: not without_certificate(lab), "certificates are those on disk", timeout_s=60)
        assert not lab.agent("server")["controller"]["connected"]
    finally:
        lab.verb("stop", "agent/server", check=False)
        lab.exec("server", "rm", "-f", CLOCK)
        lab.verb("start", "controller")
        lab.verb("start", "agent/server")
    eventually(lambda: lab.agent("server")["controller"]["connected"], "the controller is back", timeout_s=60)


@pytest.mark.skipif(FAKETIME is None, reason="needs faketime")
@pytest.mark.parametrize("days", [400, -400])
def test_a_host_that_boots_with_a_wrong_clock_says_so_and_goes_on_without_a_visit_once_it_is_right(
    lab: Lab, days: int
) -> None:
    identity = lab.exec("server", "sha256sum", f"{STATE}/identity/key.pem").stdout
    boot_with_clock(lab, days)
    code = "clock.certificate-ended" if days > 0 else "clock.behind"
    try:
        eventually(lambda: code in codes(lab), f"the alarm {code} is up", timeout_s=30)
        # Envoy and the rules go on.
        assert seen(lab) is not None
        assert lab.exec("server", "sha256sum", f"{STATE}/identity/key.pem").stdout == identity
        lab.put("server", CLOCK, "+0d")
        eventually(lambda: code not in codes(lab), f"the alarm {code} is over", timeout_s=60)
        eventually(lambda: lab.agent("server")["controller"]["connected"], "the host is back", timeout_s=90)
        ends = {each["name"]: each.get("not_after") for each in lab.agent("server")["certificates"]}
        assert datetime.fromisoformat(ends["agent"]) - datetime.now(UTC) < timedelta(days=30)
        eventually(lambda: seen(lab) is not None, "client calls vault", timeout_s=30)
    finally:
        lab.verb("stop", "agent/server", check=False)
        lab.exec("server", "rm", "-f", CLOCK)
        lab.verb("start", "agent/server")


def test_the_service_manager_is_told_and_too_few_files_are_an_alarm_while_traffic_goes_on(lab: Lab) -> None:
    lab.verb("stop", "agent/server")
    manager = lab.popen("server", "python3", "-c", NOTIFIED)
    try:
        assert manager.stdout is not None
        assert manager.stdout.readline() == "bound\n"
        start = "ulimit -Sn 128; NOTIFY_SOCKET=/run/notify WATCHDOG_USEC=900000 exec hostmesh-agent run"
        lab.detach("server", "sh", "-c", start)
        told, _ = manager.communicate("", timeout=60)
        assert "READY=1 WATCHDOG=1 STATUS=server: " in told
        assert told.count("WATCHDOG=1") >= 3
        eventually(lambda: "limits.files" in codes(lab), "the alarm limits.files is up", timeout_s=30)
        assert seen(lab) is not None
    finally:
        manager.kill()
        manager.communicate()
        lab.verb("stop", "agent/server", check=False)
        lab.verb("start", "agent/server")


def codes(lab: Lab) -> list[str]:
    return [each["code"] for each in lab.agent("server")["alarms"]]
