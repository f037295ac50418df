"""The tree of commands."""

import os
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from hostmesh_controller.cli import (
    adopt,
    authority,
    authz,
    documents,
    explain,
    graph,
    hosts,
    jwks,
    mtls,
    objects,
    operations,
    pending,
    proxies,
    registering,
    rollouts,
    tokens,
    translate,
)
from hostmesh_controller.cli.connection import DEFAULT_ADDRESS, Connection
from hostmesh_controller.cli.failure import CliError

_LAB_HELP = "Try the mesh on this machine: hosts made of network namespaces, with real agents and Envoys."


class Root(TyperGroup):
    """The top of the tree. `lab` is imported only when it is called: help and the other commands stay fast."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), "lab"]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name == "lab":
            return TyperCommand(name="lab", help=_LAB_HELP, callback=None)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[:1] == ["lab"]:
            return "lab", _lab(), args[1:]
        return super().resolve_command(ctx, args)


def _lab() -> Any:
    try:
        from hostmesh_controller.lab.cli import app as lab
    except ModuleNotFoundError as error:
        raise CliError(f"error: `hostmesh lab` needs '{error.name}', which is not installed here") from error
    return typer.main.get_command(lab)


app = typer.Typer(
    cls=Root,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="A service mesh for virtual machines: tell the controller what to do, see what it does.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hostmesh {operations.installed_version()}")
        raise typer.Exit


@app.callback()
def connect(
    ctx: typer.Context,
    address: Annotated[
        str,
        typer.Option(
            envvar="HOSTMESH_ADDRESS", metavar="URL", help="The controller: unix:///PATH or https://HOST:PORT."
        ),
    ] = DEFAULT_ADDRESS,
    ca: Annotated[
        str, typer.Option(envvar="HOSTMESH_CA", metavar="FILE", help="Root certificate (PEM) to trust for https.")
    ] = "",
    token_file: Annotated[
        str,
        typer.Option(
            envvar="HOSTMESH_TOKEN_FILE",
            metavar="FILE",
            help="File with the API token; or HOSTMESH_TOKEN is the token.",
        ),
    ] = "",
    cert: Annotated[
        str, typer.Option(envvar="HOSTMESH_CERT", metavar="FILE", help="Client certificate (PEM) to call https with.")
    ] = "",
    key: Annotated[
        str,
        typer.Option(envvar="HOSTMESH_KEY", metavar="FILE", help="Its private key (PEM), unless the same file has it."),
    ] = "",
    token: Annotated[str, typer.Option("--token", hidden=True)] = "",
    _version_wanted: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version and exit.")
    ] = False,
) -> None:
    if token:
        # Everybody on the machine reads the arguments of its processes.
        raise typer.BadParameter("a token does not go on the command line: use HOSTMESH_TOKEN or --token-file")
    ctx.obj = Connection(address, os.environ.get("HOSTMESH_TOKEN", ""), ca, token_file, cert, key)


documents.register(app)
app.command("get")(objects.get)
app.command("register")(registering.register)
hosts.app.command("pending")(pending.pending)
hosts.app.command("approve")(pending.approve)
hosts.app.command("deny")(pending.deny)
hosts.app.command("services")(adopt.services)
app.add_typer(hosts.app, name="host")
app.command("adopt")(adopt.adopt)
app.command("graph")(graph.graph)
app.add_typer(jwks.app, name="jwks")
app.command("join-string")(pending.join_string)
app.add_typer(proxies.app, name="proxy")
app.add_typer(rollouts.app, name="rollout")
app.add_typer(tokens.join_tokens, name="token")
app.add_typer(tokens.api_tokens, name="api-token")
app.add_typer(authority.app, name="ca")
app.add_typer(mtls.app, name="mtls")
app.command("explain")(explain.explain)
app.add_typer(authz.app, name="authz")
app.command("translate")(translate.translate)
app.command("audit")(operations.audit)
app.command("version")(operations.version)
