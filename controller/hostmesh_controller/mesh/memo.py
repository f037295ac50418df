"""What was built once and is still true: results that are kept for as long as their inputs are the same objects."""

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

T = TypeVar("T")

_MAX_ENTRIES: Final = 500_000
"""About 0.5 GB of resources; a mesh that has more names in use rebuilds them now and then."""


class Memo:
    """A cache whose entries prove themselves: a hit needs the same input objects, so nothing is ever invalidated.

    It is shared by all revisions of a mesh. That it is mutable cannot be seen: results are pure functions of inputs.
    """

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[tuple[object, ...], Any]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, inputs: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return `make()`, or its earlier result for the same key and the identical inputs (a fixed number of them)."""
        entry = self._entries.get(key)
        if entry is not None and all(map(_is, entry[0], inputs)):
            result: T = entry[1]
            return result
        result = make()
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        self._entries[key] = (inputs, result)
        return result


def _is(left: object, right: object) -> bool:
    return left is right
