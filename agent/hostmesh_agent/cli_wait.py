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
        "guard",
        help="once, at boot, before anything else: close ports that take mutual TLS alone, and make resolv.conf the "
        "link again that it was",
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
    _give_link_back(config)
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


def _give_link_back(config: AgentConfig) -> None:
    """Let programs ask the resolvers of the network that comes up now, also if no agent does.

    While rules of ours are there names lead to Envoy: it is no boot. Nothing is lost before the agent puts its file
    there again, for it is the agent that starts Envoy. What fails is told, and keeps no port open.
    """
    from hostmesh_agent.capture import CaptureError, kernel
    from hostmesh_agent.dns import Resolver, ResolverError

    path = config.dns.resolv_conf
    try:
        if kernel.read() is None and Resolver(path, config.state_dir).give_link_back():
            print(f"{path} is the link again that it was, until the agent captures")
    except (CaptureError, ResolverError, OSError) as error:
        print(f"hostmesh-agent: {error}", file=sys.stderr)
