"""host pending, approve and deny: hosts that wait for an operator. And join-string, with which they come."""

from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, age, emit, key_text, note, table

Which = Annotated[str, typer.Argument(metavar="NAME|ID", help="The host's name, or the id of its entry.")]


def pending(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show the hosts that wait for approval. Compare the key with the one that the host shows."""
    connection: Connection = ctx.obj
    items = connection.get("/v1/pending")["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (
            each["id"],
            each["host"],
            each["address"],
            each["attestor"],
            each["state"],
            age(each["asked_at"]),
            each["key_fingerprint"],
            each["evidence"],
        )
        for each in items
    ]
    titles = ("ID", "NAME", "ADDRESS", "ATTESTOR", "STATE", "SINCE", "KEY", "EVIDENCE")
    table(titles, rows, empty="no host waits")


def approve(ctx: typer.Context, which: Which, output: Output = Format.TABLE) -> None:
    """Let a host in that waits, with the key that it showed. One that is not registered is, at its address."""
    _decide(ctx, which, "approve", output)


def deny(ctx: typer.Context, which: Which, output: Output = Format.TABLE) -> None:
    """Keep a host out that waits, as long as it asks with this key."""
    _decide(ctx, which, "deny", output)


def join_string(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Print the join string for hosts that prove who they are (hostmesh-agent join --attest). It holds no secret."""
    connection: Connection = ctx.obj
    result = connection.get("/v1/join-string")
    if output is not Format.TABLE:
        emit(result, output)
        return
    typer.echo(result["join_string"])


def _decide(ctx: typer.Context, which: str, verb: str, output: Format) -> None:
    connection: Connection = ctx.obj
    result: dict[str, Any] = connection.post(f"/v1/pending/{which}/{verb}", {})
    if output is not Format.TABLE:
        emit(result, output)
        return
    for each in result.get("objects", ()):
        note(f"{key_text(each)} {each['action']}")
    typer.echo(f"host {result['host']} {result['state']}, key {result['key_fingerprint']}")
