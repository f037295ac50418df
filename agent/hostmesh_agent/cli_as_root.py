"""`hostmesh-agent as-root`: whether the agent of this host is root, which it is not unless it has to be."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hostmesh_agent.config import AgentConfig

_DONE, _FAILED = 0, 1


def add(verbs: "argparse._SubParsersAction[Any]") -> None:
    """Add the verb."""
    verb = verbs.add_parser(
        "as-root", help="have the agent be root, which it is not, where this host cannot do without (iptables)"
    )
    verb.add_argument("switch", choices=("on", "off"), help="the agent is restarted; no call is lost by that")
    verb.set_defaults(verb=_switch, as_root=True)


def _switch(options: argparse.Namespace, config: "AgentConfig") -> int:
    from hostmesh_agent import as_root
    from hostmesh_agent.own_unit import UnitError

    on = options.switch == "on"
    if not as_root.possible(config.state_dir):
        return _say("this host's agent is no unit of the package's: whoever starts it says as whom")
    if not on and (why := as_root.why(config)):
        return _say(f"the agent of this host has to be root: {why}")
    try:
        changed = as_root.switch(on)
        as_root.restart()
    except (OSError, UnitError) as error:
        return _say(str(error))
    who = "root" if on else "not root"
    print(f"the agent is {who}{'' if changed else ', as before'}; where it ran it was restarted")
    return _DONE


def _say(what: str) -> int:
    print(f"hostmesh-agent: {what}", file=sys.stderr)
    return _FAILED
