"""stop, start, restart and kill of one part of a lab, named `controller`, `agent/HOST`, `envoy/HOST` or `host/HOST`."""

import signal
from dataclasses import dataclass
from typing import Final, Self

from hostmesh_controller.lab import agent, controller, envoy
from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import LabFacts, Layout

_KINDS: Final = ("agent", "envoy", "host")


@dataclass(frozen=True, slots=True)
class Component:
    """`host` is "" for the controller."""

    kind: str
    host: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raise `LabError` for anything but the four forms."""
        kind, slash, host = text.partition("/")
        if text == "controller":
            return cls("controller")
        if kind in _KINDS and slash and host:
            return cls(kind, host)
        raise LabError(f"{text!r} is no component; there are: controller, agent/HOST, envoy/HOST, host/HOST")

    def __str__(self) -> str:
        return f"{self.kind}/{self.host}" if self.host else self.kind


def stop(layout: Layout, lab: LabFacts, part: Component) -> None:
    """End it in order and wait until it has ended."""
    match part.kind:
        case "controller":
            controller.stop(layout, signal.SIGTERM)
        case "host":
            hosts.stop(layout, lab, hosts.host_of(layout, part.host), signal.SIGTERM)
        case "agent":
            _needs_agent(layout, part)
            agent.stop(layout, part.host, signal.SIGTERM)
        case _:
            _needs_agent(layout, part)
            envoy.stop(layout, lab, part.host)


def kill(layout: Layout, lab: LabFacts, part: Component) -> None:
    """End it with SIGKILL."""
    match part.kind:
        case "controller":
            controller.stop(layout, signal.SIGKILL)
        case "host":
            hosts.stop(layout, lab, hosts.host_of(layout, part.host), signal.SIGKILL)
        case "agent":
            _needs_agent(layout, part)
            agent.stop(layout, part.host, signal.SIGKILL)
        case _:
            _needs_agent(layout, part)
            envoy.kill(layout, part.host)


def start(layout: Layout, lab: LabFacts, part: Component) -> None:
    """Start it unless it runs, and return when it is ready."""
    match part.kind:
        case "controller":
            controller.start(layout, lab)
        case "host":
            boot(layout, lab, part.host)
        case "agent":
            _needs_agent(layout, part)
            agent.start(layout, lab, part.host)
            agent.wait_ready(layout, part.host)
        case _:
            _needs_agent(layout, part)
            envoy.release(layout, lab, part.host)
            if not agent.processes(layout, part.host):
                raise LabError(
                    f"{part} is not held down any more, but no agent runs that would start it: "
                    f"hostmesh lab start agent/{part.host}"
                )
            envoy.wait_running(layout, part.host)
            agent.wait_ready(layout, part.host)


def restart(layout: Layout, lab: LabFacts, part: Component) -> None:
    stop(layout, lab, part)
    start(layout, lab, part)


def boot(layout: Layout, lab: LabFacts, name: str) -> None:
    """Start a host and what its boot starts: the agent, where the host has joined."""
    hosts.start(layout, lab, hosts.host_of(layout, name))
    if agent.joined(layout, name):
        agent.start(layout, lab, name)
        agent.wait_ready(layout, name)


def _needs_agent(layout: Layout, part: Component) -> None:
    if not agent.joined(layout, part.host):
        raise LabError(f"host {part.host} has not joined the mesh: there is no {part}")
