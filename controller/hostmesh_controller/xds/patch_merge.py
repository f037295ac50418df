"""How a patch changes a message or a list: Istio's merge, and its insertions."""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.messages import unpacked
from hostmesh_controller.xds.patch_set import Patch

M = TypeVar("M", bound=Message)

_REPLACE_LISTS: Final = "MERGE_AND_REPLACE_LIST"


def apply_merge(patch: Patch, into: Message) -> None:
    """Merge the value of a MERGE (lists grow) or a MERGE_AND_REPLACE_LIST (lists are replaced) into a message."""
    if patch.value is not None:
        merge(into, patch.value, replace_lists=patch.operation == _REPLACE_LISTS)


def merge(into: Message, value: Message, *, replace_lists: bool = False) -> None:
    """Merge as protobuf does, but a duration is replaced as a whole: half of one makes no sense with half of another.

    As in protobuf a value that is its type's default (0, false, "") changes nothing unless its field can be unset.
    """
    for descriptor, given in value.ListFields():
        if isinstance(given, Message):
            inner: Message = getattr(into, descriptor.name)
            if isinstance(given, Duration):
                inner.CopyFrom(given)
            else:
                inner.SetInParent()
                merge(inner, given, replace_lists=replace_lists)
        elif hasattr(given, "MergeFrom"):
            several: Any = getattr(into, descriptor.name)
            if replace_lists and not hasattr(given, "items"):
                del several[:]
            several.MergeFrom(given)
        else:
            setattr(into, descriptor.name, given)


def merged_any(packed: WireAny, value: WireAny) -> WireAny | None:
    """Return what both hold, merged; None if they are of different types, or of one that is not known."""
    if packed.type_url.rpartition("/")[2] != value.type_url.rpartition("/")[2]:
        return None
    ours, theirs = unpacked(packed), unpacked(value)
    if ours is None or theirs is None:
        return None
    merge(ours, theirs)
    return any_of(ours)


def merge_extension(into: Any, value: Any) -> None:
    """Merge a filter or a transport socket into another of its kind, `typed_config` by what is in it.

    The value's name wins, so that a filter can be renamed; one without `typed_config` changes the name alone.
    """
    if not into.HasField("typed_config"):
        return
    if value.HasField("typed_config"):
        found = merged_any(into.typed_config, value.typed_config)
        if found is None:
            return
        into.typed_config.CopyFrom(found)
    if value.name:
        into.name = value.name


def changed_list(patch: Patch, items: Iterable[M], matches: Callable[[M], bool], *, has_match: bool) -> list[M]:
    """Return a list of filters with the patch applied to it; MERGE changes no list.

    Args:
        patch: the change.
        items: the list as it is.
        matches: tells whether an item is the one that is meant.
        has_match: the patch says which item it means. Without it what goes before or after one goes to an end, and
            nothing is removed or replaced.
    """
    result = list(items)
    value: Any = patch.value
    place = next((index for index, item in enumerate(result) if matches(item)), None) if has_match else None
    match patch.operation:
        case "ADD":
            result.append(value)
        case "INSERT_FIRST":
            result.insert(0, value)
        case "INSERT_AFTER" if not has_match:
            result.append(value)
        case "INSERT_BEFORE" if not has_match:
            result.insert(0, value)
        case "INSERT_AFTER" if place is not None:
            result.insert(place + 1, value)
        case "INSERT_BEFORE" if place is not None:
            result.insert(place, value)
        case "REPLACE" if place is not None:
            result[place] = value
        case "REMOVE" if has_match:
            result = [item for item in result if not matches(item)]
    return result


def refill(container: Any, items: Iterable[M]) -> None:
    """Make a repeated field hold these messages, some of which may be its own."""
    copies = [type(item).FromString(item.SerializeToString(deterministic=True)) for item in items]
    del container[:]
    container.extend(copies)
