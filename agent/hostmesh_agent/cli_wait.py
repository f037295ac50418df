"""`hostmesh-agent wait` and `hostmesh-agent guard`: what a service manager puts before programs."""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from hostmesh_agent import readiness
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.exits import DONE, FAILED

_LOOK_S: Final = 0.2
_DEFAULT_S: Final = 60.0


def add(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verbs."""
    wait = verbs.add_parser("wait", help="wait until this host is ready; exit code 0 if it is, else 1 with the reason")
    wait.add_argument(
        "--timeout", type=_seconds, default=_DEFAULT_S, metavar="S", help="how long (default: 60; 0: look once)"
    )
    wait.add_argument(
        "--for",
        dest="what",
        choices=readiness.WHATS,
        default=readiness.READY,
        help="envoy: it has its listeners; capture: and the rules are in place; ready: and certificates and names "
        "(default)",
    )
    wait.set_defaults(verb=_wait)
    guard = verbs.add_parser(
        "guard", help="close the ports that take mutual TLS alone, before anything else runs: once, at boot"
    )
    guard.set_defaults(verb=_guard, as_root=True, in_need=True)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError("from 0 to 86400 seconds")
    return seconds


def _wait(options: argparse.Namespace, config: AgentConfig) -> int:
    until = time.monotonic() + options.timeout
    while True:
        missing = readiness.lacks(_status(config), options.what)
        if not missing:
            return DONE
        if time.monotonic() >= until or not _has_joined(config):
            for each in missing:
                print(f"hostmesh-agent: not ready: {each}", file=sys.stderr)
            return FAILED
        time.sleep(min(_LOOK_S, max(0.0, until - time.monotonic())))


def _status(config: AgentConfig) -> Mapping[str, Any]:
    from hostmesh_agent import control

    try:
        return control.call(config.control_socket, control.STATUS)
    except control.ControlError as error:
        return {"agent": {"running": False}, "problems": [str(error)]}


def _has_joined(config: AgentConfig) -> bool:
    """Tell whether waiting is of any use."""
    from hostmesh_agent.state import State

    if State(config.state_dir).joined:
        return True
    print(f"hostmesh-agent: this host has not joined (hostmesh-agent join STRING): {config.state_dir}", file=sys.stderr)
    return False


def _guard(_: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import guard, log
    from hostmesh_agent.alarms import Alarms
    from hostmesh_agent.capture import Owner
    from hostmesh_agent.state import State

    log.configure(config.log.level)
    if not State(config.state_dir).joined and not config.floor.mtls_ports:
        return DONE
    owner = Owner()
    alarms = Alarms()
    try:
        closed = guard.close_strict_ports(config, owner, alarms)
    finally:
        # The rules stay, and are the agent's to take over.
        owner.close()
    if closed:
        print(f"closed until Envoy serves them: {', '.join(map(str, sorted(closed)))}")
    for each in alarms:
        print(f"hostmesh-agent: {each}", file=sys.stderr)
    return FAILED if any(alarms) else DONE
