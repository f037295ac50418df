"""register: a host is told to the mesh, and joined over SSH where the operator asks for that."""

import sys
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, emit, key_text, note, seconds_of
from hostmesh_controller.cli.tokens import print_join

if TYPE_CHECKING:
    from hostmesh_controller.cli.ssh.host_keys import HostKeys
    from hostmesh_controller.cli.ssh.joining import Wanted
    from hostmesh_controller.cli.ssh.packages import Source
    from hostmesh_controller.cli.ssh.place import Place
    from hostmesh_controller.cli.ssh.secrets import Secrets

SSH = "Over SSH"
Ssh = Annotated[
    str | None,
    typer.Option(metavar="USER@ADDRESS[:PORT]", help="Do it over SSH, all of it.", rich_help_panel=SSH),
]
Identity = Annotated[
    Path | None, typer.Option(metavar="FILE", help="SSH private key; the SSH agent's and the user's unless given.")
]
Sudo = Annotated[bool, typer.Option("--sudo", help="Become root by sudo.")]
HostKey = Annotated[
    list[str], typer.Option(metavar="SHA256:…", help="The SSH host key that is right, as `ssh-keygen -lf` shows it.")
]
KnownHosts = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="SSH host keys to trust; the user's known_hosts and earlier pins unless given."),
]
SudoPassword = Annotated[
    str | None, typer.Option(metavar="FILE|fd:N", help="Where sudo's password is; asked for unless given.")
]
LoginPassword = Annotated[
    str | None, typer.Option(metavar="FILE|fd:N", help="Log in with the password that is there, in place of a key.")
]
Passphrase = Annotated[str | None, typer.Option(metavar="FILE|fd:N", help="Where the key's passphrase is.")]


