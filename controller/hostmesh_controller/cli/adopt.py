"""host services and adopt: programs that were found on hosts, and how they become services."""

from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.output import Format, Output, emit, key_text, note, plain, say, table, yaml_text


def services(
    ctx: typer.Context, host: Annotated[str, typer.Argument(metavar="HOST")], output: Output = Format.TABLE
) -> None:
    """Show what listens on a host, and what `hostmesh adopt` would make of it."""
    connection: Connection = ctx.obj
    items = connection.get(f"/v1/hosts/{part(host)}/services")["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (
            each["port"],
            each["addresses"],
            each["program"],
            _short(each["container"]) if each["container"] else each["unit"],
            each["uid"],
            each["protocol"],
            _state(each),
        )
        for each in items
    ]
    titles = ("PORT", "ADDRESSES", "PROGRAM", "UNIT", "UID", "PROTOCOL", "STATE")
    table(titles, rows, empty=f"nothing was found listening on host {host}")


def adopt(
    ctx: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="HOST[:PORT|/UNIT]", help="The program: by its port, unit, container or name.")
    ],
    service: Annotated[str, typer.Option(metavar="NAME", help="Name of the service; the unit's unless given.")] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Its namespace; the host's unless given.")
    ] = "",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port under which it is called; the program's unless given.")
    ] = 0,
    protocol: Annotated[str, typer.Option(metavar="NAME", help="What it speaks: http, grpc, tcp, …")] = "",
    service_account: Annotated[
        str, typer.Option(metavar="NAME", help="Its identity; the service's name unless given.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the objects as YAML, to be applied; change nothing.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Make a service of a program that was found listening on a host.

    It gets a WorkloadEntry, and a Service unless there is one of that name.
    """
    connection: Connection = ctx.obj
    host, found_port, unit = _what(what)
    body = {
        "port": found_port,
        "unit": unit,
        "service": service,
        "namespace": namespace,
        "protocol": protocol,
        "service_account": service_account,
        "service_port": port,
        "dry_run": dry_run,
    }
    result = connection.post(f"/v1/hosts/{part(host)}/adopt", body)
    for each in result["warnings"]:
        note(f"warning: {each['message']}")
    if output is not Format.TABLE:
        emit(result, output)
    elif dry_run:
        say(plain(yaml_text(result["documents"], many=True)).rstrip("\n"))
    else:
        for each in result["objects"]:
            say(f"{key_text(each)} {each['action']}")


def _what(text: str) -> tuple[str, int, str]:
    host, slash, unit = text.partition("/")
    if slash:
        if not unit:
            raise typer.BadParameter(f"'{text}' names no unit after the '/'")
        return host, 0, unit
    host, colon, port = text.partition(":")
    if colon and (not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535):
        raise typer.BadParameter(f"'{text}' is not HOST, HOST:PORT or HOST/UNIT")
    return host, int(port) if colon else 0, ""


def _state(each: dict[str, Any]) -> str:
    if each["adopted"]:
        return f"workload {', '.join(each['adopted'])}"
    return f"left alone: {each['refused']}" if each["refused"] else f"could be service {each['would_be']}"


def _short(container: str) -> str:
    runtime, _, name = container.partition(":")
    return f"{runtime}:{name[:12]}"
