"""`hostmesh-agent`: one verb for each thing a person or a service manager does with the agent.

Exit codes: 0 done (or healthy), 1 it could not be done (or not healthy), 2 the call was wrong.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hostmesh_agent import (
    argv,
    cli_as_root,
    cli_bugreport,
    cli_capture,
    cli_config,
    cli_doctor,
    cli_envoy,
    cli_wait,
    standing_in,
)
from hostmesh_agent import config as configuration
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.config_table import ConfigError
from hostmesh_agent.exits import DONE, FAILED, WRONG_CALL, say
from hostmesh_api.wire import CIPHERS_VARIABLE, NO_CIPHERS_BEFORE_TLS_1_3

if TYPE_CHECKING:
    from hostmesh_agent.evidence import Evidence
    from hostmesh_api.joinstring import JoinString

SSH_KEY: Final = Path("/etc/ssh/ssh_host_ed25519_key")

Verb = Callable[[argparse.Namespace, AgentConfig], int]


def main(arguments: Sequence[str] | None = None) -> None:
    # gRPC's core writes lines of its own between ours; what fails reaches us as a status.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ[CIPHERS_VARIABLE] = NO_CIPHERS_BEFORE_TLS_1_3
    _hide_tokens(sys.argv[1:] if arguments is None else arguments)
    sys.exit(call(arguments))


def call(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit code; a user's mistake is one line on stderr."""
    options = _parser().parse_args(arguments)
    # Where nobody has set one, what is made on the way to the agent's own files would be everybody's to write.
    os.umask(os.umask(0o022) | 0o022)
    try:
        config = configuration.load(options.config)
    except ConfigError as error:
        say(str(error), WRONG_CALL)
        if not getattr(options, "in_need", False):
            return WRONG_CALL
        # What closes ports at a boot, opens a host or finds out what is wrong does not wait for a comma.
        config = configuration.in_need(options.config)
        options.config_problem = str(error)
    try:
        verb: Verb = options.verb
        # Those that cannot do without it touch the agent's files as its user.
        if not getattr(options, "as_root", False):
            standing_in.become(config.state_dir)
        code = verb(options, config)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Who read our output has gone; Python's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        return say("interrupted", FAILED)
    except PermissionError as error:
        return say(f"{error}" + ("" if os.geteuid() == 0 else " (hostmesh-agent needs root)"), FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hostmesh-agent", description="Makes this host a part of the mesh.")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"default: {configuration.DEFAULT_PATH}")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    run = verbs.add_parser("run", help="run in the foreground, as the service manager does")
    run.set_defaults(verb=_run)

    _add_join(verbs.add_parser("join", help="get this host's identity, for a join string or as an attested host"))

    leave = verbs.add_parser("leave", help="undo everything; the host is as it was")
    leave.add_argument("--purge", action="store_true", help="remove the state directory too, with Envoy's binary")
    leave.set_defaults(verb=_leave, as_root=True)

    status = verbs.add_parser("status", help="show the state; exit code 0 if all is well, else 1")
    status.add_argument("-o", "--output", choices=("table", "json"), default="table")
    status.set_defaults(verb=_status)

    cli_capture.add(verbs)
    cli_config.add(verbs)
    cli_envoy.add(verbs)
    cli_wait.add(verbs)
    cli_doctor.add(verbs)
    cli_bugreport.add(verbs)
    cli_as_root.add(verbs)
    return parser


def _add_join(join: argparse.ArgumentParser) -> None:
    join.add_argument(
        "string",
        nargs="?",
        metavar="STRING",
        help='as `hostmesh token create` or `hostmesh join-string` prints it; "-" reads it from stdin; or HOST:PORT of '
        "the controller's join port, with --root",
    )
    join.add_argument("--file", type=Path, metavar="FILE", help="read the string from a file")
    join.add_argument(
        "--root", type=Path, metavar="FILE", help="with HOST:PORT: the controller's root certificate, PEM"
    )
    join.add_argument(
        "--attest",
        choices=("token", "x509pop", "ssh", "aws", "gcp", "azure", "key-alone"),
        default="token",
        help="how this host proves who it is (default: by the token in the string)",
    )
    join.add_argument(
        "--certificate", type=Path, metavar="FILE", help="x509pop: its chain, PEM; ssh: its -cert.pub file"
    )
    join.add_argument(
        "--key", type=Path, metavar="FILE", help=f"x509pop: its key, PEM; ssh: its key (default: {SSH_KEY})"
    )
    join.add_argument("--metadata", metavar="URL", help="aws, gcp, azure: the metadata service, if not the usual one")
    join.add_argument("--wait", action="store_true", help="wait until an operator has approved, where one must")
    join.add_argument("--name", default="", help="with the string of a group: name in the mesh (default: host name)")
    join.add_argument(
        "--address",
        default="",
        metavar="IP",
        help="with the string of a group: address of this host, if others reach it at another one than the controller "
        "sees it call from; the token must allow it",
    )
    join.add_argument("--force", action="store_true", help="replace an identity that this host already has")
    join.add_argument(
        "--no-start", action="store_true", help="do not enable and start hostmesh-agent.service, where there is one"
    )
    join.set_defaults(verb=_join, as_root=True)


class _Version(argparse.Action):
    """Asked for late: the version comes from the package's metadata, which takes time to find."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from hostmesh_agent.artifact import ENVOY_VERSION
        from hostmesh_agent.host import agent_version

        print(f"hostmesh-agent {agent_version()} (Envoy {ENVOY_VERSION})")
        parser.exit()


# The verbs. Imports are late: `--help` and mistakes need no gRPC.


def _run(_: argparse.Namespace, config: AgentConfig) -> int:
    import faulthandler

    from hostmesh_agent import slim

    # A service manager whose watchdog was not fed ends us with SIGABRT: where each thread hung is told on stderr.
    if not faulthandler.is_enabled():
        faulthandler.enable(2)
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
        return say(str(error), FAILED)
    except BaseExceptionGroup as group:
        for failure in group.exceptions:
            structlog.get_logger(__name__).critical("a part of the agent failed", exc_info=failure)
        return FAILED
    return DONE


def _join(options: argparse.Namespace, config: AgentConfig) -> int:
    import asyncio

    from hostmesh_agent import as_root, enrol, host, lock, log, own_unit
    from hostmesh_agent.evidence import EvidenceError
    from hostmesh_agent.state import State, StateError

    log.configure("error")
    try:
        join_string = _join_string(options)
        evidence = _evidence(options)
    except ValueError as error:
        return say(str(error), WRONG_CALL)
    if evidence is None and not join_string.token:
        return say("the join string has no token: say how this host proves who it is (--attest …)", WRONG_CALL)
    facts = host.facts(host.fixed_facts(), envoy_version="")
    state = State(config.state_dir)
    try:
        # A running agent would go on as the host it was.
        with standing_in.for_a_while(config.state_dir, able=True), lock.held(config.state_dir):
            joining = enrol.join(
                join_string,
                state,
                facts,
                lambda: datetime.now(UTC),
                name=options.name,
                address=options.address,
                force=options.force,
                evidence=evidence,
                waiting=_tell if options.wait else None,
                doubt=lambda why: _tell(f"warning: {why}"),
            )
            record = asyncio.run(joining)
    except lock.LockedError as error:
        return say(f"{error}: stop it first", FAILED)
    except (enrol.EnrolError, EvidenceError, StateError) as error:
        return say(str(error), FAILED)
    print(f"joined as {record.identity.uri}", flush=True)
    try:
        if as_root.possible(config.state_dir) and (why := as_root.why(config)) and as_root.switch(on=True):
            print(f"the agent is root on this host: {why}")
        not_started = "--no-start" if options.no_start else own_unit.start(config.state_dir)
    except (OSError, own_unit.UnitError) as error:
        cure = "mend it (journalctl -u hostmesh-agent), then: systemctl start hostmesh-agent"
        return say(f"this host has joined, but its agent does not run: {error}; {cure}", FAILED)
    if not_started is None:
        print("hostmesh-agent.service is enabled and runs; look at hostmesh-agent status")
    else:
        print(f"not started ({not_started})")
        print("next: start the agent (hostmesh-agent run, or its service), then look at hostmesh-agent status")
    return DONE


def _hide_tokens(arguments: Sequence[str]) -> None:
    """Overwrite join strings in the command line, which every user of the host can read while this runs."""
    for each in arguments:
        if each.startswith("hm") and len(each) > len("hm1.") and not argv.hide(each):
            print(
                "hostmesh-agent: the join string can be read in /proc: use `join -` or `join --file`", file=sys.stderr
            )


def _join_string(options: argparse.Namespace) -> "JoinString":
    """Return where to join; raise ValueError for what is no such thing."""
    from hostmesh_api.joinstring import JoinString

    if (options.string is None) == (options.file is None):
        raise ValueError('give the join string, "-" to read it from stdin, or --file')
    if options.root is not None:
        import ssl

        try:
            root = ssl.PEM_cert_to_DER_cert(options.root.read_text(encoding="ascii"))
        except OSError as error:
            raise ValueError(f"{options.root}: cannot be read: {error.strerror}") from error
        return JoinString((options.string or "",), root, "")
    if options.file is not None:
        try:
            return JoinString.decode(options.file.read_text(encoding="ascii").strip())
        except OSError as error:
            raise ValueError(f"{options.file}: cannot be read: {error.strerror}") from error
    return JoinString.decode((sys.stdin.readline() if options.string == "-" else options.string).strip())


def _evidence(options: argparse.Namespace) -> "Evidence | None":
    """Return what this host shows; None: a token. Raise ValueError where it cannot be told."""
    from hostmesh_agent import evidence

    if options.attest == "x509pop":
        if options.certificate is None or options.key is None:
            raise ValueError("--attest x509pop needs --certificate and --key")
        return evidence.MachineCertificate(options.certificate, options.key)
    if options.attest == "ssh":
        return evidence.SshHostKey(options.key or SSH_KEY, options.certificate)
    if options.attest == "key-alone":
        return evidence.KeyAlone()
    cloud = evidence.CLOUDS.get(options.attest)
    if cloud is None:
        return None
    return cloud() if options.metadata is None else cloud(options.metadata)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _leave(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import log
    from hostmesh_agent.control import ControlError
    from hostmesh_agent.leave import leave
    from hostmesh_agent.lock import LockedError

    log.configure("error")
    try:
        done = leave(config, purge=options.purge, tell=print)
    except (LockedError, ControlError) as error:
        return say(f"{error}: stop it first", FAILED)
    if not done:
        return say("not everything could be undone: see above, then call leave again", FAILED)
    print("this host has left the mesh")
    return DONE


def _status(options: argparse.Namespace, config: AgentConfig) -> int:
    from hostmesh_agent import control

    try:
        document = control.call(config.control_socket, control.STATUS)
    except control.ControlError as error:
        document = _offline(config, str(error))
    document["findings"] = cli_doctor.of_agent(document)
    if options.output == "json":
        print(json.dumps(document, indent=2))
    else:
        from hostmesh_agent import status

        print(status.table(document))
    return DONE if document["healthy"] else FAILED


def _offline(config: AgentConfig, why: str) -> dict[str, Any]:
    # Late: it looks at the kernel, and an agent that runs answers without that.
    from hostmesh_agent import log, status

    log.configure("error")
    return status.offline(config, why, datetime.now(UTC))
