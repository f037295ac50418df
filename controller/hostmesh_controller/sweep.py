"""Whether a deletion would take most of a mesh away at once: then it is asked whether that is meant. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from hostmesh_controller.model.objects import ApiObject, ObjectKey

LEAST: Final = 8
"""So many must go, and more than half of those there are. Fewer is an application that is taken down."""
_SHOWN: Final = 5
_WORDS: Final[Mapping[str, str]] = {
    "Service": "services",
    "ServiceEntry": "services",
    "Host": "hosts",
    "WorkloadEntry": "workloads",
}


def most_of(keys: Iterable[ObjectKey], objects: Mapping[ObjectKey, ApiObject]) -> str:
    """Return what would go of the services, hosts or workloads, in words; "" if that is not most of them."""
    gone: dict[str, list[ObjectKey]] = {}
    for key in dict.fromkeys(keys):
        if key.kind in _WORDS and key in objects:
            gone.setdefault(_WORDS[key.kind], []).append(key)
    gone = {word: each for word, each in gone.items() if len(each) >= LEAST}
    if not gone:
        return ""
    there = Counter(_WORDS[key.kind] for key in objects if key.kind in _WORDS)
    return "; ".join(_told(each, word, there[word]) for word, each in gone.items() if 2 * len(each) > there[word])


def _told(gone: list[ObjectKey], word: str, there: int) -> str:
    more = len(gone) - _SHOWN
    names = ", ".join(str(key) for key in gone[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"{len(gone)} of {there} {word} would go ({names})"
