"""host: which machines belong to the mesh."""

import sys
from getpass import getuser
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.output import Format, Output, age, emit, key_text, note, say, table
from hostmesh_controller.cli.registering import (
    SSH,
    Entry,
    HostKey,
    Identity,
    KnownHosts,
    LoginPassword,
    Passphrase,
    Sudo,
    SudoPassword,
    read_ssh,
)

if TYPE_CHECKING:
    from hostmesh_controller.cli.ssh.place import Place

app = typer.Typer(no_args_is_help=True, help="Hosts: the machines of the mesh.")

SshOrBare = Annotated[
    str | None,
    typer.Option(
        metavar="[USER@ADDRESS[:PORT]]",
        help="Do it over SSH, all of it; as this user to the host's first address unless given.",
        rich_help_panel=SSH,
    ),
]


class BareSsh(TyperCommand):
    """A command whose --ssh may stand without a value, which typer has no word for; it is "" then."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        after = [*args[1:], "-"]
        read = [
            "--ssh=" if each == "--ssh" and following.startswith("-") else each
            for each, following in zip(args, after, strict=True)
        ]
        return super().parse_args(ctx, read)


@app.command("list")
def list_hosts(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show all hosts."""
    connection: Connection = ctx.obj
    items = connection.get("/v1/hosts")["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (
            each["name"],
            each["addresses"],
            each["state"],
            each["connected"],
            lease_text(each),
            f"{len(each['ready'])}/{len(each['workloads'])}",
            f"{len(each['workloads']) - len(each['unhealthy'])}/{len(each['workloads'])}",
            each["group"],
            age(each["last_report_at"]),
        )
        for each in items
    ]
    table(
        ("NAME", "ADDRESSES", "STATE", "CONNECTED", "LEASE", "READY", "HEALTHY", "GROUP", "LAST REPORT"),
        rows,
        empty="no hosts are registered",
    )


def lease_text(host: dict[str, Any]) -> str:
    """What is known of a host. An agent that hangs keeps its connection for two minutes, and reports nothing."""
    late = host["overdue"] and host["lease"] == "alive"
    return ", ".join([host["lease"], *["no reports"] * late, *["envoy down"] * host["envoy_down"]])


@app.command("leases")
def leases(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show how many hosts live or are missing, and the limits of the guard that then withdraws nobody."""
    connection: Connection = ctx.obj
    found = connection.get("/v1/leases")
    if output is not Format.TABLE:
        emit(found, output)
        return
    rows = [(sign, count) for sign, count in found["hosts"].items()]
    table(("LEASE", "HOSTS"), [*rows, ("envoy down", found["envoy_down"])], empty="no hosts have joined")
    limits = found["limits"]
    say(
        f"panic guard: {'holds those who are missing' if found['panic_guard'] else 'off'}; it withdraws nobody while "
        f"more than {limits['panic_percent']} % and at least {limits['panic_hosts']} hosts are missing at once"
    )


@app.command("show")
def show(
    ctx: typer.Context, host: Annotated[str, typer.Argument(metavar="HOST")], output: Output = Format.YAML
) -> None:
    """Show one host: facts, workloads, certificates, sockets found on it."""
    connection: Connection = ctx.obj
    result = connection.get(f"/v1/hosts/{part(host)}")
    emit(result, Format.YAML if output is Format.TABLE else output)


@app.command("remove", cls=BareSsh)
def remove(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST")],
    workloads: Annotated[bool, typer.Option("--workloads", help="Also delete its WorkloadEntries.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    ssh: SshOrBare = None,
    identity: Identity = None,
    sudo: Sudo = False,
    host_key: HostKey = [],  # noqa: B006 - typer copies it
    known_hosts: KnownHosts = None,
    sudo_password_file: SudoPassword = None,
    ssh_password_file: LoginPassword = None,
    passphrase_file: Passphrase = None,
    output: Output = Format.TABLE,
) -> None:
    """Put a host out of the mesh: its stream is cut and its certificates are not renewed.

    With a member of a group its WorkloadEntry goes. The group's join token still lets it in, until it is revoked.
    With --ssh the host leaves first, and its packages are purged.
    """
    connection: Connection = ctx.obj
    place = None if ssh is None else read_ssh(ssh) if ssh else _first_address(host, connection)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Remove host {host} from the mesh?", abort=True, err=True)
    if place is not None:
        entry = Entry(
            identity, sudo, tuple(host_key), known_hosts, sudo_password_file, ssh_password_file, passphrase_file
        )
        _remove_over_ssh(host, place, entry, connection, workloads, output)
        return
    result: dict[str, Any] = connection.request(
        "DELETE", f"/v1/hosts/{part(host)}", params={"workloads": str(workloads).lower()}
    )
    if output is not Format.TABLE:
        emit(result, output)
        return
    for each in result["objects"]:
        say(f"{key_text(each)} {each['action']}")


def _first_address(host: str, connection: Connection) -> "Place":
    """Where a host is reached if nothing else is said, as ssh would: by this user's name. It is told.

    Raises:
        CliError: the host is not known, or has no address.
    """
    from hostmesh_controller.cli.ssh.place import Place

    addresses = connection.get(f"/v1/hosts/{part(host)}")["addresses"]
    if not addresses:
        raise CliError(f"error: {host} has no address: give --ssh USER@ADDRESS")
    place = Place(getuser(), addresses[0])
    note(f"{host}: by SSH to {place}, its first address; --ssh USER@ADDRESS names another")
    return place


def _remove_over_ssh(
    host: str, place: "Place", entry: Entry, connection: Connection, workloads: bool, output: Format
) -> None:
    from hostmesh_controller.cli.ssh.fleet import run_all, show, teller
    from hostmesh_controller.cli.ssh.leaving import Leaving
    from hostmesh_controller.cli.ssh.session import Access

    access = Access(place, entry.keys(entry.pins), entry.secrets(), entry.identity, entry.sudo)
    results = run_all([Leaving(host, access, connection, teller(host), workloads)])
    show(results, output)
    if any(each.failed for each in results):
        raise typer.Exit(1)


@app.command("expel")
def expel(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept with the host.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Refuse a host everywhere within seconds: it gets nothing, nobody calls it, nobody lets it call.

    Its open connections with other hosts are closed. It stays registered, and cannot join until it is readmitted.
    """
    connection: Connection = ctx.obj
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Expel host {host} from the mesh, and close its connections?", abort=True, err=True)
    result = connection.post(f"/v1/hosts/{host}/expel", {"reason": reason})
    if output is not Format.TABLE:
        emit(result, output)
        return
    typer.echo(f"host/{host} {result['state']}")


@app.command("readmit")
def readmit(
    ctx: typer.Context, host: Annotated[str, typer.Argument(metavar="HOST")], output: Output = Format.TABLE
) -> None:
    """Let a host that was expelled or quarantined join again, with a new token; its old certificates stay refused."""
    connection: Connection = ctx.obj
    result = connection.post(f"/v1/hosts/{host}/readmit", {})
    if output is not Format.TABLE:
        emit(result, output)
        return
    typer.echo(f"host/{host} may join again; next: hostmesh token create {host}, and on the host: join --force")


@app.command("confirm")
def confirm(
    ctx: typer.Context, host: Annotated[str, typer.Argument(metavar="HOST")], output: Output = Format.TABLE
) -> None:
    """Let a host take the configuration that it holds back, because it takes most of what it had away."""
    connection: Connection = ctx.obj
    result = connection.post(f"/v1/hosts/{part(host)}/confirm", {})
    if output is not Format.TABLE:
        emit(result, output)
        return
    say(f"host/{host} takes what it held back")
