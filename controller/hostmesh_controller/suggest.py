"""The nearest known name, for messages about a misspelt one."""

from collections.abc import Iterable
from difflib import get_close_matches

_MAX_LENGTH = 100
"""Nobody misspells a name this long; comparing is quadratic."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `word`, or None if none is near."""
    if len(word) > _MAX_LENGTH:
        return None
    by_lower = {name.lower(): name for name in sorted(known)}
    found = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the end of a message, or "" if nothing is near."""
    found = nearest(word, known)
    return f"; did you mean {found!r}?" if found else ""
