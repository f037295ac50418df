"""rollout: another version for hosts, a few first."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.output import Format, Output, age, emit, note, table

app = typer.Typer(no_args_is_help=True, help="Other versions for hosts, a few first: see the kind Rollout.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the Rollout.")]


@app.command("status")
def status(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Of the Rollout; all without.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Show how far rollouts are, or one with its hosts."""
    connection: Connection = ctx.obj
    if name:
        _show(connection.get(f"/v1/rollouts/{name}"), output)
        return
    items = connection.get("/v1/rollouts")["items"]
    if output is not Format.TABLE:
        emit(items, output)
        return
    table(_TITLES, [_row(each) for each in items], empty="there is no Rollout")


@app.command("pause")
def pause(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Let no more hosts have the new version. Those that have it are watched on."""
    _ask(ctx, name, "pause", output)


@app.command("resume")
def resume(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """Go on after a pause. After a halt: try again; hosts that went back begin with the canary."""
    _ask(ctx, name, "resume", output)


@app.command("abort")
def abort(ctx: typer.Context, name: Name, output: Output = Format.TABLE) -> None:
    """End it for good, and return all hosts to what they had."""
    _ask(ctx, name, "abort", output)


@app.command("key")
def key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where the new private key goes (mode 0600).")],
) -> None:
    """Make a key that signs artifacts, and print the public one for agent.toml. Keep it away from the controller."""
    from hostmesh_controller.cli import signing

    typer.echo(signing.new_key(path))


@app.command("sign")
def sign(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="The program; of an agent its .deb and its .rpm.")
    ],
    version: Annotated[str, typer.Option("--version", metavar="VERSION", help="Which it is.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private key, of `hostmesh rollout key`.")],
    mirror: Annotated[Path, typer.Option("--to", metavar="DIRECTORY", help="The mirror, or a copy of it.")],
    component: Annotated[str, typer.Option("--component", metavar="NAME", help="envoy or agent.")] = "envoy",
    machine: Annotated[
        str, typer.Option("--machine", metavar="NAME", help="For hosts of which `uname -m`.")
    ] = "x86_64",
    least: Annotated[
        str,
        typer.Option("--least", metavar="VERSION", help="Once it is everywhere, hosts take no version below this."),
    ] = "",
) -> None:
    """Sign an artifact and put it into a mirror, from which hosts fetch it."""
    from hostmesh_controller.cli import signing

    where = signing.put(artifacts, key, mirror, component=component, version=version, machine=machine, least=least)
    note(f"{component} {version} for {machine} is signed: {where}")


def _ask(ctx: typer.Context, name: str, verb: str, output: Format) -> None:
    connection: Connection = ctx.obj
    _show(connection.post(f"/v1/rollouts/{name}/{verb}", {}), output)


_TITLES = ("NAME", "COMPONENT", "VERSION", "STAGE", "WAVE", "WELL", "TOLD", "FAILED", "BACK", "HOSTS", "REASON")


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    counts = item["counts"]
    stage = "paused" if item["paused"] and item["stage"] == "running" else item["stage"]
    if item["stage"] == "done" and item["absent"]:
        stage = f"done, {len(item['absent'])} absent"
    return (
        item["name"],
        item["component"],
        item["version"],
        stage,
        item["wave"],
        str(counts["well"]),
        str(counts["ordered"]),
        str(counts["failed"]),
        str(counts["returning"] + counts["returned"]),
        str(item["hosts_total"]),
        item["reason"],
    )


def _show(item: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        emit(item, output)
        return
    table(_TITLES, [_row(item)], empty="")
    for problem in item["problems"]:
        typer.echo(f"waits: {problem}")
    if item["absent"]:
        typer.echo(f"absent, and get it when they come back: {', '.join(item['absent'])}")
    rows = [
        (each["host"], each["state"], each["before"], each["version"], age(each["since"]), each["reason"])
        for each in item["hosts"]
    ]
    if rows:
        typer.echo("")
        table(("HOST", "STATE", "BEFORE", "NOW", "SINCE", "REASON"), rows, empty="")
