"""Calls of the mesh as programs make them, and what the one who is called saw of the caller."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from e2e.driver import Lab, eventually
from e2e.test_under_load import LOAD
from hosts.machine import Machine


def identity_of_caller(seen: dict[str, Any]) -> str:
    """Return who called by what Envoy says of the certificate; "": it came without one."""
    told: str = seen["headers"].get("x-forwarded-client-cert", "")
    return told.partition("URI=")[2].partition(",")[0].partition(";")[0]


def call_from_lab(lab: Lab, host: str, url: str) -> dict[str, Any] | None:
    """Return what http_echo.py saw of a call; None: there was no answer."""
    answer = lab.curl(host, url)
    return answer.json if answer.status == 200 else None


def call_from(machine: Machine, url: str) -> dict[str, Any] | None:
    done = machine.run("curl", "-sS", "--fail", "-m", "10", url, check=False)
    if done.returncode != 0:
        return None
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def outbound(machine: Machine, url: str, port: int) -> Iterator[dict[str, Any]]:
    """The host's own program calls another host of the mesh all the time."""
    if machine.run("test", "-e", "/opt/load.py", check=False).returncode != 0:
        machine.put("/opt/load.py", LOAD.read_text())
    calls = machine.popen("/usr/bin/python3", "/opt/load.py", url, "--workers", "2", "--pause", "0.01")
    tally: dict[str, Any] = {}
    try:
        at_work = ("ss", "-Htn", "state", "established", f"dport = :{port}")
        eventually(lambda: machine.run(*at_work).stdout, "its calls have begun", timeout_s=30)
        yield tally
        output, _ = calls.communicate("", timeout=30)
        tally.update(json.loads(output))
    finally:
        calls.kill()
        calls.communicate()
