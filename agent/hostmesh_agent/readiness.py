"""What a host still lacks before programs may count on the mesh, read from its status document. Pure."""

from collections.abc import Mapping
from typing import Any, Final

READY: Final = "ready"
CAPTURE: Final = "capture"
ENVOY: Final = "envoy"
WHATS: Final = (READY, CAPTURE, ENVOY)
"""What can be waited for: everything; the rules and what must be there before them; Envoy with its listeners."""


def lacks(status: Mapping[str, Any], what: str) -> list[str]:
    """Return what is missing, for people; nothing when the host is as far as `what` says.

    A controller that is away is no lack: a host serves from its disk. Nor is a resolver that is knowingly left alone.

    Args:
        status: as `hostmesh-agent status -o json` prints it.
        what: one of WHATS.
    """
    if not status["agent"]["running"]:
        return [str(each) for each in status["problems"]] or ["the agent does not run"]
    found = _envoy(status)
    if what != ENVOY:
        found += _capture(status["capture"])
    if what == READY:
        found += [f"{each['name']} has no certificate: {each['missing']}" for each in _without(status)]
        dns = status["dns"]
        # An agent of the version before does not say whether it is left alone.
        if not dns["in_place"] and dns["detail"] and not dns.get("left_alone", False):
            found.append(f"names: {dns['detail']}")
    return found


def _envoy(status: Mapping[str, Any]) -> list[str]:
    wanted = status["configuration"]["listeners_wanted"]
    envoy = status["envoy"]
    if not wanted:
        return ["there is no configuration yet"]
    if envoy["state"] != "live":
        why = f" ({envoy['last_exit']})" if envoy["last_exit"] else ""
        return [f"Envoy is {envoy['state']}{why}"]
    missing = sorted(set(wanted) - set(envoy["listeners"]))
    return [f"Envoy does not have {', '.join(missing)} yet"] if missing else []


def _capture(capture: Mapping[str, Any]) -> list[str]:
    if capture["not_wanted"]:
        return []
    error = [f"capture: {capture['error']}"] if capture["state"] == "error" else []
    return [*error, *(f"capture waits: {each}" for each in capture["waiting_for"])]


def _without(status: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in status["certificates"] if "missing" in each]
