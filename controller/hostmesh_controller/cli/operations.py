"""audit and version."""

from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.kinds import kind_of
from hostmesh_controller.cli.output import Format, Output, emit, say, seconds_of, table


def audit(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=1000, help="How many, newest first.")] = 50,
    actor: Annotated[str | None, typer.Option(metavar="NAME", help="Only what this one did.")] = None,
    action: Annotated[str | None, typer.Option(metavar="NAME", help="Only this: create, update, token.add, …")] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help="Only objects of this kind.")] = None,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="Only in this namespace; - for what is in none."),
    ] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only of the last so long: 2h, 7d.")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was refused.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show who changed what, or was not let, newest first; -o json has the objects before and after."""
    connection: Connection = ctx.obj
    query: dict[str, Any] = {"limit": limit, "actor": actor, "action": action, "namespace": namespace}
    query |= {"kind": kind_of(kind).kind if kind else None, "since_s": seconds_of(since) if since else None}
    query["result"] = "denied" if denied else None
    wanted = {name: value for name, value in query.items() if value is not None}
    items = connection.get("/v1/audit", wanted)["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (
            each["at"][:19].replace("T", " "),
            each["actor"],
            " ".join(part for part in (each["way"], each["proof"], each["address"]) if part),
            each["action"],
            each["object"],
            each["revision"],
            each["result"] if each["reason"] is None else f"{each['result']}: {each['reason']}",
        )
        for each in items
    ]
    titles = ("AT (UTC)", "ACTOR", "BY", "ACTION", "OBJECT", "REVISION", "RESULT")
    table(titles, rows, empty="there is no such record" if len(wanted) > 1 else "nothing was changed yet")


def installed_version() -> str:
    """Return the version of this command, "0+unknown" when run from a tree that is not installed."""
    # Late, like the controller's own that brings the metrics' library: it takes time to find.
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("hostmesh")
    except PackageNotFoundError:
        return "0+unknown"


def version(
    ctx: typer.Context,
    server: Annotated[bool, typer.Option("--server", help="Ask the controller for its version too.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show the version of this command, and of the controller if asked."""
    versions = {"client": installed_version()}
    if server:
        connection: Connection = ctx.obj
        versions["controller"] = connection.get("/v1/version")["version"]
    if output is not Format.TABLE:
        emit(versions, output)
        return
    for part, text in versions.items():
        say(f"{part}: {text}")
