"""Envoy's messages by their names: what an operator writes, or what a resource holds, may be of any type Envoy has."""

from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from envoy.service.discovery.v3.discovery_pb2 import Resource as WireResource
from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.symbol_database import Default

from hostmesh_api.delta import Resource


@lru_cache(4096)
def message_class(full_name: str) -> type[Message] | None:
    """Return the class of a message such as `envoy.config.cluster.v3.Cluster`, or None if there is no such message.

    Modules have the names of the messages' packages, so only those of one package are loaded.
    """
    known = _known(full_name)
    parts = full_name.split(".")
    # A nested message's package is shorter than its name by more than one part.
    for length in range(len(parts) - 1, 1, -1):
        if known is not None:
            break
        _load(".".join(parts[:length]))
        known = _known(full_name)
    return known


def _known(full_name: str) -> type[Message] | None:
    try:
        found: type[Message] = Default().GetSymbol(full_name)
    except KeyError:
        return None
    return found


def _load(package: str) -> None:
    if not all(part.isidentifier() for part in package.split(".")):
        return
    try:
        found = import_module(package)
    except ModuleNotFoundError:
        return
    for module in iter_modules(getattr(found, "__path__", ())):
        if module.name.endswith("_pb2"):
            import_module(f"{package}.{module.name}")


def message_of(resource: Resource) -> Message | None:
    """Return what a resource holds; None for one that says "there is no such thing"."""
    wrapped = WireResource.FromString(resource.body)
    return unpacked(wrapped.resource) if wrapped.HasField("resource") else None


def unpacked(packed: WireAny) -> Message | None:
    """Return the message in an Any, or None if no message has its type."""
    found = message_class(packed.type_url.rpartition("/")[2])
    if found is None:
        return None
    message = found()
    packed.Unpack(message)
    return message


def as_json(message: Message) -> dict[str, Any]:
    """Return a message as Envoy's JSON, with what is inside of it whatever its type."""
    _load_inner(message)
    return MessageToDict(message)


def _load_inner(message: Message) -> None:
    """Make the types of all nested Any messages known, which conversion needs."""
    if isinstance(message, WireAny):
        inner = unpacked(message)
        if inner is not None:
            _load_inner(inner)
        return
    for _, value in message.ListFields():
        for each in _messages_in(value):
            _load_inner(each)


def _messages_in(value: Any) -> list[Message]:
    if isinstance(value, Message):
        return [value]
    if hasattr(value, "values"):
        return [each for each in value.values() if isinstance(each, Message)]
    if isinstance(value, str | bytes | int | float):
        return []
    return [each for each in value if isinstance(each, Message)]
