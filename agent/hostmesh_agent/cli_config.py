"""`hostmesh-agent config`: what the host does with the configuration that the controller sends."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostmesh_agent.config import AgentConfig

_DONE, _FAILED = 0, 1


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verbs."""
    config = verbs.add_parser("config", help="the configuration that the controller sends")
    of_config = config.add_subparsers(title="verbs", required=True, metavar="VERB")
    accept = of_config.add_parser(
        "accept", help="take configuration that is held back, because it takes most of what there is away"
    )
    accept.set_defaults(verb=_accept)


def _accept(_: argparse.Namespace, config: "AgentConfig") -> int:
    from hostmesh_agent import control, log

    log.configure("error")
    try:
        accepted = control.call(config.control_socket, control.ACCEPT)["accepted"]
    except control.ControlError as error:
        print(f"hostmesh-agent: {error}", file=sys.stderr)
        return _FAILED
    if not accepted:
        print("hostmesh-agent: nothing is held back", file=sys.stderr)
        return _FAILED
    print(f"taken: {accepted}")
    return _DONE
