"""explain: what a call from a host would meet, and why."""

from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, cell_text, emit, note, say


def explain(
    ctx: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="Where the program runs.")],
    target: Annotated[str, typer.Argument(metavar="URL", help="What it calls: a URL, or HOST:PORT.")],
    method: Annotated[str, typer.Option("--method", "-X", metavar="METHOD")] = "GET",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="Of the request; may be repeated.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="IP", help="What the name resolves to, for a name outside the mesh.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Tell which rule, listener, chain, route, cluster and endpoints a call meets, and why."""
    connection: Connection = ctx.obj
    body = {"host": host, "target": target, "method": method, "headers": _headers(header or []), "address": address}
    story = connection.post("/v1/explain", body)
    if output is Format.TABLE:
        _tell(story)
    else:
        emit(story, output)
    if not story["reached"]:
        raise typer.Exit(1)


def _headers(given: list[str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise typer.BadParameter(f"'{text}' is not a header: write NAME:VALUE", param_hint="--header")
        result[name.strip()] = value.strip()
    return result


def _tell(story: dict[str, Any]) -> None:
    proxy = story["proxy"]
    if not proxy["connected"]:
        note(f"note: {story['host']} is not connected: this is what it is due, it may have an older configuration")
    elif not proxy["settled"]:
        note(f"note: {story['host']} has not acknowledged all of this yet")
    width = max(len(each["stage"]) for each in story["steps"])
    for each in story["steps"]:
        say(f"{each['stage']:<{width}}  {cell_text(each['what'])}")
        if each["why"]:
            say(f"{'':<{width}}    {cell_text(each['why'])}")
        facts = ", ".join(f"{name} {cell_text(value)}" for name, value in each["details"].items())
        if facts:
            say(f"{'':<{width}}    {facts}")
    say(f"=> {cell_text(story['verdict'])}")
