"""token (hosts join with them) and api-token (people and programs call the API with them)."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.kinds import kind_of
from hostmesh_controller.cli.output import Format, Output, age, emit, note, say, seconds_of, table

join_tokens = typer.Typer(
    no_args_is_help=True, help="Join tokens: one host joins with it, once, or the hosts of a group."
)
api_tokens = typer.Typer(no_args_is_help=True, help="API tokens: who may call the API from other machines.")


class Role(StrEnum):
    VIEWER = "viewer"
    EDITOR = "editor"
    ADMIN = "admin"


@join_tokens.command("create")
def create_join(
    ctx: typer.Context,
    host: Annotated[
        str | None, typer.Argument(metavar="[HOST]", help="The registered host that may join with it, once.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="NS/NAME", help="The WorkloadGroup whose members all join with it, in place of a host."),
    ] = None,
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long it can be used.")] = "15m",
    max_joins: Annotated[
        int | None, typer.Option(min=1, help="How many hosts may join the group with it; any number unless given.")
    ] = None,
    allow_address: Annotated[
        list[str],
        typer.Option(
            metavar="CIDR",
            help="Where the host must join from. A member of a group may then name its address itself (hostmesh-agent "
            "join --address); unless given, it has the one from which it joins.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    output: Output = Format.TABLE,
) -> None:
    """Make a join token and print the join string, this once."""
    connection: Connection = ctx.obj
    if (host is None) == (group is None):
        raise typer.BadParameter("name the HOST that may join, or the --group whose members may")
    if host is not None and max_joins is not None:
        raise typer.BadParameter("--max-joins is for a --group: a host joins once")
    body: dict[str, Any] = {"ttl_s": seconds_of(ttl), "allowed_addresses": allow_address}
    if host is not None:
        body["host"] = host
    else:
        body |= {"group": group, "max_joins": max_joins}
    result = connection.post("/v1/tokens", body)
    if output is not Format.TABLE:
        emit(result, output)
        return
    print_join(result)


def print_join(result: dict[str, Any]) -> None:
    """Say how to join; standard output has the command alone, for a pipe to `join -` or a shell."""
    until = datetime.fromisoformat(result["expires_at"])
    where = f"each member of {result['group']}" if result["group"] else result["host"]
    note(f"On {where}, before {until:%Y-%m-%d %H:%M} UTC, as root:")
    say(f"hostmesh-agent join {result['join_string']}")


@join_tokens.command("list")
def list_join(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show join tokens: which host, who made them, whether they were used."""
    connection: Connection = ctx.obj
    items = connection.get("/v1/tokens")["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (
            each["id"],
            each["host"] or f"group {each['group']}",
            each["state"],
            f"{each['joins']}/{each['max_joins'] or 'any'}",
            age(each["created_at"]),
            age(each["expires_at"]),
            each["created_by"],
        )
        for each in items
    ]
    table(("ID", "FOR", "STATE", "JOINS", "AGE", "EXPIRES", "CREATED BY"), rows, empty="no join tokens")


@join_tokens.command("revoke")
def revoke_join(ctx: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Make a join token useless."""
    connection: Connection = ctx.obj
    connection.delete(f"/v1/tokens/{part(token_id)}")
    say(f"token {token_id} revoked")


@api_tokens.command("create")
def create_api(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whom it is for; the audit shows this name.")],
    role: Annotated[
        Role | None,
        typer.Option(
            metavar="viewer|editor|admin",
            help="viewer reads, editor applies, admin may do everything; viewer unless given.",
        ),
    ] = None,
    namespace: Annotated[
        list[str],
        typer.Option(
            "--namespace",
            "-n",
            metavar="NAME,…",
            help="Only in these namespaces, for reading and writing; in all unless given.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    kind: Annotated[
        list[str],
        typer.Option(
            metavar="KIND,…",
            help="An editor writes only these kinds. In a grant for some namespaces EnvoyFilter, WasmPlugin, Gateway "
            "and WorkloadGroup must be named.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    grant: Annotated[
        list[str],
        typer.Option(
            metavar="ROLE[:NAMESPACES[:KINDS]]",
            help="In place of the three: one of several grants, as in editor:shop:VirtualService,DestinationRule.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it is valid; for ever unless given.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Make an API token and print it, this once."""
    connection: Connection = ctx.obj
    if grant and (role is not None or namespace or kind):
        raise typer.BadParameter("--grant says it all: leave out --role, --namespace and --kind")
    body: dict[str, Any] = {"name": name, "ttl_s": seconds_of(ttl) if ttl else None}
    if grant:
        body["grants"] = grant
    else:
        body |= {"role": (role or Role.VIEWER).value, "namespaces": _listed(namespace), "kinds": _kinds(kind)}
    result = connection.post("/v1/api-tokens", body)
    if output is not Format.TABLE:
        emit(result, output)
        return
    grants = " ".join(result["grants"])
    note(f"API token of {result['name']} ({grants}), for HOSTMESH_TOKEN; it is not shown again:")
    say(result["token"])


def _listed(values: list[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _kinds(values: list[str]) -> list[str]:
    """Return kinds by their names, however they are written."""
    return [kind_of(each).kind for each in _listed(values)]


@api_tokens.command("list")
def list_api(ctx: typer.Context, output: Output = Format.TABLE) -> None:
    """Show API tokens."""
    connection: Connection = ctx.obj
    items = connection.get("/v1/api-tokens")["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    rows = [
        (
            each["id"],
            each["name"],
            " ".join(each["grants"]),
            each["state"],
            age(each["created_at"]),
            age(each["expires_at"]),
            age(each["last_used_at"]),
            each["created_by"],
        )
        for each in items
    ]
    titles = ("ID", "NAME", "GRANTS", "STATE", "AGE", "EXPIRES", "LAST USED", "CREATED BY")
    table(titles, rows, empty="no API tokens")


@api_tokens.command("revoke")
def revoke_api(ctx: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Make an API token useless."""
    connection: Connection = ctx.obj
    connection.delete(f"/v1/api-tokens/{part(token_id)}")
    say(f"API token {token_id} revoked")
