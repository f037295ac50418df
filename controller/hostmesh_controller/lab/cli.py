"""`hostmesh lab …`: the verbs, their arguments, and what people see."""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from hostmesh_controller.cli.output import Format, Output, emit
from hostmesh_controller.lab import components, controller, world
from hostmesh_controller.lab import host as hosts
from hostmesh_controller.lab import layout as disk
from hostmesh_controller.lab import status as state
from hostmesh_controller.lab import up as bring
from hostmesh_controller.lab.components import Component
from hostmesh_controller.lab.envoy import LOG
from hostmesh_controller.lab.errors import LabError
from hostmesh_controller.lab.layout import LabFacts, Layout
from hostmesh_controller.lab.space import CommandNotStartedError

app = typer.Typer(
    name="lab",
    help="Hosts made of network namespaces on this machine, with the real controller, agents, Envoys and rules.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_DEFAULT: Final = "the user's state directory"
Dir = Annotated[
    Path | None,
    typer.Option("--dir", envvar="HOSTMESH_LAB_DIR", help="Where the lab keeps its state.", show_default=_DEFAULT),
]
HostName = Annotated[str, typer.Argument(metavar="HOST", help="A host of the lab.")]
Part = Annotated[str, typer.Argument(metavar="COMPONENT", help="controller, agent/HOST, envoy/HOST or host/HOST.")]


@contextmanager
def _problems() -> Iterator[None]:
    """Show a problem that the user can act on as text, and end with code 1."""
    try:
        yield
    except CommandNotStartedError as error:
        _fail(error, error.code)
    except LabError as error:
        _fail(error, 1)


def _fail(error: LabError, code: int) -> NoReturn:
    text = str(error)
    typer.echo(text if text.startswith("hostmesh lab: ") else f"hostmesh lab: {text}", err=True)
    raise typer.Exit(code) from None


def _layout(chosen: Path | None) -> Layout:
    return disk.checked(chosen or disk.default_dir(dict(os.environ)))


def _running(chosen: Path | None) -> tuple[Layout, LabFacts]:
    layout = _layout(chosen)
    return layout, world.lab_of(layout)


@app.command("up")
def up(
    names: Annotated[list[str] | None, typer.Argument(metavar="HOST...", help="Hosts to start and join.")] = None,
    no_join: Annotated[
        list[str] | None, typer.Option("--no-join", metavar="HOST", help="A host to start outside the mesh.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything as it is when something fails.")] = False,
    directory: Dir = None,
) -> None:
    """Start a controller and the named hosts, or add hosts to the lab that runs; returns when all are ready."""
    outside = list(dict.fromkeys(no_join or []))
    # `up a b --no-join b` says twice that there is a host b, and once what it is.
    joined = [name for name in names or [] if name not in outside]
    if not joined and not outside:
        raise typer.BadParameter("name at least one host: hostmesh lab up web db")
    with _problems():
        if len(set(names or [])) != len(names or []):
            hosts.check_names(list(names or []), set())
        bring.up(_layout(directory), joined, outside, lambda text: typer.echo(text, err=True), keep=keep)


@app.command("exec")
def execute(
    host: HostName,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD...", help="The command and its arguments.")],
    user: Annotated[str, typer.Option("--user", "-u", help="A user of the host; `app` is an ordinary one.")] = "root",
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return at once; it ends with the host.")] = False,
    directory: Dir = None,
) -> None:
    """Run a command in a host; exit code and output are the command's."""
    with _problems():
        layout, lab = _running(directory)
        hosts.host_of(layout, host)
        space = hosts.space_of(layout, lab, host)
        if not detach:
            sys.stdout.flush()
            space.replace_us(command, user=user)
        log = _next_log(layout.host(host).logs, Path(command[0]).name)
        space.start(command, log, user=user, cwd=str(Path.cwd()))
        typer.echo(f"output: {log}", err=True)


def _next_log(directory: Path, name: str) -> Path:
    """A file of its own for every detached command; made at once, so that two at a time get two."""
    for number in range(1, 100_000):
        path = directory / f"{name}-{number}.log"
        try:
            path.touch(mode=0o644, exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise LabError(f"{directory}: too many logs")


@app.command("ip")
def ip(
    host: HostName, v6: Annotated[bool, typer.Option("--v6", help="The IPv6 address.")] = False, directory: Dir = None
) -> None:
    """Print a host's address."""
    with _problems():
        layout, lab = _running(directory)
        facts = hosts.host_of(layout, host)
        if v6 and not lab.ipv6:
            raise LabError("this machine has no IPv6")
        typer.echo(lab.net.address6(facts.index) if v6 else lab.net.address(facts.index))


@app.command("status")
def status(output: Output = Format.TABLE, directory: Dir = None) -> None:
    """Show the lab: hosts, addresses, processes, namespaces."""
    with _problems():
        layout = _layout(directory)
        lab = disk.read_lab(layout)
        if lab is None:
            raise LabError(f"there is no lab in {layout.root}; start one: hostmesh lab up HOST…")
        document = state.status(layout, lab)
    if output is not Format.TABLE:
        emit(document, output)
        return
    typer.echo(f"lab {document['dir']}: {document['state']}, network {document['subnet']}")
    typer.echo(f"controller: {document['controller']['state']}, {document['bridge']['address']}")
    _table([("HOST", "ADDRESS", "IPV6", "STATE", "AGENT", "ENVOY"), *state.rows(document)])


def _table(lines: list[tuple[str, ...]]) -> None:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command("env")
def env(directory: Dir = None) -> None:
    """Print what makes `hostmesh` talk to the lab's controller: eval "$(hostmesh lab env)"."""
    with _problems():
        layout, _ = _running(directory)
        typer.echo(f"export HOSTMESH_ADDRESS={shlex.quote(controller.address(layout))}")
        typer.echo(f"export HOSTMESH_LAB_DIR={shlex.quote(str(layout.root))}")


@app.command("stop")
def stop(component: Part, directory: Dir = None) -> None:
    """End a component in order and wait for its end."""
    with _problems():
        part, layout, lab = _component(component, directory)
        with disk.locked(layout):
            components.stop(layout, lab, part)


@app.command("start")
def start(component: Part, directory: Dir = None) -> None:
    """Start a component and wait until it is ready."""
    with _problems():
        part, layout, lab = _component(component, directory)
        with disk.locked(layout):
            components.start(layout, lab, part)


@app.command("restart")
def restart(component: Part, directory: Dir = None) -> None:
    """Stop and start; a host keeps its disk and loses its kernel state, as in a reboot."""
    with _problems():
        part, layout, lab = _component(component, directory)
        with disk.locked(layout):
            components.restart(layout, lab, part)


@app.command("kill")
def kill(component: Part, directory: Dir = None) -> None:
    """End a component with SIGKILL."""
    with _problems():
        part, layout, lab = _component(component, directory)
        with disk.locked(layout):
            components.kill(layout, lab, part)


def _component(text: str, chosen: Path | None) -> tuple[Component, Layout, LabFacts]:
    layout, lab = _running(chosen)
    part = Component.parse(text)
    if part.host:
        hosts.host_of(layout, part.host)
    return part, layout, lab


@app.command("logs")
def logs(
    component: Part,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows.")] = False,
    directory: Dir = None,
) -> None:
    """Print a component's log."""
    with _problems():
        part, layout, lab = _component(component, directory)
        tail = ["tail", "-n", "+1", *(["-F"] if follow else [])]
        sys.stdout.flush()
        if part.kind == "envoy":
            hosts.space_of(layout, lab, part.host).replace_us([*tail, LOG], user="root")
        place = layout.host(part.host)
        path = {"agent": place.agent_log, "host": place.init_log}.get(part.kind, layout.controller_log)
        if not path.exists():
            raise LabError(f"{part} has written no log yet")
        os.execvp("tail", [*tail, str(path)])  # noqa: S606 - no shell wanted


@app.command("down")
def down(directory: Dir = None) -> None:
    """End the lab and leave nothing of it; there may be none."""
    with _problems():
        layout = _layout(directory)
        if not layout.facts.exists():
            return
        with disk.locked(layout):
            world.destroy(layout)


@app.command("demo")
def demo(
    keep: Annotated[bool, typer.Option("--keep", envvar="KEEP", help="Leave it running.")] = False,
    directory: Dir = None,
) -> None:
    """Show on five hosts what the mesh promises; fails when one promise does not hold."""
    from hostmesh_controller.lab.demo.run import play
    from hostmesh_controller.lab.demo.stage import default_dir

    with _problems():
        layout = disk.checked(directory or default_dir(dict(os.environ)))
        if not play(layout, typer.echo, keep=keep):
            raise typer.Exit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
