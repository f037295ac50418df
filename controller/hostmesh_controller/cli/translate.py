"""translate: from documents to what one host's Envoy would be sent, on this machine, without a controller."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.output import Format, Output, emit, note
from hostmesh_controller.cli.sources import Files, Namespace, read_sources

if TYPE_CHECKING:
    from hostmesh_controller.translation import Translation


def translate(
    filename: Files,
    host: Annotated[str, typer.Option("--host", metavar="NAME", help="For the Envoy of this host.")],
    namespace: Namespace = "default",
    type_: Annotated[
        list[str],
        typer.Option(
            "--type", "-t", metavar="TYPE", help="Only these: listener, cluster, endpoint, virtualhost, host, …"
        ),
    ] = [],  # noqa: B006 - typer copies it
    trust_domain: Annotated[str, typer.Option(metavar="NAME", help="As in controller.toml.")] = "cluster.local",
    domain: Annotated[str, typer.Option(metavar="NAME", help="As in controller.toml.")] = "cluster.local",
    output: Output = Format.YAML,
) -> None:
    """Show the Envoy configuration that documents become; as if all their hosts were joined and ready."""
    from hostmesh_controller.translation import UnknownHostError, select_types, translate

    sources = [(each.name, each.text) for each in read_sources(filename)]
    try:
        wanted = select_types(type_)
        result = translate(sources, namespace, host, trust_domain=trust_domain, domain=domain)
    except UnknownHostError as error:
        raise CliError(f"error: {error}") from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    _refuse(result)
    shown: dict[str, Any] = {
        type_url: resources for type_url, resources in result.resources.items() if not wanted or type_url in wanted
    }
    emit(shown, Format.YAML if output is Format.TABLE else output)


def _refuse(result: "Translation") -> None:
    for problem in result.review.warnings:
        note(str(problem))
    if result.review.errors:
        lines = [str(problem) for problem in result.review.errors]
        raise CliError("\n".join(["error: the documents are refused", *(f"  {line}" for line in lines)]))
