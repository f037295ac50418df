"""The agents of the lab's hosts: joined once, started at every boot, ready when all their parts say so."""

import json
import signal
import socket
import time
from typing import Any, Final

from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import LabFacts, Layout
from hostmesh_controller.lab.process import ProcessRecord, command_line, end, in_pid_namespace_of, opened
from hostmesh_controller.lab.space import tail

_JOIN_S: Final = 60.0
_READY_S: Final = 45.0
_STOP_S: Final = 30.0
_POLL_S: Final = 0.05
_ANSWER_S: Final = 10.0
_SOCKET: Final = "/run/hostmesh/agent.sock"


def join(layout: Layout, lab: LabFacts, name: str, join_string: str) -> None:
    """Enrol the host; its agent does not run yet.

    Raises:
        LabError: in the agent's words.
    """
    space = hosts.space_of(layout, lab, name)
    done = space.run(["hostmesh-agent", "join", "-"], text_in=join_string + "\n", timeout_s=_JOIN_S)
    if done.returncode != 0:
        raise LabError(f"host {name} cannot join: {(done.stderr or done.stdout).strip()}")


def joined(layout: Layout, name: str) -> bool:
    """Whether the host has an identity, by its disk: what a unit's ConditionPathExists would look at."""
    return (layout.host(name).disk("var-lib") / "upper/hostmesh/host.json").is_file()


def processes(layout: Layout, name: str) -> list[ProcessRecord]:
    """The agents that run in the host, whoever started them."""
    init = disk.read_process(layout.host(name).init)
    if init is None:
        return []
    return [record for record in in_pid_namespace_of(init) if _is_agent(command_line(record.pid))]


def _is_agent(words: list[str]) -> bool:
    # python …/hostmesh-agent run, or the file itself where it is a binary.
    return "run" in words and any(word.rpartition("/")[2] == "hostmesh-agent" for word in words[:2])


def start(layout: Layout, lab: LabFacts, name: str) -> None:
    """Start the host's agent if none runs; `wait_ready` tells when it is ready."""
    if processes(layout, name):
        return
    place = layout.host(name)
    record = hosts.space_of(layout, lab, name).start(["hostmesh-agent", "run"], place.agent_log)
    disk.write_process(place.agent, record)


def wait_ready(layout: Layout, name: str) -> None:
    """Return when the agent calls itself ready: connected or serving what it knew, with Envoy's listeners up.

    While its Envoy is held down (`stop envoy/HOST`) it cannot be, and is ready when it holds it.

    Raises:
        LabError: it ended, or is not ready in time; with what it says of itself and the end of its log.
    """
    deadline = time.monotonic() + _READY_S
    while True:
        found = status(layout, name)
        if found is not None and (found.get("ready") or found.get("envoy", {}).get("state") == "held"):
            return
        if not processes(layout, name):
            raise LabError(f"host {name}: its agent ended; the end of its log:\n{_log_end(layout, name)}")
        if time.monotonic() > deadline:
            raise LabError(
                f"host {name}: its agent is not ready after {_READY_S:.0f} s; it says: {_problems(found)}\n"
                f"the end of its log:\n{_log_end(layout, name)}"
            )
        time.sleep(_POLL_S)


def status(layout: Layout, name: str) -> dict[str, Any] | None:
    """What `hostmesh-agent status` tells, None when the agent does not answer.

    Asked on the agent's socket, which is reached through the host's file system: a start of Python for every look
    would take more time than the agent takes to become ready.
    """
    with opened(disk.read_process(layout.host(name).init)) as pidfd, socket.socket(socket.AF_UNIX) as client:
        init = disk.read_process(layout.host(name).init)
        if pidfd is None or init is None:
            return None
        client.settimeout(_ANSWER_S)
        try:
            client.connect(f"/proc/{init.pid}/root{_SOCKET}")
            client.sendall(b'{"verb": "status"}\n')
            with client.makefile("rb") as file:
                answer = json.loads(file.readline())
        except (OSError, ValueError):
            return None
    return answer if isinstance(answer, dict) else None


def _problems(found: dict[str, Any] | None) -> str:
    if found is None:
        return "nothing"
    return "; ".join(found.get("problems", [])) or json.dumps(found)


def stop(layout: Layout, name: str, number: signal.Signals) -> None:
    """End every agent of the host; nothing happens when there is none."""
    for record in processes(layout, name):
        end(record, number, _STOP_S)


def _log_end(layout: Layout, name: str) -> str:
    return tail(layout.host(name).agent_log, 15)
