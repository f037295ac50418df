"""The mesh is seen before it exists: who talks to whom without any capture, and a found program becomes a service."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.driver import PROGRAMS, Lab, eventually, new_lab

NO_CAPTURE = "[capture]\nenabled = false\n"
OBSERVE = "\n[observe]\ninterval_s = 2\n[labels]\nrack = 'r7'\n"
KEEPS_CALLING = "import socket, sys, time; s = socket.create_connection((sys.argv[1], 8080)); time.sleep(900)"


@pytest.fixture
def three() -> Iterator[Lab]:
    with new_lab() as lab:
        lab.verb("up", "web", "shop", "db", "--no-join", "stranger")
        for host in ("web", "shop", "db"):
            configured(lab, host, capture=False)
        yield lab


def configured(lab: Lab, host: str, *, capture: bool) -> None:
    text = lab.exec(host, "sed", "/^.capture/,$d", "/etc/hostmesh/agent.toml").stdout
    lab.put(host, "/etc/hostmesh/agent.toml", text + ("" if capture else NO_CAPTURE) + OBSERVE)
    lab.verb("restart", f"agent/{host}")


def edges(lab: Lab, *options: str) -> dict[tuple[str, str, int], dict[str, Any]]:
    found = json.loads(lab.hostmesh("graph", "-o", "json", *options).stdout)["edges"]
    return {(each["source"], each["target"], each["port"]): each for each in found}


def test_who_talks_to_whom_is_seen_without_capture_and_a_found_program_is_adopted(three: Lab) -> None:
    three.detach("db", "python3", str(PROGRAMS / "http_echo.py"), "8095", "db", user="app")
    three.detach("shop", "python3", str(PROGRAMS / "http_echo.py"), "8080", "shop", user="app")
    db, shop = f"http://{three.ip('db')}:8095/", f"http://{three.ip('shop')}:8080/"
    eventually(lambda: three.curl("shop", db).status == 200, "db answers")
    eventually(lambda: three.curl("web", shop).status == 200, "shop answers")
    three.detach("web", "python3", "-c", KEEPS_CALLING, three.ip("shop"), user="app")
    assert three.curl("stranger", shop).status == 200

    def told() -> bool:
        found = edges(three)
        return {
            # What curl had closed when somebody looked is nobody's any more.
            ("host/shop", "program/db/python3", 8095),
            ("program/web/python3", "program/shop/python3", 8080),
            (f"external/{three.ip('stranger')}", "program/shop/python3", 8080),
        } <= found.keys()

    eventually(told, "the connections of all three are in the graph", 40)
    assert "program/db/python3" in three.hostmesh("graph", "--host", "db").stdout
    assert "-.->" in three.hostmesh("graph", "-o", "mermaid").stdout
    assert not [target for _, target, port in edges(three) if port in range(15000, 15100)]
    shown = json.loads(three.hostmesh("host", "show", "db", "-o", "json").stdout)["report"]
    assert (shown["facts"]["labels"], bool(shown["facts"]["interfaces"])) == ({"rack": "r7"}, True)

    (found,) = [
        each
        for each in json.loads(three.hostmesh("host", "services", "db", "-o", "json").stdout)
        if each["port"] == 8095
    ]
    assert (found["program"], found["adopted"]) == ("python3", [])
    adopt = ("adopt", "db:8095", "--service", "db", "--protocol", "http")
    assert "kind: WorkloadEntry" in three.hostmesh(*adopt, "--dry-run").stdout
    assert three.hostmesh("get", "workloadentry", "-o", "json").stdout.strip() == "[]"
    assert "workloadentry/default/db-db created" in three.hostmesh(*adopt).stdout
    for host in ("shop", "db"):
        configured(three, host, capture=True)
    three.wait_for_workloads()
    eventually(lambda: three.curl("shop", "http://db:8095/").status == 200, "db is called by its name", 30)

    def safe() -> bool:
        found = [each for (_, target, _), each in edges(three).items() if target == "service/default/db"]
        return any("mutual-tls" in each["security"] for each in found)

    eventually(safe, "the call is seen with mutual TLS", 40)
