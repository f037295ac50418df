"""`hostmesh-agent envoy …`, `drain` and `undrain`."""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hostmesh_agent.config import AgentConfig
from hostmesh_agent.drained import Quiet
from hostmesh_agent.exits import DONE, FAILED, WRONG_CALL, say

CHANGED_WITHIN_S: Final = 180.0
"""A start, a probation; what drains is not waited for."""
DRAINED_WITHIN_S: Final = 60
TOLD_WITHIN_S: Final = 10.0
TRIED_ANEW_S: Final = 1.0
LOOK_S: Final = 0.3
_ENDS: Final = {False: "hostmesh-agent undrain", True: "the next boot, or hostmesh-agent undrain"}


def add(verbs: Any) -> None:
    """Add the verbs to those of the program."""
    envoy = verbs.add_parser("envoy", help="show or exchange the Envoy that runs")
    envoy_verbs = envoy.add_subparsers(title="verbs", required=True, metavar="VERB")
    status = envoy_verbs.add_parser("status", help="show which Envoy serves, and how far a change is")
    status.add_argument("-o", "--output", choices=("table", "json"), default="table")
    status.set_defaults(verb=_status)
    upgrade = envoy_verbs.add_parser(
        "upgrade", help="replace the running Envoy by what would be started now, without a failed request"
    )
    upgrade.add_argument("--binary", type=Path, metavar="FILE", help="and take this binary from now on")
    upgrade.add_argument("--sha256", default="", metavar="DIGITS", help="of the binary (sha256sum FILE)")
    upgrade.add_argument("--reset", action="store_true", help="take the binary that agent.toml names again")
    upgrade.add_argument(
        "--no-wait", action="store_true", help="do not wait until the new one has shown that it is good"
    )
    upgrade.set_defaults(verb=_upgrade)
    envoy_verbs.add_parser("rollback", help="put the old Envoy back, while it is still there").set_defaults(
        verb=_rollback
    )
    drain = verbs.add_parser(
        "drain", help="let nobody call this host's workloads until `undrain`, and wait for the rest"
    )
    drain.add_argument(
        "--within", type=float, default=DRAINED_WITHIN_S, metavar="SECONDS", help=f"wait so long ({DRAINED_WITHIN_S})"
    )
    drain.add_argument(
        "--until-boot", action="store_true", help="the next boot ends it; as the host does before it shuts down"
    )
    drain.set_defaults(verb=_drain)
    undrain = verbs.add_parser("undrain", help="let this host's workloads be called again")
    undrain.add_argument(
        "--until-boot", action="store_true", help="end only what a shutdown began; as the host does when it is up"
    )
    undrain.set_defaults(verb=_undrain)


def _status(options: argparse.Namespace, config: AgentConfig) -> int:
    document = _asked(config, "status")
    if document is None:
        return FAILED
    envoy = document["envoy"]
    if options.output == "json":
        print(json.dumps(envoy, indent=2))
        return DONE
    for name in ("instance", "stage", "state", "pid", "other_pid", "version", "restarts", "restart_needed", "put_back"):
        if envoy.get(name) not in (None, ""):
            print(f"{name.replace('_', ' '):<16} {envoy[name]}")
    if envoy.get("hung"):
        print(f"{'hung':<16} it does not answer")
    return DONE


