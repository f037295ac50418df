"""proxy: what each host's Envoy has, and what it refused."""

from typing import Annotated, Any, Final

import typer

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.output import Format, Output, age, cell_text, emit, say, table

app = typer.Typer(no_args_is_help=True, help="Proxies: one Envoy on each host.")

DENIED: Final = frozenset({"expelled", "quarantined"})
"""States of a host that cannot be connected."""
_SHOWN_CHARS: Final = 400
"""Of a refusal's message, in the table: JSON and YAML have all of it."""


@app.command("status")
def status(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Argument(metavar="HOST", help="Only this host, in detail.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show who is connected, what they acknowledged and what they refused."""
    connection: Connection = ctx.obj
    items = [connection.get(f"/v1/proxies/{part(host)}")] if host else connection.get("/v1/proxies")["items"]
    if output is not Format.TABLE:
        emit(items[0] if host else items, output)
        return
    table(
        ("HOST", "CONNECTED", "CONFIG", "ACKED", "NACKS", "ENVOY", "CAPTURE", "READY", "CERT"),
        [_row(each) for each in items],
        empty="no hosts are registered",
    )
    if host:
        _details(items[0])
    for each in items:
        if each["denied_because"]:
            typer.echo(f"\n{each['host']} is {each['state']}: {each['denied_because']}")
        for nack in each["nacks"]:
            say(
                f"\n{each['host']} refused {cell_text(_short(nack['type']))} {cell_text(nack['names'])} "
                f"{age(nack['at'])} ago: {cell_text(_end_of(nack['message']))}"
            )
        for problem in each["problems"]:
            say(f"\n{each['host']}: {cell_text(problem)}")


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    days = each["certificate_days_left"]
    return (
        each["host"],
        _connected(each),
        ("current" if each["settled"] else "waiting") if each["connected"] else None,
        age(each["acked_at"]),
        len(each["nacks"]),
        each["envoy"],
        each["capture"],
        f"{len(each['ready'])}/{len(each['workloads'])}",
        None if days is None else f"{days:.1f}d",
    )


def _connected(each: dict[str, Any]) -> str:
    if each["state"] in DENIED:
        return str(each["state"])
    return age(each["since"]) if each["connected"] else "no"


def _details(each: dict[str, Any]) -> None:
    say("")
    rows = [
        (_short(name), state["subscribed"], state["held"], age(state["acked_at"]))
        for name, state in sorted(each["types"].items())
    ]
    table(("TYPE", "ASKED FOR", "HELD", "ACKED"), rows, empty="not connected: no subscriptions")


def _end_of(message: str) -> str:
    """Return the end of Envoy's message: it may begin with the whole resource, and says at the end what is wrong."""
    return message if len(message) <= _SHOWN_CHARS else f"… {message[-_SHOWN_CHARS:]}"


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]
