"""Kinds as people type them: VirtualService, virtualservices, vs, in any case."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from hostmesh_controller.model import KindInfo


def kind_of(text: str) -> "KindInfo":
    """Find the kind that `text` names: its name, plural or short name, any case, with or without its group.

    Raises:
        typer.BadParameter: no kind has that name.
    """
    from hostmesh_controller.model import KINDS, kind_named
    from hostmesh_controller.suggest import did_you_mean

    wanted = text.partition(".")[0]
    info = kind_named(wanted)
    if info is not None:
        return info
    names = [name for each in KINDS.values() for name in (each.kind, each.plural, *each.short_names)]
    hint = did_you_mean(wanted, names) or f"; known: {', '.join(sorted(KINDS))}"
    raise typer.BadParameter(f"unknown kind '{text}'{hint}")
