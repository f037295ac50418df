"""The `hostmesh-controller` command: run, and check the configuration."""

import os
import socket
import sys
from contextlib import nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from hostmesh_api.wire import CIPHERS_VARIABLE, NO_CIPHERS_BEFORE_TLS_1_3
from hostmesh_controller.access import check_grants
from hostmesh_controller.client_rules import ClientRule
from hostmesh_controller.config import DEFAULT_PATH, Config, load_config, parse_config
from hostmesh_controller.config_reader import ConfigError
from hostmesh_controller.grants import grants_text
from hostmesh_controller.mesh_file import load_mesh_file

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The mesh's controller.",
)
config_app = typer.Typer(no_args_is_help=True, help="The controller's configuration file.")
app.add_typer(config_app, name="config")

_PROBE_V4: Final = ("192.0.2.1", 9)
_STANDARD: Final = Path("-")
_PROBE_V6: Final = ("2001:db8::1", 9)
"""Documentation addresses: connecting a UDP socket sends nothing, it only asks the kernel for the route's source."""

ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="HOSTMESH_CONTROLLER_CONFIG", help=f"controller.toml; {DEFAULT_PATH} unless given."
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        from hostmesh_controller.metrics import build_version

        typer.echo(f"hostmesh-controller {build_version()}")
        raise typer.Exit


