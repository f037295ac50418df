"""jwks: the keys that RequestAuthentications name by URL."""

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, age, emit, table

app = typer.Typer(no_args_is_help=True, help="Keys of tokens: fetched for RequestAuthentications.")


@app.command("list")
def list_(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show from where keys are fetched, for whom, and how that goes."""
    connection: Connection = ctx.obj
    items = connection.get("/v1/jwks")["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (each["url"], ", ".join(each["users"]), each["state"], ", ".join(each["keys"]), age(each["fetched_at"]))
        for each in items
    ]
    table(("URL", "USERS", "STATE", "KEYS", "FETCHED"), rows, empty="no RequestAuthentication names keys by URL")
    for each in items:
        if each["error"]:
            meaning = "every token is refused" if each["state"] == "none" else "older keys count"
            typer.echo(f"\n{each['url']}: {meaning}: {each['error']}")