def _upgrade(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import chosen_binary, control

    if bool(options.binary) != bool(options.sha256) or (options.binary and options.reset):
        return say("give --binary with --sha256, or --reset", WRONG_CALL)
    before = chosen_binary.choice(config.state_dir)
    if options.binary:
        sha256 = options.sha256.lower()
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            return say("--sha256 must be 64 hexadecimal digits (sha256sum FILE)", WRONG_CALL)
        chosen_binary.choose(config.state_dir, options.binary.resolve(), sha256)
    elif options.reset:
        chosen_binary.forget(config.state_dir)
    try:
        reply = control.call(config.control_socket, control.ENVOY_UPGRADE)
    except control.ControlError as error:
        if isinstance(error, control.AgentAbsentError):
            chosen_binary.restore(config.state_dir, before)
        return say(str(error), FAILED)
    if not reply["begun"]:
        if "is what would be started" in reply["why_not"]:
            print(f"nothing is changed: {reply['why_not']}")
            return DONE
        # Nor is the choice: the next Envoy would be that one, or the next agent could not start.
        chosen_binary.restore(config.state_dir, before)
        return say(f"nothing is changed: {reply['why_not']}", FAILED)
    return DONE if options.no_wait else _wait_for_change(config, reply["sha256"])


def _wait_for_change(config: AgentConfig, sha256: str) -> int:
    """Wait until the Envoy with this binary has shown that it is good, or was put back."""
    envoy = _until(_changed(config), CHANGED_WITHIN_S)
    if envoy is None:
        return _not_done()
    if envoy["put_back"]:
        return say(f"put back: {envoy['put_back']}", FAILED)
    if envoy["state"] == "held":
        print("no Envoy is started while the file `hold` is in its directory; the next one is what was asked for")
        return DONE
    if envoy["sha256"] != sha256:
        return say(f"Envoy {envoy['version']} serves: by now another one is wanted than was asked for", FAILED)
    if envoy["restart_needed"]:
        why = f"by now it would be started otherwise: {envoy['restart_needed']} (hostmesh-agent envoy upgrade)"
        return say(f"Envoy {envoy['version']} serves; {why}", FAILED)
    print(f"Envoy {envoy['version']} serves")
    return DONE


def _changed(config: AgentConfig) -> Callable[[], Mapping[str, Any] | None]:
    """Return what looks whether a change is over, tells of its stages, and returns what is said of Envoy then."""
    seen: list[str] = []

    def done() -> Mapping[str, Any] | None:
        document = _asked(config, "status")
        envoy = {} if document is None else document["envoy"]
        stage = envoy.get("stage", "")
        if stage and stage not in seen[-1:]:
            seen.append(stage)
            print(f"{stage} ({envoy['instance']} serves)", flush=True)
        over = stage in {"steady", "draining"} and not envoy["asked"]
        # One that was down is started as it is wanted now.
        over = over and bool(envoy["put_back"] or envoy["state"] in {"live", "held"})
        return envoy if over else None

    return done


def _rollback(_: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import control

    reply = _asked(config, control.ENVOY_ROLLBACK)
    if reply is None:
        return FAILED
    if not reply["begun"]:
        return say(reply["why_not"], FAILED)
    envoy = _until(_changed(config), CHANGED_WITHIN_S)
    if envoy is None:
        return _not_done()
    if envoy["instance"] != reply["instance"]:
        return say(f"the new Envoy had shown already that it is good: Envoy {envoy['version']} serves", FAILED)
    print("the earlier Envoy is put back")
    return DONE


def _not_done() -> int:
    return say(f"not done within {CHANGED_WITHIN_S:.0f} s (hostmesh-agent envoy status)", FAILED)


def _drain(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import control

    verb = control.DRAIN_UNTIL_BOOT if options.until_boot else control.DRAIN
    if _asked(config, verb) is None:
        return FAILED

    quiet, began = Quiet(), time.monotonic()

    def progress() -> Mapping[str, Any] | None:
        reply = _asked(config, verb)
        if reply is None:
            return {"last": None, "over": False}
        now = time.monotonic()
        over = quiet.over(reply, now)
        # A host that shuts down does not wait for a controller that is away. That it was is no proof that it is.
        away = options.until_boot and reply["failing"] and now - began >= TRIED_ANEW_S
        return {"last": reply, "over": over} if over or away else None

    ended = _until(progress, options.within)
    last = _asked(config, verb) if ended is None else ended["last"]
    if last is None:
        return FAILED
    if (ended and ended["over"]) or (last["told"] and not last["calls"]):
        print(f"nobody calls this host's workloads any more, until: {_ENDS[options.until_boot]}")
        return DONE
    if not last["told"]:
        return say(f"the controller does not know of it yet: {last['failing'] or 'it has not answered'}", FAILED)
    return say(f"{last['calls']} calls are still under way after {options.within:g} s", FAILED)


def _undrain(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import control

    verb = control.UNDRAIN_UNTIL_BOOT if options.until_boot else control.UNDRAIN

    def told() -> Mapping[str, Any] | None:
        reply = _asked(config, verb)
        # A host that boots does not wait for the controller.
        return {"last": reply} if reply is None or reply["told"] or options.until_boot else None

    ended = _until(told, TOLD_WITHIN_S)
    last = _asked(config, verb) if ended is None else ended["last"]
    if last is None:
        return FAILED
    if last["drained"]:
        print("the host is drained still, as its owner wants it: hostmesh-agent undrain")
    elif last["told"]:
        print("this host's workloads are called again")
    elif options.until_boot:
        print("this host's workloads are called again as soon as the controller knows it")
    else:
        why = last["failing"] or "it has not answered"
        return say(f"the host is no longer drained, but the controller does not know it yet: {why}", FAILED)
    return DONE


def _until(found: Callable[[], Mapping[str, Any] | None], within_s: float) -> Mapping[str, Any] | None:
    until = time.monotonic() + within_s
    while (result := found()) is None and time.monotonic() < until:
        time.sleep(LOOK_S)
    return result


def _asked(config: AgentConfig, verb: str) -> dict[str, Any] | None:
    """Ask the agent; say why it does not answer and return None if it does not."""
    from hostmesh_agent import control

    try:
        return control.call(config.control_socket, verb)
    except control.ControlError as error:
        say(str(error), FAILED)
        return None
