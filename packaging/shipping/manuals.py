"""Manual pages: text that is written (packaging/man), with the commands as the programs themselves describe them.

docutils makes a page of reStructuredText. The first line is the page's summary, `.. commands` stands for what a
program's own parser says, and `.. example FILE` for an example configuration.
"""

# ruff: noqa: SLF001 - argparse shows its actions in no other way; its own help and shtab read them like this
import argparse
import gzip
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from shipping.places import PACKAGING
from shipping.release import Release
from shipping.running import BuildError, run

MANUALS: Final = PACKAGING / "man"
_COMMANDS: Final = ".. commands"
_EXAMPLE: Final = re.compile(r"^\.\. example (\S+)$", re.MULTILINE)


def page(name: str, release: Release, commands: Mapping[str, Callable[[], str]]) -> bytes:
    """Return a page, compressed; `name` has its section, `commands` makes each program's."""
    summary, _, source = (MANUALS / f"{name}.rst").read_text().partition("\n")
    program, _, section = name.rpartition(".")
    if _COMMANDS in source:
        source = source.replace(_COMMANDS, commands[program]())
    source = _EXAMPLE.sub(lambda found: _literal((PACKAGING / found[1]).read_text()), source)
    over, under = "=" * 80, "-" * 80
    header = (
        f"{over}\n{program}\n{over}\n\n{under}\n{summary}\n{under}\n\n:Manual section: {section}\n"
        f":Manual group: hostmesh\n:Version: hostmesh {release.version}\n:Date: {release.when:%Y-%m-%d}\n\n"
    )
    command = [sys.executable, "-m", "docutils", "--writer=manpage", "--halt=2", "--report=2"]
    made = run([*command, "--no-generator", "--no-datestamp"], text_in=header + source)
    if ".TH" not in made:
        raise BuildError(f"{name}: docutils made no page of it")
    return gzip.compress(made.encode(), 9, mtime=0)


def _literal(text: str) -> str:
    return "::\n\n" + "".join(f"    {line}\n" if line else "\n" for line in text.splitlines())


def plain(text: str) -> str:
    """Return a help text as one line in which nothing is markup: docutils would take a name with _ for a link."""
    line = " ".join(text.replace("%%", "%").split())
    return re.sub(r"([\\*`|_])", r"\\\1", line)


def _entry(heading: str, text: str) -> str:
    """Return one item: a heading of what is typed, in bold, and its text."""
    return f"**{plain(heading)}**\n    {plain(text) or '(see above)'}\n\n"


def agent_commands() -> str:
    """Return hostmesh-agent's verbs and their options, from its own parser."""
    from hostmesh_agent.cli import _parser

    return "".join(_of_argparse(_parser(), "")) or "None."


def _of_argparse(parser: argparse.ArgumentParser, path: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {each.dest: each.help or "" for each in action._choices_actions}
            for name, below in action.choices.items():
                deeper = any(isinstance(each, argparse._SubParsersAction) for each in below._actions)
                if not deeper:
                    yield _entry(f"{path}{name} {_usage(below)}".strip(), texts.get(name, ""))
                    yield from _options(below)
                yield from _of_argparse(below, f"{path}{name} ")


def _usage(parser: argparse.ArgumentParser) -> str:
    positional = [each for each in parser._actions if not each.option_strings]
    named = any(each.option_strings and each.dest != "help" for each in parser._actions)
    words = [str(each.metavar or each.dest) for each in positional]
    return " ".join([*(["[OPTION]..."] if named else []), *(f"[{each}]" for each in words)])


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.option_strings and action.dest != "help":
            value = f" {action.metavar or '|'.join(map(str, action.choices or ())) or action.dest.upper()}"
            heading = ", ".join(action.option_strings) + ("" if action.nargs == 0 else value)
            text = (action.help or "") % {"default": action.default} if "%(" in (action.help or "") else action.help
            yield "    " + _entry(heading, text or "").replace("\n    ", "\n        ")


def typer_commands(app: Any) -> str:
    """Return the commands of a program of typer's, with their options."""
    from typer.main import get_command

    return "".join(_of_click(get_command(app), "")) or "None."


def _of_click(command: Any, path: str) -> Iterator[str]:
    for name, below in sorted(getattr(command, "commands", {}).items()):
        if below.hidden:
            continue
        if hasattr(below, "commands"):
            yield from _of_click(below, f"{path}{name} ")
            continue
        arguments = [each for each in below.params if each.param_type_name == "argument"]
        options = [each for each in below.params if each.param_type_name == "option" and not each.hidden]
        words = [str(each.metavar or each.name).upper() for each in arguments]
        heading = f"{path}{name} {'[OPTION]... ' if options else ''}{' '.join(words)}".strip()
        yield _entry(heading, below.help or "")
        for each in options:
            if each.name != "help":
                yield "    " + _entry(_click_option(each), each.help or "").replace("\n    ", "\n        ")


def _click_option(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def commands() -> dict[str, Callable[[], str]]:
    """Return what makes the commands of each program."""

    def of_cli() -> str:
        from hostmesh_controller.cli.app import app

        return typer_commands(app)

    def of_controller() -> str:
        from hostmesh_controller.serve import app

        return typer_commands(app)

    return {"hostmesh-agent": agent_commands, "hostmesh": of_cli, "hostmesh-controller": of_controller}