@app.callback()
def program(
    _version_wanted: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


@app.command("run")
def run(config: ConfigPath = None) -> None:
    """Run the controller in the foreground until SIGTERM."""
    # gRPC's core writes lines of its own between ours; what fails reaches us as a status.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ[CIPHERS_VARIABLE] = NO_CIPHERS_BEFORE_TLS_1_3
    _allow_many_connections()
    import asyncio

    import structlog

    from hostmesh_controller import log
    from hostmesh_controller.authority import AuthorityError
    from hostmesh_controller.controller import serve
    from hostmesh_controller.listen import ListenError
    from hostmesh_controller.review import UnreadableError
    from hostmesh_controller.state_dir import StateDirError
    from hostmesh_controller.store import StoreError

    loaded = _load(config)
    _check_files(loaded)
    log.configure(loaded.log.level)
    # Whatever the controller writes is its own.
    os.umask(0o077)
    try:
        asyncio.run(serve(loaded))
    except ConfigError as error:
        _fail("\n".join(error.problems))
    except (AuthorityError, ListenError, StateDirError, StoreError, UnreadableError) as error:
        _fail(str(error))
    except BaseExceptionGroup as group:
        for failure in group.exceptions:
            structlog.stdlib.get_logger(__name__).critical("a part of the controller failed", exc_info=failure)
        sys.exit(1)


def _allow_many_connections() -> None:
    """Raise the limit of open files to what the system allows: each host is a connection."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@app.command("backup")
def backup(
    file: Annotated[Path, typer.Argument(help="A file that is not there yet, or - for standard output.")],
    config: ConfigPath = None,
) -> None:
    """Write all that the controller knows, keys included, to a file, while it runs.

    Keep it where the keys may be. What Rollouts bring and /etc/hostmesh are not in it.
    """
    from hostmesh_controller import backup as backups
    from hostmesh_controller.metrics import build_version
    from hostmesh_controller.state_dir import StateDirError

    loaded = _load(config)
    if file == _STANDARD and sys.stdout.isatty():
        _fail("standard output is a terminal, and a backup is no text: name a file, or lead it to a program")
    try:
        with (
            nullcontext(sys.stdout.buffer) if file == _STANDARD else backups.written(file) as out,
            backups.as_owner(loaded.state_dir),
        ):
            told = backups.make(loaded.state_dir, loaded.trust_domain, build_version(), datetime.now(UTC), out)
    except (backups.BackupError, StateDirError) as error:
        _fail(str(error))
    typer.echo(f"backup of {loaded.state_dir} as of {told.made_at:%Y-%m-%d %H:%M:%S} UTC: {file}", err=True)


@app.command("restore")
def restore(
    file: Annotated[Path, typer.Argument(help="The backup, or - for standard input.")],
    config: ConfigPath = None,
    replace: Annotated[bool, typer.Option("--replace", help="What is there is moved aside.")] = False,
) -> None:
    """Put a backup back. The controller must be stopped.

    Hosts notice that their controller knows less than it did, and go on. Expel again whom you expelled since: what the
    backup does not know is gone.
    """
    from hostmesh_controller import backup as backups
    from hostmesh_controller.state_dir import StateDirError

    loaded = _load(config)
    try:
        with (
            nullcontext(sys.stdin.buffer) if file == _STANDARD else file.open("rb") as data,
            backups.as_owner(loaded.state_dir),
        ):
            told, kept = backups.restore(
                loaded.state_dir, loaded.trust_domain, data, datetime.now(UTC), replace=replace
            )
    except OSError as error:
        _fail(f"{file}: {error.strerror}")
    except (backups.BackupError, StateDirError) as error:
        _fail(str(error))
    typer.echo(f"restored {loaded.state_dir} as of {told.made_at:%Y-%m-%d %H:%M:%S} UTC, made by {told.version}")
    if kept is not None:
        typer.echo(f"what was there is in {kept}, with its keys: remove it once all is well")
    typer.echo("Now start the controller. What was changed or expelled after that time must be done again.")


@config_app.command("check")
def check(config: ConfigPath = None) -> None:
    """Read the configuration and say what holds."""
    loaded = _load(config)
    _check_files(loaded)
    for name, value in (
        ("state_dir", loaded.state_dir),
        ("trust_domain", loaded.trust_domain),
        ("domain", loaded.domain),
        ("addresses", ", ".join(loaded.addresses)),
        ("listen.agents", loaded.listen.agents),
        ("listen.join", loaded.listen.join),
        ("listen.admin", loaded.listen.admin),
        ("listen.admin_socket", loaded.listen.admin_socket),
        ("artifacts.dir", loaded.artifacts.dir),
        ("certificates.leaf_hours", loaded.certificates.leaf_hours),
        ("ca.provider", loaded.ca.provider),
        ("jwks.refresh_s", loaded.jwks.refresh_s),
        ("jwks.allow_cidrs", ", ".join(loaded.jwks.allow_cidrs) or "none"),
        ("jwks.ca_file", loaded.jwks.ca_file or "none"),
        ("attest.reattest_within", loaded.attest.reattest_within),
        ("log.level", loaded.log.level),
        ("root_namespace", loaded.root_namespace),
        ("mesh_config", loaded.mesh_config or "none"),
        ("admin.client_ca", loaded.admin.client_ca or "none"),
        *((f"admin.client {number}", _client(each)) for number, each in enumerate(loaded.admin.clients, 1)),
        ("audit.keep_days", loaded.audit.keep_days),
        ("audit.keep_records", loaded.audit.keep_records),
        *((f"limits.{name}", value) for name, value in asdict(loaded.limits).items()),
    ):
        typer.echo(f"{name} = {value}")


def _client(rule: ClientRule) -> str:
    wanted = ", ".join(f"{field}={pattern}" for field, pattern in rule.wanted)
    return f"{wanted} is {rule.name or 'who it names'}: {grants_text(rule.grants)}"


@app.command("version")
def version() -> None:
    """Show the version."""
    from hostmesh_controller.metrics import build_version

    typer.echo(build_version())


def own_addresses() -> tuple[str, ...]:
    """Return this machine's name and the addresses from which it calls others: what agents are told by default."""
    found = [socket.gethostname().lower()]
    for family, probe in ((socket.AF_INET, _PROBE_V4), (socket.AF_INET6, _PROBE_V6)):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as asked:
                asked.connect(probe)
                found.append(str(asked.getsockname()[0]))
        except OSError:
            continue  # no route of this family, or the kernel does not have it
    return tuple(dict.fromkeys(found))


def _load(path: Path | None) -> Config:
    try:
        if path is None and not DEFAULT_PATH.exists():
            return parse_config("", str(DEFAULT_PATH), own_addresses())
        return load_config(path or DEFAULT_PATH, own_addresses)
    except ConfigError as error:
        _fail("\n".join(error.problems))


def _check_files(config: Config) -> None:
    for rule in config.admin.clients:
        problem = check_grants(rule.grants, config.root_namespace)
        if problem is not None:
            _fail(f"admin.client: {problem}")
    try:
        load_mesh_file(config)
    except ConfigError as error:
        _fail("\n".join(error.problems))


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"hostmesh-controller: {message}\n")
    sys.exit(1)


def main() -> None:
    app(prog_name="hostmesh-controller")
