"""mtls: who still speaks plaintext, and where mutual TLS can be demanded of everybody."""

from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, age, cell_text, emit, seconds_of, table

app = typer.Typer(no_args_is_help=True, help="Mutual TLS: who speaks it, and where it can be demanded.")

_CALLERS_SHOWN = 10
"""Of one port, in the table: JSON and YAML have all."""

Namespace = Annotated[str, typer.Option("--namespace", "-n", metavar="NS", help="Only of this namespace.")]
Workload = Annotated[list[str] | None, typer.Argument(metavar="[WORKLOAD]...", help="Only these workloads.")]


@app.command("readiness")
def readiness(
    ctx: typer.Context,
    workload: Workload = None,
    namespace: Namespace = "",
    window: Annotated[
        str, typer.Option(metavar="TIME", help="A port is ready after so long without plaintext: 24h, 7d.")
    ] = "24h",
    output: Output = Format.TABLE,
) -> None:
    """Tell for each port whether STRICT would refuse anybody that was seen. Exit code 0 only if all are ready."""
    connection: Connection = ctx.obj
    asked = {"namespace": namespace, "workload": workload or [], "window_s": seconds_of(window)}
    answer = connection.get("/v1/mtls/readiness", asked)
    if output is Format.TABLE:
        _tell(answer["items"])
    else:
        emit(answer, output)
    if not answer["ready"]:
        raise typer.Exit(1)


def _tell(items: list[dict[str, Any]]) -> None:
    rows = [
        (
            f"{each['namespace']}/{each['workload']}",
            each["port"],
            each["mode"],
            each["state"].upper(),
            age(each["watched_since"]),
            each["why"],
        )
        for each in items
    ]
    titles = ("WORKLOAD", "PORT", "MODE", "STATE", "WATCHED", "WHY")
    table(titles, rows, empty="no workload of the mesh is meant")
    for each in items:
        callers = each["plaintext"] if each["state"] == "plaintext" else []
        for caller in callers[:_CALLERS_SHOWN]:
            typer.echo(_line(each, caller))
        if len(callers) > _CALLERS_SHOWN:
            typer.echo(f"  and {len(callers) - _CALLERS_SHOWN} more; see -o json")


def _line(each: dict[str, Any], caller: dict[str, Any]) -> str:
    who = caller["caller"] or "others"
    if caller["host"]:
        on_it = f": {', '.join(caller['workloads'])}" if caller["workloads"] else ""
        who += f" (host {caller['host']}{on_it})"
    how = "by TLS of its own" if caller["own_tls"] else "in plaintext"
    port = f"{each['namespace']}/{each['workload']} port {each['port']}"
    count = f"{caller['count']} calls" if caller["count"] else "a connection that lasts"
    return (
        f"\n{cell_text(port)} is called {how} by {cell_text(who)}: {count}, last {age(caller['last_seen'])} ago\n"
        + (f"  {cell_text(caller['why'])}")
    )


@app.command("report")
def report(
    ctx: typer.Context,
    workload: Workload = None,
    namespace: Namespace = "",
    plaintext: Annotated[bool, typer.Option("--plaintext", help="Only callers without mutual TLS.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show who calls which port, how, and when last, as it was seen."""
    connection: Connection = ctx.obj
    asked = {"namespace": namespace, "workload": workload or [], "plaintext": plaintext}
    items = connection.get("/v1/calls", asked)["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (
            f"{each['namespace']}/{each['workload']}",
            each["port"],
            each["security"],
            _caller(each),
            each["methods"],
            each["count"],
            each["denied"],
            age(each["first_seen"]),
            age(each["last_seen"]),
        )
        for each in items
    ]
    titles = ("WORKLOAD", "PORT", "SECURITY", "CALLER", "METHODS", "CALLS", "DENIED", "FIRST", "LAST")
    table(titles, rows, empty="no calls were seen")


def _caller(each: dict[str, Any]) -> str:
    name = each["caller"] or "others"
    return f"{name} ({each['host']})" if each.get("host") else name
