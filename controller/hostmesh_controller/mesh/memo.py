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

    def entry(self, key: Hashable) -> tuple[tuple[object, ...], Any] | None:
        """Return the inputs of what is kept under a key, and the result."""
        return self._entries.get(key)

    def get(self, key: Hashable, inputs: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return `make()`, or its earlier result for the same key and the identical inputs (a fixed number of them)."""
        entry = self.entry(key)
        if entry is not None and all(map(_is, entry[0], inputs)):
            result: T = entry[1]
            return result
        result = make()
        self._keep(key, inputs, result)
        return result

    def step(self, key: Hashable, inputs: tuple[object, ...], make: Callable[[tuple[Any, ...], T | None], T]) -> T:
        """Return the same as `get`; `make` is told the earlier inputs and their result ((), None: there are none).

        It may start from them: what it returns must follow from the new inputs alone all the same.
        """
        entry = self.entry(key)
        if entry is not None and all(map(_is, entry[0], inputs)):
            result: T = entry[1]
            return result
        result = make(*entry) if entry is not None else make((), None)
        self._keep(key, inputs, result)
        return result

    def same(self, key: Hashable, value: T) -> T:
        """Return the object that was kept under the key if it equals `value`, else keep and return that."""
        entry = self.entry(key)
        if entry is not None and entry[1] == value:
            known: T = entry[1]
            return known
        self._keep(key, (), value)
        return value

    def _keep(self, key: Hashable, inputs: tuple[object, ...], result: object) -> None:
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        self._entries[key] = (inputs, result)


class Scratch(Memo):
    """A memo that knows what another one keeps, and forgets all else when it is dropped.

    For what is looked at once and is too much to be kept.
    """

    __slots__ = ("_base",)

    def __init__(self, base: Memo) -> None:
        super().__init__()
        self._base = base

    def entry(self, key: Hashable) -> tuple[tuple[object, ...], Any] | None:
        own = self._entries.get(key)
        return self._base.entry(key) if own is None else own


def _is(left: object, right: object) -> bool:
    return left is right
