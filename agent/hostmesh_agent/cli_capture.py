"""`hostmesh-agent capture …`: what is captured, what would be, why, and how it is tried, taken away and put back."""

import argparse
import json
import time
from typing import Any, Final

from hostmesh_agent.config import AgentConfig
from hostmesh_agent.exits import DONE, FAILED, WRONG_CALL, say

CLEARED_WITHIN_S: Final = 10.0
"""It takes the agent milliseconds, unless it is busy with the controller's newest."""
DEFAULT_TRIAL_S: Final = 60
_ANSWER_WITHIN_S: Final = 30.0
"""A confirmation looks at what answers, which takes seconds where a controller does not."""
_BEGUN_WITHIN_S: Final = 90.0
"""A trial begins once the agent has done what it is at, with a timer and a change of the rules on a busy host."""


def add(verbs: Any) -> None:
    """Add the noun to the parser's verbs."""
    capture = verbs.add_parser("capture", help="show, plan, try, explain, take away or put back the traffic rules")
    nouns = capture.add_subparsers(title="verbs", required=True, metavar="VERB")
    nouns.add_parser("show", help="print the rules that the kernel holds").set_defaults(verb=_show)
    plan = nouns.add_parser("plan", help="print the rules that would be applied, and what of the kernel's differs")
    plan.add_argument("-o", "--output", choices=("text", "json"), default="text")
    plan.set_defaults(verb=_plan)
    trial = nouns.add_parser("trial", help="capture what is wanted, and undo it unless `capture confirm` follows")
    trial.add_argument("--seconds", type=int, default=DEFAULT_TRIAL_S, metavar="N", help="default: %(default)s")
    trial.set_defaults(verb=_trial)
    confirm = nouns.add_parser("confirm", help="end the trial and keep its rules, if SSH and the controller answer")
    confirm.add_argument("-o", "--output", choices=("text", "json"), default="text")
    confirm.set_defaults(verb=_confirm)
    explain = nouns.add_parser("explain", help="say which rule decides about a connection, and where it goes")
    explain.add_argument("destination", metavar="ADDRESS:PORT")
    who = explain.add_mutually_exclusive_group()
    who.add_argument("--uid", type=int, default=0, help="of the program that connects (default: root)")
    who.add_argument("--unit", metavar="UNIT", help="systemd unit of the program that connects")
    who.add_argument("--inbound", action="store_true", help="a connection from the network to this host")
    explain.add_argument("--interface", default="", help="with --inbound: where it comes in (default: by the address)")
    explain.add_argument("--from", dest="caller", metavar="ADDRESS", help="with --inbound: who calls")
    explain.add_argument("-o", "--output", choices=("text", "json"), default="text")
    explain.set_defaults(verb=_explain)
    nouns.add_parser(
        "clear", help="capture nothing any more, until `capture resume`; works without agent and controller"
    ).set_defaults(verb=_clear, in_need=True, as_root=True)
    nouns.add_parser("resume", help="let the agent capture again").set_defaults(verb=_resume)


def _show(_: argparse.Namespace, __: AgentConfig) -> int:
    from hostmesh_agent import capture

    try:
        print(capture.show(), end="")
    except capture.CaptureError as error:
        return say(str(error), FAILED)
    return DONE


def _plan(options: argparse.Namespace, config: AgentConfig) -> int:
    """Exit code 0 if the kernel holds exactly the plan, else 1."""
    from hostmesh_agent import capture_plan, control, hold, log
    from hostmesh_agent.capture import CaptureError

    log.configure("error")
    try:
        document = control.call(config.control_socket, control.PLAN)
    except control.AgentAbsentError:
        held = hold.is_off(config.state_dir) or hold.read(config.state_dir) is not None
        try:
            document = capture_plan.on_disk(config, held).document()
        except CaptureError as error:
            return say(str(error), FAILED)
    except control.ControlError as error:
        return say(str(error), FAILED)
    print(json.dumps(document, indent=2) if options.output == "json" else capture_plan.text(document))
    return FAILED if document["difference"] else DONE


