"""authz suggest: policies that allow the calls that were seen, to be read before they are applied."""

from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, cell_text, emit, note, yaml_text

_HEAD = (
    "Suggested from observed calls: read it, then apply it. With the annotation istio.io/dry-run a policy tells what",
    "it would refuse, and refuses nothing; without it, it counts.",
)


def suggest(
    ctx: typer.Context,
    namespace: Annotated[str, typer.Option("--namespace", "-n", metavar="NS", help="Only of this namespace.")] = "",
    workload: Annotated[
        list[str] | None, typer.Option("--workload", metavar="NAME", help="Only for it; may be repeated.")
    ] = None,
    output: Annotated[
        Format, typer.Option("--output", "-o", metavar="yaml|json", help="How to print.", case_sensitive=False)
    ] = Format.YAML,
) -> None:
    """Write AuthorizationPolicies, in dry-run form, that allow the calls that were seen and no others.

    Exit code 1: there was nothing to suggest.
    """
    if output is Format.TABLE:
        raise typer.BadParameter("policies are printed as yaml or json", param_hint="--output")
    connection: Connection = ctx.obj
    items = connection.get("/v1/authz/suggestions", {"namespace": namespace, "workload": workload or []})["items"]
    if output is Format.JSON:
        emit(items, output)
    elif items:
        typer.echo("\n".join(f"# {line}" for line in _HEAD))
        for each in items:
            typer.echo(_document(each), nl=False)
    else:
        note("no workload of the mesh is meant")
    if not any(each["policy"] for each in items):
        raise typer.Exit(1)


def _document(each: dict[str, Any]) -> str:
    lines = [f"For {', '.join(each['workloads'])}.", *each["comments"]]
    # Names come from others' YAML: in a comment they stay on its line.
    told = "".join(f"# {cell_text(line)}\n" for line in lines)
    return f"---\n{told}" + (yaml_text(each["policy"]) if each["policy"] else "")
