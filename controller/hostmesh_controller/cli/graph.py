"""graph: who talks to whom, as hosts and their Envoys see it."""

import sys
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, age, emit, plain, seconds_of, table


class Drawing(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    DOT = "dot"
    MERMAID = "mermaid"


_COLOURS: Final = {"mutual-tls": "#2a7d2a", "plaintext": "#c0392b", "own-tls": "#2a5d9f"}


def graph(
    ctx: typer.Context,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Only what one end of is in this namespace.")
    ] = "",
    host: Annotated[str, typer.Option("--host", metavar="HOST", help="Only what one end of is on this host.")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="Only what was seen so lately: 1h, 7d.")] = "",
    output: Annotated[
        Drawing,
        typer.Option(
            "--output", "-o", metavar="table|json|yaml|dot|mermaid", help="How to print.", case_sensitive=False
        ),
    ] = Drawing.TABLE,
) -> None:
    """Show who talks to whom: connections that hosts see, captured or not, and calls that Envoy counts."""
    connection: Connection = ctx.obj
    params = {"namespace": namespace, "host": host, "since_s": seconds_of(since) if since else 0}
    answer = connection.get("/v1/graph", params)
    if output is Drawing.DOT:
        sys.stdout.write(plain(dot(answer)))
    elif output is Drawing.MERMAID:
        sys.stdout.write(plain(mermaid(answer)))
    elif output is Drawing.TABLE:
        _table(answer)
    else:
        emit(answer, Format(output.value))


def _table(answer: dict[str, Any]) -> None:
    rows = [
        (
            each["source"],
            each["target"],
            each["port"] or None,
            each["protocol"],
            each["security"] or "not seen by Envoy",
            each["connections"] or None,
            each["calls"] or None,
            age(each["last_seen"]),
        )
        for each in answer["edges"]
    ]
    titles = ("FROM", "TO", "PORT", "PROTOCOL", "SECURITY", "CONNECTIONS", "CALLS", "LAST")
    table(titles, rows, empty="no connection was seen yet: a joined host tells of its first ones within half a minute")


def dot(answer: dict[str, Any]) -> str:
    """Return the graph in Graphviz' language. Names come from hosts: they are text within quotes, never language."""
    names = {each["id"]: f"n{index}" for index, each in enumerate(answer["nodes"])}
    lines = ["digraph hostmesh {", "  rankdir=LR;", "  node [shape=box];"]
    for each in answer["nodes"]:
        shape = "ellipse" if each["kind"] == "external" else "box"
        lines.append(f"  {names[each['id']]} [label={_quoted(each['id'])}, shape={shape}];")
    for each in answer["edges"]:
        attributes = f"label={_quoted(_label(each))}"
        colour = next((_COLOURS[name] for name in sorted(each["security"], reverse=True) if name in _COLOURS), "")
        if colour:
            attributes += f", color={_quoted(colour)}"
        lines.append(f"  {names[each['source']]} -> {names[each['target']]} [{attributes}];")
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(answer: dict[str, Any]) -> str:
    """Return the graph as a Mermaid flowchart. Whatever has a meaning there is written as an entity."""
    names = {each["id"]: f"n{index}" for index, each in enumerate(answer["nodes"])}
    lines = ["flowchart LR"]
    lines += [f'  {names[each["id"]]}["{_entities(each["id"])}"]' for each in answer["nodes"]]
    for each in answer["edges"]:
        line = "-->" if "plaintext" not in each["security"] and each["security"] else "-.->"
        lines.append(f'  {names[each["source"]]} {line}|"{_entities(_label(each))}"| {names[each["target"]]}')
    return "\n".join(lines) + "\n"


def _label(edge: dict[str, Any]) -> str:
    port = f" {edge['port']}" if edge["port"] else ""
    return f"{edge['protocol']}{port} {', '.join(edge['security'])}".strip()


def _quoted(text: str) -> str:
    """Text as a string of Graphviz: a quote ends it, and a backslash begins an escape within it."""
    inside = "".join(each if each.isprintable() else " " for each in text)
    return '"' + inside.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _entities(text: str) -> str:
    """Text for a label of Mermaid, which reads HTML and Markdown there: whatever is not plain is its number."""
    return "".join(
        each if each.isalnum() or each in " /.:,-_" else f"#{ord(each)};" for each in text if each.isprintable()
    )
