"""`hostmesh-agent`: one verb for each thing a person or a service manager does with the agent.

Exit codes: 0 done (or healthy), 1 it could not be done (or not healthy), 2 the call was wrong.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hostmesh_agent import config as configuration
from hostmesh_agent.config import AgentConfig, ConfigError
from hostmesh_api.wire import CIPHERS_VARIABLE, NO_CIPHERS_BEFORE_TLS_1_3

DONE: Final = 0
FAILED: Final = 1
WRONG_CALL: Final = 2
CLEARED_WITHIN_S: Final = 10.0
"""It takes the agent milliseconds, unless it is busy with the controller's newest."""

Verb = Callable[[argparse.Namespace, AgentConfig], int]


def main(arguments: Sequence[str] | None = None) -> None:
    # gRPC's core writes lines of its own between ours; what fails reaches us as a status.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ[CIPHERS_VARIABLE] = NO_CIPHERS_BEFORE_TLS_1_3
    sys.exit(call(arguments))


def call(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code; a user's mistake is one line on stderr."""
    options = _parser().parse_args(arguments)
    # Where nobody has set one, what is made on the way to the agent's own files would be everybody's to write.
    os.umask(os.umask(0o022) | 0o022)
    try:
        config = configuration.load(options.config)
    except ConfigError as error:
        return _say(str(error), WRONG_CALL)
    try:
        verb: Verb = options.verb
        code = verb(options, config)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who read our output has gone; Python's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return _say("interrupted", FAILED)
    except PermissionError as error:
        return _say(f"{error}" + ("" if os.geteuid() == 0 else " (hostmesh-agent needs root)"), FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hostmesh-agent", description="Makes this host a part of the mesh.")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: {configuration.DEFAULT_PATH}")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    run = verbs.add_parser("run", help="run in the foreground, as the service manager does")
    run.set_defaults(verb=_run)

    join = verbs.add_parser("join", help="trade a join string for this host's identity")
    join.add_argument("string", metavar="STRING", help='as `hostmesh token create` prints it; "-" reads it from stdin')
    join.add_argument("--name", default="", help="with the string of a group: name in the mesh (default: host name)")
    join.add_argument(
        "--address",
        default="",
        metavar="IP",
        help="with the string of a group: address of this host, if others reach it at another one than the controller "
        "sees it call from; the token must allow it",
    )
    join.add_argument("--force", action="store_true", help="replace an identity that this host already has")
    join.set_defaults(verb=_join)

    leave = verbs.add_parser("leave", help="undo everything; the host is as it was")
    leave.add_argument("--purge", action="store_true", help="remove the state directory too, with Envoy's binary")
    leave.set_defaults(verb=_leave)

    status = verbs.add_parser("status", help="show the state; exit code 0 if all is well, else 1")
    status.add_argument("-o", "--output", choices=("table", "json"), default="table")
    status.set_defaults(verb=_status)

    capture = verbs.add_parser("capture", help="show, take away or put back the traffic rules")
    capture_verbs = capture.add_subparsers(title="verbs", required=True, metavar="VERB")
    capture_verbs.add_parser("show", help="print the rules that the kernel holds").set_defaults(verb=_capture_show)
    capture_verbs.add_parser(
        "clear", help="capture nothing any more, until `capture resume`; works without agent and controller"
    ).set_defaults(verb=_capture_clear)
    capture_verbs.add_parser("resume", help="let the agent capture again").set_defaults(verb=_capture_resume)
    return parser


class _Version(argparse.Action):
    """Asked for late: the version comes from the package's metadata, which takes time to find."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from hostmesh_agent.artifact import ENVOY_VERSION
        from hostmesh_agent.host import agent_version

        parser.exit(message=f"hostmesh-agent {agent_version()} (Envoy {ENVOY_VERSION})\n")


# The verbs. Imports are late: `--help` and mistakes need no gRPC.


def _run(_: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import slim

    slim.give_back()
    slim.leave_out()

    import asyncio

    import structlog

    from hostmesh_agent import log
    from hostmesh_agent.artifact import ArtifactError
    from hostmesh_agent.lock import LockedError
    from hostmesh_agent.run import run
    from hostmesh_agent.state import StateError
    from hostmesh_agent.workdir import WorkdirError

    log.configure(config.log.level)
    try:
        asyncio.run(run(config))
    except (StateError, WorkdirError, ArtifactError, LockedError) as error:
        return _say(str(error), FAILED)
    except BaseExceptionGroup as group:
        for failure in group.exceptions:
            structlog.get_logger(__name__).critical("a part of the agent failed", exc_info=failure)
        return FAILED
    return DONE


def _join(options: argparse.Namespace, config: AgentConfig) -> int:
    import asyncio

    from hostmesh_agent import enrol, host, lock, log
    from hostmesh_agent.state import State, StateError
    from hostmesh_api.joinstring import JoinString

    log.configure("error")
    text = sys.stdin.readline() if options.string == "-" else options.string
    try:
        join_string = JoinString.decode(text.strip())
    except ValueError as error:
        return _say(str(error), WRONG_CALL)
    facts = host.facts(host.fixed_facts(), envoy_version="")
    state = State(config.state_dir)
    try:
        # A running agent would go on as the host it was.
        with lock.held(config.state_dir):
            joining = enrol.join(
                join_string,
                state,
                facts,
                lambda: datetime.now(UTC),
                name=options.name,
                address=options.address,
                force=options.force,
            )
            record = asyncio.run(joining)
    except lock.LockedError as error:
        return _say(f"{error}: stop it first", FAILED)
    except (enrol.EnrolError, StateError) as error:
        return _say(str(error), FAILED)
    print(f"joined as {record.identity.uri}")
    print("next: start the agent (hostmesh-agent run, or its service), then look at hostmesh-agent status")
    return DONE


def _leave(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import log
    from hostmesh_agent.control import ControlError
    from hostmesh_agent.leave import leave
    from hostmesh_agent.lock import LockedError

    log.configure("error")
    try:
        done = leave(config, purge=options.purge, tell=print)
    except (LockedError, ControlError) as error:
        return _say(f"{error}: stop it first", FAILED)
    if not done:
        return _say("not everything could be undone: see above, then call leave again", FAILED)
    print("this host has left the mesh")
    return DONE


def _status(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import control, log, status

    log.configure("error")
    try:
        document = control.call(config.control_socket, control.STATUS)
    except control.ControlError as error:
        document = status.offline(config, str(error), datetime.now(UTC))
    print(json.dumps(document, indent=2) if options.output == "json" else status.table(document))
    return DONE if document["healthy"] else FAILED


def _capture_show(_: argparse.Namespace, __: AgentConfig) -> int:
    from hostmesh_agent import capture

    try:
        print(capture.show(), end="")
    except capture.CaptureError as error:
        return _say(str(error), FAILED)
    return DONE


def _capture_clear(_: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import capture
    from hostmesh_agent.dns import Resolver, ResolverError
    from hostmesh_agent.status import CAPTURE_OFF

    # First the mark: a running agent must not put back what is taken away here.
    config.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    (config.state_dir / CAPTURE_OFF).touch()
    try:
        Resolver(config.dns.resolv_conf, config.state_dir).restore()
        _clear_rules(config)
    except (capture.CaptureError, ResolverError) as error:
        return _say(str(error), FAILED)
    _refresh(config)
    print("nothing is captured until: hostmesh-agent capture resume")
    return DONE


def _clear_rules(config: AgentConfig) -> None:
    """Remove the rules; those of a running agent are its own to remove (see `capture.owner`).

    Raises:
        CaptureError: neither can.
    """
    from hostmesh_agent import capture

    try:
        capture.clear()
    except capture.CaptureError:
        if not _refresh(config):
            raise
        until = time.monotonic() + CLEARED_WITHIN_S
        while capture.Capture().state().state != "off":
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _capture_resume(_: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent.status import CAPTURE_OFF

    (config.state_dir / CAPTURE_OFF).unlink(missing_ok=True)
    print("the agent captures again" if _refresh(config) else "the agent will capture again when it runs")
    return DONE


def _refresh(config: AgentConfig) -> bool:
    """Tell a running agent to look again; return whether there is one."""
    from hostmesh_agent import control

    try:
        control.call(config.control_socket, control.REFRESH)
    except control.ControlError:
        return False
    return True


def _say(message: str, code: int) -> int:
    print(f"hostmesh-agent: {message}", file=sys.stderr)
    return code
