"""What `-f` names, read as text: files, directories of them, or standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from hostmesh_controller.cli.failure import CliError

SUFFIXES: Final = frozenset({".yaml", ".yml", ".json"})


class Source(NamedTuple):
    name: str
    text: str

    def body(self) -> dict[str, str]:
        return {"name": self.name, "text": self.text}


Files = Annotated[
    list[str],
    typer.Option(
        "--filename", "-f", metavar="PATH", help="File, directory (its .yaml, .yml and .json) or - for stdin."
    ),
]
Namespace = Annotated[
    str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of objects that name none.")
]


def read_sources(names: Sequence[str]) -> list[Source]:
    """Read everything that `names` stand for.

    Raises:
        CliError: something is missing, empty of documents, or not text.
    """
    found: list[Source] = []
    for name in names:
        if name == "-":
            found.append(Source("<stdin>", _decoded("<stdin>", sys.stdin.buffer.read())))
        else:
            found += [Source(str(path), _text_of(path)) for path in _paths_of(Path(name))]
    return found


def _paths_of(path: Path) -> list[Path]:
    if path.is_dir():
        inside = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and _is_wanted(each))
        if not inside:
            raise CliError(f"error: {path} holds no .yaml, .yml or .json file")
        return inside
    if not path.exists():
        raise CliError(f"error: {path}: no such file or directory")
    return [path]


def _is_wanted(file: Path) -> bool:
    return not file.name.startswith(".") and not file.is_dir()


def _text_of(path: Path) -> str:
    try:
        return _decoded(str(path), path.read_bytes())
    except OSError as error:
        raise CliError(f"error: {path} cannot be read: {error.strerror}") from error


def _decoded(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CliError(f"error: {name}:{line}: not UTF-8: byte 0x{content[error.start]:02x}") from error
