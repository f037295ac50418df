"""authz: who may call what."""

import typer

from hostmesh_controller.cli import authz_suggest

authz = typer.Typer(no_args_is_help=True, help="Authorization: who may call what.")
authz.command("suggest")(authz_suggest.suggest)
