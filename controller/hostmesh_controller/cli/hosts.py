"""register and host: which machines belong to the mesh."""

import sys
from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.output import Format, Output, age, emit, key_text, note, say, seconds_of, table
from hostmesh_controller.cli.tokens import print_join

app = typer.Typer(no_args_is_help=True, help="Hosts: the machines of the mesh.")


def register(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host's name in the mesh.")],
    address: Annotated[
        list[str], typer.Option("--address", metavar="IP", help="IP address under which other hosts reach it.")
    ],
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of its workloads.")
    ] = None,
    service_account: Annotated[str, typer.Option(metavar="NAME", help="Identity of the workload.")] = "default",
    label: Annotated[list[str], typer.Option("--label", "-l", metavar="KEY=VALUE", help="Label of the workload.")] = [],  # noqa: B006 - typer copies it
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
    output: Output = Format.TABLE,
) -> None:
    """Tell the mesh of a host and get the string with which it joins."""
    connection: Connection = ctx.obj
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
    result = connection.post("/v1/register", body)
    if output is not Format.TABLE:
        emit(result, output)
        return
    for each in result["objects"]:
        note(f"{key_text(each)} {each['action']}")
    print_join(result)


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


@app.command("remove")
def remove(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST")],
    workloads: Annotated[bool, typer.Option("--workloads", help="Also delete its WorkloadEntries.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Put a host out of the mesh: its stream is cut and its certificates are not renewed.

    With a member of a group its WorkloadEntry goes. The group's join token still lets it in, until it is revoked.
    """
    connection: Connection = ctx.obj
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Remove host {host} from the mesh?", abort=True, err=True)
    result: dict[str, Any] = connection.request(
        "DELETE", f"/v1/hosts/{part(host)}", params={"workloads": str(workloads).lower()}
    )
    if output is not Format.TABLE:
        emit(result, output)
        return
    for each in result["objects"]:
        say(f"{key_text(each)} {each['action']}")


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
