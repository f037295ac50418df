"""Printing: a table for people, JSON or YAML for programs."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[
    Format, typer.Option("--output", "-o", metavar="table|json|yaml", help="How to print.", case_sensitive=False)
]


def emit(data: object, form: Format) -> None:
    """Print `data` as JSON or YAML."""
    if form is Format.YAML:
        sys.stdout.write(yaml_text(data))
    else:
        text = json.dumps(data, indent=2, ensure_ascii=False)
        sys.stdout.write(
            "".join(each if each.isprintable() or each == "\n" else _escaped(each) for each in text) + "\n"
        )


def _escaped(character: str) -> str:
    """A character as JSON may write it: JSON itself leaves those alone that drive terminals since 1979 (0x9b)."""
    return json.dumps(character)[1:-1]


def yaml_text(data: object, *, many: bool = False) -> str:
    """`data` as YAML; with `many`, a list becomes one document each."""
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared None, documented as bool
    yaml.width = 120
    out = StringIO()
    # Only what JSON has: an ordered mapping would be written with a tag.
    plain = json.loads(json.dumps(data))
    if many and isinstance(plain, list):
        yaml.explicit_start = True
        for document in plain:
            yaml.dump(document, out)
    else:
        yaml.dump(plain, out)
    return out.getvalue()


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print rows under titles, or the sentence `empty` (to standard error, so that pipes see nothing)."""
    kept = [[cell_text(cell) for cell in row] for row in rows]
    if not kept:
        note(empty)
        return
    if sys.stdout.isatty():
        _rich_table(titles, kept)
        return
    widths = [max(len(row[index]) for row in [list(titles), *kept]) for index in range(len(titles))]
    for row in [list(titles), *kept]:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")


def _rich_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        drawn.add_column(title, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)


def cell_text(cell: object) -> str:
    if cell is None or cell in ("", [], {}):
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return plain(",".join(str(item) for item in cell) if isinstance(cell, list | tuple) else str(cell), keep="")


def plain(text: str, keep: str = "\n\t") -> str:
    """Return text that cannot drive the reader's terminal: names and messages come from others' YAML and hosts."""
    return "".join(each if each.isprintable() or each in keep else " " for each in text)


def note(text: str) -> None:
    """Say something beside the result."""
    sys.stderr.write(f"{plain(text)}\n")


def say(text: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(f"{plain(text)}\n")


def age(moment: object, now: datetime | None = None) -> str:
    """How long ago an ISO moment was ("5m"), "-" if there is none; in the future: "in 5m"."""
    if not isinstance(moment, str) or not moment:
        return "-"
    seconds = int(((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds())
    text = span(abs(seconds))
    return text if seconds >= 0 else f"in {text}"


def span(seconds: float) -> str:
    """A length of time in its two largest fitting units at most: 45s, 12m, 5h30m, 3d."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole}s"
    if whole < 7200:
        return f"{whole // 60}m"
    if whole < 172_800:
        hours, minutes = divmod(whole // 60, 60)
        return f"{hours}h{minutes}m" if minutes and hours < 10 else f"{hours}h"
    return f"{whole // 86_400}d"


def seconds_of(text: str) -> int:
    """Read a length of time such as 90, 90s, 15m, 2h or 7d.

    Raises:
        typer.BadParameter: it is none.
    """
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    if not number.isascii() or not number.isdigit():
        raise typer.BadParameter(f"'{text}' is not a length of time such as 90s, 15m, 2h or 7d")
    return int(number) * units[unit]


def key_text(key: dict[str, Any]) -> str:
    """An object's key as people write it: virtualservice/default/reviews."""
    return "/".join(part for part in (str(key["kind"]).lower(), key.get("namespace"), key["name"]) if part)
