"""authz: who may do what, by the policies that hold."""

import json
from typing import Annotated, Any

import typer

from hostmesh_controller.cli import authz_suggest
from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, cell_text, emit

app = typer.Typer(no_args_is_help=True, help="Who may do what, by the AuthorizationPolicies that hold, or could.")
app.command("suggest")(authz_suggest.suggest)


@app.command()
def explain(
    ctx: typer.Context,
    caller: Annotated[
        str,
        typer.Option("--from", metavar="WHO", help="A host, NAMESPACE/WORKLOAD, SPIFFE ID, or an IP (no certificate)."),
    ],
    target: Annotated[str, typer.Option("--to", metavar="WHERE", help="A URL, HOST:PORT or NAMESPACE/WORKLOAD.")],
    path: Annotated[str | None, typer.Option(metavar="PATH", help="Of the request; default: the URL's, or /.")] = None,
    method: Annotated[str | None, typer.Option("--method", "-X", metavar="METHOD", help="Default: GET.")] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="May be repeated.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="N", help="Of the service, or of the workload.")] = None,
    source_ip: Annotated[str | None, typer.Option(metavar="IP", help="Where the connection comes from.")] = None,
    server_name: Annotated[str, typer.Option(metavar="NAME", help="Of the TLS handshake.")] = "",
    claims: Annotated[
        str | None, typer.Option(metavar="JSON", help='Of a valid token, such as {"iss": "…", "sub": "…"}.')
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Tell whether a request is allowed, by which rule, and why the others do not hold.

    The exit code is 0 where it is allowed, 1 where it is not (or where an external authorizer decides).
    """
    connection: Connection = ctx.obj
    body = {
        "caller": caller,
        "target": target,
        "path": path,
        "method": method,
        "headers": _headers(header or []),
        "port": port,
        "source": source_ip,
        "server_name": server_name,
        "claims": _claims(claims),
    }
    found = connection.post("/v1/authz/explain", body)
    if output is Format.TABLE:
        _tell(found)
    else:
        emit(found, output)
    if not found["allowed"]:
        raise typer.Exit(1)


def _headers(given: list[str]) -> dict[str, str]:
    result: dict[str, str] = {}
    for text in given:
        # NAME:VALUE, as `hostmesh explain` and curl have it, is meant as well.
        name, mark, value = text.partition("=" if "=" in text.partition(":")[0] or ":" not in text else ":")
        if not mark or not name.strip():
            raise typer.BadParameter(f"'{text}' is not a header: write NAME=VALUE", param_hint="--header")
        result[name.strip()] = value.strip()
    return result


def _claims(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter("expected a JSON object", param_hint="--claims")
    return found


_WORDS = {True: "ALLOWED", False: "DENIED", None: "ASKED"}


def _tell(found: dict[str, Any]) -> None:
    for answer in found["answers"]:
        place = f"{answer['workload']} ({answer['address']}, host {answer['host'] or '-'})"
        typer.echo(f"{_WORDS[answer['allowed']]}  {cell_text(place)}: {cell_text(answer['verdict'])}")
        as_whom = answer["identity"] or "nobody: there is no certificate"
        typer.echo(f"  caller is {cell_text(as_whom)}" + (f"; chain {answer['chain']}" if answer["chain"] else ""))
        for ruling in answer["rulings"]:
            tried = " (dry run: nothing comes of it)" if ruling["dry_run"] else ""
            typer.echo(f"  {ruling['action']}: {_decision(ruling)}{tried}")
            for policy in ruling["policies"]:
                mark = "holds" if policy["holds"] else f"does not hold: {cell_text(policy['why'])}"
                typer.echo(f"    {cell_text(policy['policy'])}  {mark}")


def _decision(ruling: dict[str, Any]) -> str:
    by = f" by {cell_text(ruling['by'])}" if ruling["by"] else ""
    words = {"allow": f"allowed{by}", "deny": f"denied{by}" if by else "denied: none holds", "ask": f"asked for{by}"}
    return words.get(ruling["decision"], f"noted{by}" if by else "none holds")