def _trial(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import control

    if options.seconds < 1:
        return say("--seconds must be at least 1", WRONG_CALL)
    try:
        control.call(config.control_socket, control.TRIAL, _BEGUN_WITHIN_S, seconds=options.seconds)
    except control.ControlError as error:
        return say(str(error), FAILED)
    print(f"captured for {options.seconds} s, then undone unless you call: hostmesh-agent capture confirm")
    return DONE


def _confirm(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import arming, control

    try:
        reply = arming.tell(config.run_dir, arming.CONFIRM, _ANSWER_WITHIN_S)
    except control.AgentAbsentError:
        return say("no trial runs: nothing is to be confirmed", FAILED)
    except control.ControlError as error:
        return say(str(error), FAILED)
    if options.output == "json":
        print(json.dumps(reply, indent=2))
    else:
        _tell_confirmation(reply)
    return DONE if reply["confirmed"] else FAILED


def _tell_confirmation(reply: dict[str, Any]) -> None:
    for each in reply["proven"]:
        print(f"proven: {each}")
    for alarm, why in reply["faults"]:
        print(f"fails: {alarm}: {why}")
    for each in reply["not_proven"]:
        print(f"not proven: {each}")
    if reply["confirmed"]:
        print("confirmed: capture stays")
    else:
        print(f"not confirmed: the trial goes on, and is undone in {reply['seconds_left']} s")


def _explain(options: argparse.Namespace, _: AgentConfig) -> int:
    from hostmesh_agent import capture_explain
    from hostmesh_agent.capture import CaptureError, kernel

    try:
        address, port = capture_explain.destination(options.destination)
        program = capture_explain.unit(options.unit) if options.unit else capture_explain.Program(options.uid)
        packet = (
            capture_explain.incoming(address, port, options.interface, capture_explain.caller(options.caller))
            if options.inbound
            else capture_explain.outgoing(address, port, program)
        )
        answer = capture_explain.document(kernel.read(), packet)
    except capture_explain.QuestionError as error:
        return say(str(error), WRONG_CALL)
    except CaptureError as error:
        return say(str(error), FAILED)
    print(json.dumps(answer, indent=2) if options.output == "json" else capture_explain.text(answer))
    return DONE


def _clear(_: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import capture, hold, resolution, standing_in
    from hostmesh_agent.dns import ResolverError

    def mark() -> None:
        with standing_in.for_a_while(config.state_dir):
            config.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
            (config.state_dir / hold.OFF).touch()

    def end_trial() -> None:
        with standing_in.for_a_while(config.state_dir):
            _end_trial(config)

    def clear_rules() -> None:
        # The names were the last thing that takes root.
        standing_in.become(config.state_dir)
        _clear_rules(config)

    # First the mark: a running agent must not put back what is taken away here. Whatever fails, the rest is done: this
    # is the way out.
    failed = []
    for what, act in (
        ("an agent that runs captures again, stop it", mark),
        ("a trial", end_trial),
        ("name resolution", lambda: resolution.take_back(config.dns.resolv_conf, config.state_dir)),
        ("rules", clear_rules),
    ):
        try:
            act()
        except (capture.CaptureError, ResolverError, OSError) as error:
            failed.append(f"{what}: {error}")
    if failed:
        return say("\n".join(failed), FAILED)
    _refresh(config)
    print("nothing is captured until: hostmesh-agent capture resume")
    return DONE


def _end_trial(config: AgentConfig) -> None:
    """Have the trial that runs, if one does, undo itself now: later it would put back what was before it."""
    from hostmesh_agent import arming, control, hold

    try:
        arming.tell(config.run_dir, arming.UNDO, why="hostmesh-agent capture clear was called")
    except control.ControlError:
        return
    until = time.monotonic() + CLEARED_WITHIN_S
    while hold.trial(config.run_dir) is not None and time.monotonic() < until:
        time.sleep(0.05)


def _clear_rules(config: AgentConfig) -> None:
    """Remove the rules; those of a running agent are its own to remove (see `capture.owner`).

    Raises:
        CaptureError: neither can.
    """
    from hostmesh_agent import capture, holders, process
    from hostmesh_agent.places import GREEN

    def clear() -> None:
        # A gateway whose second Envoy runs serves on, with or without an agent.
        if process.recorded_runs(config.directory_of(GREEN)):
            capture.clear_but_doors()
        else:
            capture.clear()

    try:
        clear()
    except capture.CaptureError:
        if _refresh(config) and _cleared_by_agent():
            return
        # It does not answer: its end changes no rule, and the next one finds the mark.
        holders.end(holders.is_agent_of(config.state_dir))
        clear()


def _cleared_by_agent() -> bool:
    from hostmesh_agent.capture import kernel
    from hostmesh_agent.converge import InForce, in_force

    until = time.monotonic() + CLEARED_WITHIN_S
    # What leads to a second Envoy's own ports captures nothing, and stays.
    while in_force(kernel.read()) != InForce():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _resume(_: argparse.Namespace, config: AgentConfig) -> int:
    from contextlib import suppress

    from hostmesh_agent import control, hold

    if hold.trial(config.run_dir) is not None:
        return say("a trial runs: confirm it (hostmesh-agent capture confirm), or wait until it is undone", FAILED)
    with suppress(control.ControlError):
        # First: what is in the agent's memory may be on its way to the disk.
        control.call(config.control_socket, control.RESUME)
    hold.release(config.state_dir)
    runs = _refresh(config)
    if why := _disabled(config):
        return say(f"nothing is captured: {why}", FAILED)
    print("the agent captures again" if runs else "the agent will capture again when it runs")
    return DONE


def _disabled(config: AgentConfig) -> str:
    """Return what to do where agent.toml, or the one with which the agent was started, wants nothing captured."""
    from hostmesh_agent import control, hold

    if not config.capture.enabled:
        return f"{hold.DISABLED}: {hold.ENABLE}"
    try:
        wanted = control.call(config.control_socket, control.STATUS)["capture"]["not_wanted"]
    except control.ControlError:
        return ""
    return "agent.toml has changed since the agent started: restart it" if wanted == hold.DISABLED else ""


def _refresh(config: AgentConfig) -> bool:
    """Tell a running agent to look again; return whether there is one."""
    from hostmesh_agent import control

    try:
        control.call(config.control_socket, control.REFRESH)
    except control.ControlError:
        return False
    return True
