"""What a host keeps for the time when the controller is away, or tells it nonsense."""

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab
from e2e.test_under_load import load

HTTP_PORT, TCP_PORT = 8097, 9097
SHELVES = 10
COPIED_WITHIN_S = 45
"""Changes are gathered for 15 s before copies are told."""

WORKLOADS = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: web}}
spec: {{address: {server}, serviceAccount: web, labels: {{app: web}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: raw}}
spec: {{selector: {{app: web}}, ports: [{{name: tcp, port: {tcp}}}]}}
"""
SHELF = """
---
apiVersion: v1
kind: Service
metadata: {{name: shelf-{number}}}
spec: {{selector: {{app: web}}, ports: [{{name: http, port: {http}}}]}}
"""


def shelves(numbers: range) -> str:
    return "".join(SHELF.format(number=number, http=HTTP_PORT) for number in numbers)


def call(lab: Lab, number: int) -> int:
    return lab.curl("client", f"http://shelf-{number}:{HTTP_PORT}/").status


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Client and server; the client has called nobody, and has a cold copy."""
    with new_lab() as made:
        made.verb("up", "server")
        made.detach("server", "python3", str(PROGRAMS / "http_echo.py"), str(HTTP_PORT), "web")
        made.detach("server", "python3", str(PROGRAMS / "tcp.py"), "serve", str(TCP_PORT))
        text = WORKLOADS.format(server=made.ip("server"), tcp=TCP_PORT)
        made.apply(text + shelves(range(SHELVES)))
        # While the client joins, changes are gathered already.
        made.verb("up", "client")
        made.wait_for_workloads()

        def is_copied() -> bool:
            copy = made.agent("client")["configuration"]["cold_copy"]
            return bool(copy["services"] == SHELVES + 1)

        eventually(is_copied, "the client has all services in its copy", COPIED_WITHIN_S)
        yield made


def raw(lab: Lab) -> str:
    return lab.exec("client", "python3", str(PROGRAMS / "tcp.py"), "call", "raw", str(TCP_PORT), check=False).stdout


def test_without_a_controller_services_can_be_called_that_were_never_called_before(lab: Lab) -> None:
    lab.verb("stop", "controller")
    try:
        began_s = time.monotonic()
        assert call(lab, 0) == 200
        assert time.monotonic() - began_s < 4, "it waited for the controller"
        assert raw(lab) == "220 welcome\nHELLO\n"
        lab.verb("restart", "host/client")
        assert call(lab, 1) == 200
        assert raw(lab) == "220 welcome\nHELLO\n"
        lab.verb("restart", "agent/client")
        assert call(lab, 2) == 200
        assert call(lab, 99) in {0, 404}, "what is nowhere fails"
        with load(lab, "client", f"http://shelf-1:{HTTP_PORT}/") as tally:
            lab.verb("start", "controller")
            eventually(lambda: lab.agent("client")["controller"]["connected"], "the client is back", 30)
            assert call(lab, 3) == 200
    finally:
        lab.verb("start", "controller")
    assert tally["sent"] > 20
    assert tally["failed"] == 0, tally


def problems(lab: Lab) -> str:
    found = json.loads(lab.hostmesh("proxy", "status", "-o", "json").stdout)
    return " ".join(problem for each in found if each["host"] == "client" for problem in each["problems"])


def emptied(lab: Lab, store: Path) -> None:
    """Let the controller run with a store that has lost all objects and enrolments, and then with the old one again."""
    kept = store.with_name("kept")
    lab.verb("stop", "controller")
    kept.mkdir()
    for each in store.glob("store.sqlite*"):
        shutil.copy2(each, kept)
    with closing(sqlite3.connect(store / "store.sqlite")) as database, database:
        for table in ("objects", "enrolments", "hosts", "certificates", "vips"):
            database.execute(f"DELETE FROM {table}")
    lab.verb("start", "controller")
    eventually(lambda: "PERMISSION_DENIED" in lab.agent("client")["controller"]["last_error"], "it is a stranger", 30)
    lab.verb("stop", "controller")
    for each in store.glob("store.sqlite*"):
        each.unlink()
    for each in kept.iterdir():
        each.rename(store / each.name)
    lab.verb("start", "controller")
    eventually(lambda: lab.agent("client")["controller"]["connected"], "the client is back", 30)


def test_an_emptied_store_and_half_a_mesh_fail_no_request_until_somebody_wants_them(lab: Lab) -> None:
    eventually(lambda: lab.agent("client")["controller"]["connected"], "the client is connected", 30)
    for number in range(SHELVES):
        assert call(lab, number) == 200
    store = next(lab.root.rglob("store.sqlite")).parent
    with load(lab, "client", f"http://shelf-9:{HTTP_PORT}/") as tally:
        emptied(lab, store)
        lab.verb("stop", "controller")
        names = ", ".join(f"'shelf-{number}'" for number in range(4, SHELVES))
        with closing(sqlite3.connect(store / "store.sqlite")) as database, database:
            database.execute(f"DELETE FROM objects WHERE kind = 'Service' AND name IN ({names})")
        lab.verb("start", "controller")
        eventually(lambda: "held back: 6 of 1" in problems(lab), "the operator is told", 30)
        assert "hostmesh-agent config accept" in " ".join(lab.agent("client")["problems"])
        assert "store.altered" in lab.hostmesh("audit").stdout
        # What somebody writes now says nothing of what was lost.
        lab.apply(shelves(range(SHELVES, SHELVES + 1)))
        assert "held back: 6 of 1" in problems(lab)
        lab.verb("restart", "agent/client")
        eventually(lambda: "held back: 6 of 1" in problems(lab), "it is held back after a restart, too", 30)
        assert [call(lab, number) for number in range(SHELVES)] == [200] * SHELVES
    assert tally["sent"] > 100
    assert tally["failed"] == 0, tally
    lab.hostmesh("host", "confirm", "client")
    eventually(lambda: call(lab, 9) != 200, "what was confirmed holds")
    assert lab.hostmesh("host", "confirm", "client", check=False).returncode == 1


def test_most_of_a_mesh_is_deleted_by_who_says_so_and_then_at_once(lab: Lab) -> None:
    everything = shelves(range(SHELVES + 1))
    lab.apply(everything)
    for number in range(SHELVES + 1):
        eventually(partial(lambda number: call(lab, number) == 200, number), "it is called")
    lab.hostmesh("delete", "-f", "-", text_in=everything)
    eventually(lambda: call(lab, 9) != 200, "nobody holds it back")
    assert "held back" not in problems(lab)
