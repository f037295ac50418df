"""audit and version."""

from typing import Annotated

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, emit, table


def audit(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=1000, help="How many, newest first.")] = 50,
    output: Output = Format.TABLE,
) -> None:
    """Show who changed what, newest first; -o json has the objects before and after."""
    connection: Connection = ctx.obj
    items = connection.get("/v1/audit", {"limit": limit})["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (each["at"][:19].replace("T", " "), each["actor"], each["action"], each["object"], each["revision"])
        for each in items
    ]
    table(("AT (UTC)", "ACTOR", "ACTION", "OBJECT", "REVISION"), rows, empty="nothing was changed yet")


def version(
    ctx: typer.Context,
    server: Annotated[bool, typer.Option("--server", help="Ask the controller for its version too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the version of this command, and of the controller if asked."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        client = installed("hostmesh")
    except PackageNotFoundError:
        client = "0+unknown"
    versions = {"client": client}
    if server:
        connection: Connection = ctx.obj
        versions["controller"] = connection.get("/v1/version")["version"]
    if output is not Format.TABLE:
        emit(versions, output)
        return
    for part, text in versions.items():
        typer.echo(f"{part}: {text}")
