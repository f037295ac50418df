"""The value of an EnvoyFilter's patch: Envoy's own configuration as JSON, made into the message it stands for.

As in Istio, a field that Envoy does not have refuses nothing: it is left out, and told with its place so that it is not
dropped in silence. What cannot be read is refused.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from hostmesh_controller.envoy_types import message_class, neighbours
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.suggest import did_you_mean

TYPES: Final[Mapping[str, str]] = {
    "LISTENER": "envoy.config.listener.v3.Listener",
    "FILTER_CHAIN": "envoy.config.listener.v3.FilterChain",
    "LISTENER_FILTER": "envoy.config.listener.v3.ListenerFilter",
    "NETWORK_FILTER": "envoy.config.listener.v3.Filter",
    "HTTP_FILTER": "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
    "ROUTE_CONFIGURATION": "envoy.config.route.v3.RouteConfiguration",
    "VIRTUAL_HOST": "envoy.config.route.v3.VirtualHost",
    "HTTP_ROUTE": "envoy.config.route.v3.Route",
    "CLUSTER": "envoy.config.cluster.v3.Cluster",
    "EXTENSION_CONFIG": "envoy.config.core.v3.TypedExtensionConfig",
    "BOOTSTRAP": "envoy.config.bootstrap.v3.Bootstrap",
}
"""The message that a value is, by `applyTo`."""

_ANY: Final = "google.protobuf.Any"
_DURATION: Final = "google.protobuf.Duration"
_WELL_KNOWN: Final = "google.protobuf."
_OLD: Final = re.compile(r"^envoy\..*\.v2(alpha\d*)?\.")
"""The messages are known to us, but Envoy does not take them any more."""
_ISTIO: Final = ("istio.envoy.config.filter.", "stats.PluginConfig", "envoy.tcp.metadataexchange.")
"""Filters that Istio's build of Envoy has; `stats.PluginConfig` is Istio's telemetry."""

_UNKNOWN_FIELD: Final = "unknown-field"

Path = tuple[str | int, ...]


class ValueFault(NamedTuple):
    """What is wrong in a value, and where in it."""

    path: Path
    message: str
    code: str


class BadValueError(ValueError):
    """A value that cannot be read."""

    def __init__(self, faults: tuple[ValueFault, ...]) -> None:
        super().__init__("; ".join(each.message for each in faults))
        self.faults = faults


class Parsed(NamedTuple):
    """The message that a value is, and what was left out of the value because Envoy does not have it."""

    message: Message
    unknown: tuple[ValueFault, ...]


def parsed(apply_to: str, value: Mapping[str, Any]) -> Parsed:
    """Read a patch's value.

    Raises:
        BadValueError: a type that Envoy does not have, or a value of the wrong kind.
    """
    found = message_class(TYPES[apply_to])
    assert found is not None
    faults: list[ValueFault] = []
    known = _known(_descriptor(found), value, (), faults)
    refused = tuple(each for each in faults if each.code != _UNKNOWN_FIELD)
    if refused:
        raise BadValueError(refused)
    message = found()
    try:
        ParseDict(known, message)
    except ParseError as error:
        raise BadValueError((ValueFault((), str(error).partition("\n")[0], "value"),)) from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        # json_format lets some of them through for values of the wrong shape.
        raise BadValueError((ValueFault((), f"cannot be read: {error}", "value"),)) from error
    _settle(message)
    return Parsed(message, tuple(faults))


def _settle(message: Message) -> None:
    """Pack what is packed inside of a message anew: maps are packed in any order, and bytes are what is compared."""
    if isinstance(message, WireAny):
        found = message_class(message.type_url.rpartition("/")[2])
        if found is not None:
            inner = found.FromString(message.value)
            _settle(inner)
            message.value = inner.SerializeToString(deterministic=True)
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if isinstance(value, Message):
            _settle(value)
            continue
        for each in value.values() if hasattr(value, "values") else value:
            if isinstance(each, Message):
                _settle(each)


def _known(descriptor: Descriptor, value: Any, path: Path, faults: list[ValueFault]) -> Any:
    """Return what a message takes of a value; tell fields that it, and types that Envoy, does not have.

    Values are looked at by protobuf itself.
    """
    if descriptor.full_name == _ANY:
        return _known_any(value, path, faults)
    if descriptor.full_name == _DURATION:
        return _seconds(value)
    # Wrappers and free-form structs have a JSON form of their own.
    if descriptor.full_name.startswith(_WELL_KNOWN) or not isinstance(value, Mapping):
        return value
    fields = _fields(descriptor)
    result: dict[str, Any] = {}
    for name, inner in value.items():
        field = fields.get(name)
        if field is None:
            message = f"{descriptor.full_name} has no field {name!r}{did_you_mean(str(name), fields)}"
            faults.append(ValueFault((*path, name), message, _UNKNOWN_FIELD))
        elif field.message_type is not None:
            result[name] = _known_field(field.message_type, inner, (*path, name), faults)
        else:
            result[name] = inner
    return result


def _known_field(descriptor: Descriptor, value: Any, path: Path, faults: list[ValueFault]) -> Any:
    if descriptor.GetOptions().map_entry:
        of = descriptor.fields_by_name["value"].message_type
        if of is None or not isinstance(value, Mapping):
            return value
        return {key: _known(of, inner, (*path, key), faults) for key, inner in value.items()}
    # A list has a JSON form of its own for Struct's ListValue alone.
    if isinstance(value, list | tuple):
        return [_known(descriptor, inner, (*path, index), faults) for index, inner in enumerate(value)]
    return _known(descriptor, value, path, faults)


def _known_any(value: Any, path: Path, faults: list[ValueFault]) -> Any:
    if not isinstance(value, Mapping):
        faults.append(ValueFault(path, 'expected a mapping with "@type" and the fields of that type', "value"))
        return value
    if not value:
        return value
    type_url = value.get("@type")
    if not isinstance(type_url, str):
        near = next((name for name in ("type", "@Type", "type_url", "typeUrl") if name in value), None)
        hint = f" (not {near!r})" if near else ""
        missing = f'"@type" is missing{hint}: which of Envoy\'s messages this is'
        faults.append(ValueFault(path, missing, "missing"))
        return value
    name = type_url.rpartition("/")[2]
    found = None if _OLD.search(name) else message_class(name)
    if found is None:
        faults.append(ValueFault((*path, "@type"), _unknown_type(name), "unknown-type"))
        return value
    descriptor = _descriptor(found)
    rest = {key: inner for key, inner in value.items() if key != "@type"}
    if descriptor.full_name.startswith(_WELL_KNOWN):
        return value
    return {"@type": type_url, **_known(descriptor, rest, path, faults)}


def _seconds(value: Any) -> Any:
    """Return a duration as protobuf writes it, in seconds; Istio takes Go's other units too."""
    if not isinstance(value, str) or (value.endswith("s") and value[:-1].isdigit()):
        return value
    try:
        length = Duration(value)
    except ValueError:
        return value
    return f"{length.days * 86_400 + length.seconds}.{length.microseconds:06d}s"


def _unknown_type(name: str) -> str:
    if name.startswith(_ISTIO):
        return f"{name} is of Istio's own build of Envoy; hosts run Envoy as it is released, which does not have it"
    if _OLD.search(name):
        return f"Envoy has no type {name!r} (hint: try using the v3 XDS API)"
    return f"Envoy has no type {name!r}{did_you_mean(name, neighbours(name))}"


def _descriptor(kind: type[Message]) -> Descriptor:
    # Its declared type is either of protobuf's two implementations.
    return cast("Descriptor", kind.DESCRIPTOR)


@lru_cache(2048)
def _fields(descriptor: Descriptor) -> Mapping[str, FieldDescriptor]:
    """Return a message's fields by both spellings that JSON may have."""
    return {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