def register(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Argument(metavar="[HOST]", help="The host's name in the mesh.")] = None,
    address: Annotated[
        list[str], typer.Option("--address", metavar="IP", help="IP address under which other hosts reach it.")
    ] = [],  # noqa: B006 - typer copies it
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of its workloads.")
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(metavar="NAME", help="Identity of the workload; `default` for a new one unless given.")
    ] = None,
    label: Annotated[list[str], typer.Option("--label", "-l", metavar="KEY=VALUE", help="Label of the workload.")] = [],  # noqa: B006 - typer copies it
    host_label: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE", help="Label of the host itself, by which Rollouts choose; others that it has stay."
        ),
    ] = [],  # noqa: B006 - typer copies it
    port: Annotated[
        list[str], typer.Option("--port", metavar="[NAME=]NUMBER", help="Port on which the workload listens.")
    ] = [],  # noqa: B006 - typer copies it
    workload: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the workload; the host's unless given.")
    ] = None,
    ssh_host_key: Annotated[
        list[str],
        typer.Option(
            metavar="SHA256:…",
            help="Fingerprint of an SSH host key by which it may join, as `ssh-keygen -lf` shows it.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long the join string can be used.")] = "15m",
    no_token: Annotated[bool, typer.Option("--no-token", help="Make no join string: the host has joined.")] = False,
    ssh: Ssh = None,
    filename: Annotated[
        str | None, typer.Option("--filename", "-f", metavar="FILE", help="Join the hosts of this list over SSH.")
    ] = None,
    identity: Identity = None,
    sudo: Sudo = False,
    host_key: HostKey = [],  # noqa: B006 - typer copies it
    known_hosts: KnownHosts = None,
    sudo_password_file: SudoPassword = None,
    ssh_password_file: LoginPassword = None,
    passphrase_file: Passphrase = None,
    repository: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Package repository to configure on the host: the address above apt/ and rpm/."
        ),
    ] = "",
    repository_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its public key, as text (hostmesh.asc).")
    ] = None,
    package: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Package file (.deb, .rpm) to install, in place of a repository.")
    ] = [],  # noqa: B006 - typer copies it
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="tar with the packages (make bundle): for hosts that reach no repository."),
    ] = None,
    verify: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Service of the mesh that the host must be able to call at the end: http://NAME/."
        ),
    ] = "",
    parallel: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=64, help="How many hosts at once.")] = 16,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be changed, over SSH on the host too; change nothing.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Tell the mesh of a host and get the string with which it joins; or join it over SSH, or many of a list."""
    connection: Connection = ctx.obj
    if ssh is None and filename is None:
        if host is None or not (address or no_token):
            raise typer.BadParameter("name the HOST and its --address; or give --ssh, or -f with a list of hosts")
    elif no_token:
        raise typer.BadParameter("--no-token goes with neither --ssh nor -f: a host joins by a token")
    body = {
        "host": host,
        "addresses": address,
        "namespace": namespace,
        "service_account": service_account,
        "labels": dict(_pair(each, "--label") for each in label),
        "ports": [_port(each) for each in port],
        "workload": workload,
        "ssh_host_keys": ssh_host_key,
        "ttl_s": seconds_of(ttl),
    }
    if host_label:
        # Not told where there are none: an older controller does not know the word.
        body["host_labels"] = dict(_pair(each, "--host-label") for each in host_label)
    if ssh is None and filename is None:
        _print(connection.post("/v1/register", {**body, "token": not no_token, "dry_run": dry_run}), output, dry_run)
        return
    if (filename is not None) == (ssh is not None) or (filename is not None and host is not None):
        raise typer.BadParameter("give HOST with --ssh, or -f with a list of hosts, not both")
    entry = Entry(
        identity, sudo, tuple(host_key), known_hosts, sudo_password_file, ssh_password_file, passphrase_file, dry_run
    )
    with ExitStack() as stack:
        source = _source(repository, repository_key, package, bundle, stack)
        if filename is not None:
            wanted = _of_list(filename, entry, source)
        else:
            assert ssh is not None
            wanted = [_of_line(host, ssh, body, entry, source, verify)]
        _join_all(wanted, connection, parallel, dry_run, output)


def _print(result: dict[str, Any], output: Format, dry_run: bool) -> None:
    if output is not Format.TABLE:
        emit(result, output)
        return
    for each in result["objects"]:
        note(f"{key_text(each)} {each['action']}{' (dry run)' * dry_run}")
    if "join_string" in result:
        print_join(result)


@dataclass(frozen=True, slots=True)
class Entry:
    """How to come into hosts, as the command line says it."""

    identity: Path | None
    sudo: bool
    pins: tuple[str, ...]
    known_hosts: Path | None
    sudo_password: str | None
    login_password: str | None
    passphrase: str | None
    dry_run: bool = False

    def secrets(self) -> "Secrets":
        """What the files hold; each is read once.

        Raises:
            CliError: one is open to others, or cannot be read.
        """
        from hostmesh_controller.cli.ssh.secrets import Secrets

        given = {"sudo": self.sudo_password, "login": self.login_password, "passphrase": self.passphrase}
        made = Secrets({kind: source for kind, source in given.items() if source})
        made.read_all()
        return made

    def keys(self, pins: tuple[str, ...]) -> "HostKeys":
        from hostmesh_controller.cli.ssh.host_keys import HostKeys, lasting, operators_file, read_pin, state_file

        try:
            read = tuple(read_pin(each) for each in pins)
        except ValueError as error:
            raise typer.BadParameter(f"--host-key {error}") from None
        files = (lasting(self.known_hosts),) if self.known_hosts is not None else (operators_file(), state_file())
        ask = _ask if sys.stdin.isatty() and sys.stderr.isatty() else None
        return HostKeys(read, files, ask=ask, remember=not self.dry_run)


_asking = threading.Lock()


def _ask(place: "Place", kind: str, fingerprint: str) -> bool:
    with _asking:
        note(f"The host key of {place} is unknown: {kind} {fingerprint}")
        return typer.confirm("Is it the right one?", default=False, err=True)


def _source(
    repository: str, repository_key: Path | None, package: list[Path], bundle: Path | None, stack: ExitStack
) -> "Source":
    from hostmesh_controller.cli.ssh.packages import Source, read_files, read_key, unpacked

    if sum(map(bool, (repository, package, bundle))) > 1:
        raise typer.BadParameter("give one of --repository, --package and --bundle")
    if bool(repository) != (repository_key is not None):
        raise typer.BadParameter("--repository and --repository-key go together")
    if repository and (not repository.startswith(("https://", "http://", "file:///")) or len(repository.split()) != 1):
        raise typer.BadParameter(f"--repository '{repository}' is no URL")
    if bundle is not None:
        return Source(files=stack.enter_context(unpacked(bundle)))
    return Source(repository, "" if repository_key is None else read_key(repository_key), read_files(package))


def _of_line(host: str | None, ssh: str, body: dict[str, Any], entry: Entry, source: "Source", verify: str) -> "Wanted":
    from hostmesh_controller.cli.ssh.joining import Wanted
    from hostmesh_controller.cli.ssh.session import Access
    from hostmesh_controller.cli.ssh.verifying import read_verify

    if host is None:
        raise typer.BadParameter("name the HOST")
    place = read_ssh(ssh)
    try:
        url = read_verify(verify) if verify else ""
    except ValueError as error:
        raise typer.BadParameter(f"--verify {error}") from None
    if not body["addresses"] and place.ip is None:
        raise typer.BadParameter("--ssh names no IP address: give --address")
    access = Access(place, entry.keys(entry.pins), entry.secrets(), entry.identity, entry.sudo)
    return Wanted(host, access, body, source, url)


def read_ssh(text: str) -> "Place":
    from hostmesh_controller.cli.ssh.place import read_place

    try:
        return read_place(text)
    except ValueError as error:
        raise typer.BadParameter(f"--ssh {error}") from None


def _of_list(filename: str, entry: Entry, source: "Source") -> "list[Wanted]":
    from hostmesh_controller.cli.sources import read_sources
    from hostmesh_controller.cli.ssh.hosts_file import read_hosts
    from hostmesh_controller.cli.ssh.joining import Wanted
    from hostmesh_controller.cli.ssh.session import Access

    if entry.pins:
        raise typer.BadParameter("with -f, each host has its `hostKey` in the list")
    (text,) = read_sources([filename])[:1]
    secrets = entry.secrets()
    return [
        Wanted(
            each.name,
            Access(each.place, entry.keys(each.pins), secrets, each.identity, each.sudo),
            each.body(),
            source,
            each.verify,
        )
        for each in read_hosts(text.name, text.text, sudo=entry.sudo, identity=entry.identity)
    ]


def _join_all(wanted: "list[Wanted]", connection: Connection, parallel: int, dry_run: bool, output: Format) -> None:
    from hostmesh_controller.cli.ssh.fleet import run_all, show, teller
    from hostmesh_controller.cli.ssh.joining import Joining

    results = run_all([Joining(each, connection, teller(each.name), dry_run=dry_run) for each in wanted], parallel)
    show(results, output)
    if any(each.failed for each in results):
        raise typer.Exit(1)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise typer.BadParameter(f"{option} '{text}' is not KEY=VALUE")
    return key, value


def _port(text: str) -> dict[str, object]:
    name, number = text.rsplit("=", 1) if "=" in text else ("", text)
    if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= 65535:
        raise typer.BadParameter(f"--port '{text}' is not NUMBER or NAME=NUMBER")
    return {"name": name or f"tcp-{number}", "number": int(number)}
