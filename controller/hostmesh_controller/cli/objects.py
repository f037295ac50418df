"""get: the objects as they are stored."""

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import typer

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.kinds import kind_of
from hostmesh_controller.cli.output import Format, Output, age, emit, plain, table, yaml_text

Column = tuple[str, Callable[[Mapping[str, Any]], object]]

_COLUMNS: Final[Mapping[str, tuple[Column, ...]]] = {
    "Host": (
        ("ADDRESSES", lambda spec: spec.get("addresses")),
        ("NAMESPACE", lambda spec: spec.get("namespace")),
        ("CAPTURE", lambda spec: spec.get("capture", {}).get("scope", "mesh")),
    ),
    "Service": (
        ("PORTS", lambda spec: [_port(each) for each in spec.get("ports", ())]),
        ("SELECTOR", lambda spec: _labels(spec.get("selector"))),
    ),
    "ServiceEntry": (
        ("HOSTS", lambda spec: spec.get("hosts")),
        ("LOCATION", lambda spec: spec.get("location")),
        ("RESOLUTION", lambda spec: spec.get("resolution")),
    ),
    "WorkloadEntry": (
        ("ADDRESS", lambda spec: spec.get("address")),
        ("ACCOUNT", lambda spec: spec.get("serviceAccount")),
        ("LABELS", lambda spec: _labels(spec.get("labels"))),
    ),
    "VirtualService": (
        ("GATEWAYS", lambda spec: spec.get("gateways")),
        ("HOSTS", lambda spec: spec.get("hosts")),
    ),
    "DestinationRule": (
        ("HOST", lambda spec: spec.get("host")),
        ("SUBSETS", lambda spec: [each.get("name") for each in spec.get("subsets", ())]),
    ),
    "AuthorizationPolicy": (
        ("ACTION", lambda spec: spec.get("action", "ALLOW")),
        ("RULES", lambda spec: len(spec.get("rules", ()))),
        ("SELECTOR", lambda spec: _labels(spec.get("selector", {}).get("matchLabels"))),
    ),
    "PeerAuthentication": (("MODE", lambda spec: spec.get("mtls", {}).get("mode")),),
}


def get(
    ctx: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="Kind: name, plural or short name, any case; or `all`.")],
    name: Annotated[str | None, typer.Argument(metavar="NAME")] = None,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace to look in.")
    ] = "default",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Look in all of them.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show objects: all of a kind, or one. YAML and JSON can be applied again."""
    connection: Connection = ctx.obj
    if kind.lower() == "all":
        if name:
            raise typer.BadParameter("`all` takes no name")
        items = connection.get("/v1/objects", {} if all_namespaces else {"namespace": namespace})["items"]
        _show(items, "", output, everywhere=True)
        return
    info = kind_of(kind)
    place = namespace if info.namespaced else "-"
    if name:
        item = connection.get(f"/v1/objects/{info.kind}/{part(place)}/{part(name)}")
        if output is Format.TABLE:
            _show([item], info.kind, output, everywhere=False)
        else:
            emit(item["document"], output)
        return
    params = {"kind": info.kind}
    if info.namespaced and not all_namespaces:
        params["namespace"] = namespace
    items = connection.get("/v1/objects", params)["items"]
    _show(items, info.kind, output, everywhere=all_namespaces and info.namespaced)


def _show(items: list[dict[str, Any]], kind: str, output: Format, *, everywhere: bool) -> None:
    documents = [item["document"] for item in items]
    if output is Format.YAML:
        sys.stdout.write(plain(yaml_text(documents, many=True)))
        return
    if output is Format.JSON:
        emit(documents, output)
        return
    columns = _COLUMNS.get(kind, ())
    titles = [*([] if kind else ["KIND"]), *(["NAMESPACE"] if everywhere else []), "NAME"]
    rows = []
    for item in items:
        spec = item["document"].get("spec", {})
        row: list[object] = [] if kind else [item["kind"]]
        row += [item["namespace"]] if everywhere else []
        rows.append([*row, item["name"], *(read(spec) for _, read in columns), age(item["created_at"])])
    table([*titles, *(title for title, _ in columns), "AGE"], rows, empty="no objects found")


def _port(port: Mapping[str, Any]) -> str:
    number = str(port.get("port") or port.get("number"))
    return f"{number}/{port['name']}" if port.get("name") else number


def _labels(labels: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in (labels or {}).items())
