"""The value of an EnvoyFilter's patch: Envoy's own configuration as JSON, made into the message it stands for.

What is wrong in it is told with its place, as for our own fields: a name that Envoy does not know would otherwise be
dropped in silence.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from hostmesh_controller.envoy_types import message_class, neighbours
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
_WELL_KNOWN: Final = "google.protobuf."
_OLD: Final = re.compile(r"^envoy\..*\.v2(alpha\d*)?\.")
"""The messages are known to us, but Envoy does not take them any more."""
_ISTIO: Final = ("istio.envoy.config.filter.", "stats.PluginConfig", "envoy.tcp.metadataexchange.")
"""Filters that Istio's build of Envoy has; `stats.PluginConfig` is Istio's telemetry."""

Path = tuple[str | int, ...]


class ValueFault(NamedTuple):
    """What is wrong in a value, and where in it."""

    path: Path
    message: str
    code: str


class BadValueError(ValueError):
    """A value that is not what it must be."""

    def __init__(self, faults: tuple[ValueFault, ...]) -> None:
        super().__init__("; ".join(each.message for each in faults))
        self.faults = faults


def parsed(apply_to: str, value: Mapping[str, Any]) -> Message:
    """Return the message that a patch's value is.

    Raises:
        BadValueError: a field or a type that Envoy does not have, or a value of the wrong kind.
    """
    found = message_class(TYPES[apply_to])
    assert found is not None
    faults = tuple(_faults(_descriptor(found), value, ()))
    if faults:
        raise BadValueError(faults)
    message = found()
    try:
        ParseDict(dict(value), message)
    except ParseError as error:
        raise BadValueError((ValueFault((), str(error).partition("\n")[0], "value"),)) from error
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        # json_format lets some of them through for values of the wrong shape.
        raise BadValueError((ValueFault((), f"cannot be read: {error}", "value"),)) from error
    return message


def _faults(descriptor: Descriptor, value: object, path: Path) -> Iterator[ValueFault]:
    """Yield names that a message, and types that Envoy, does not have; values are looked at by protobuf itself."""
    if descriptor.full_name == _ANY:
        yield from _any_faults(value, path)
        return
    # Durations, wrappers and free-form structs have a JSON form of their own.
    if descriptor.full_name.startswith(_WELL_KNOWN) or not isinstance(value, Mapping):
        return
    fields = _fields(descriptor)
    for name, inner in value.items():
        field = fields.get(name)
        if field is None:
            message = f"{descriptor.full_name} has no field {name!r}{did_you_mean(str(name), fields)}"
            yield ValueFault((*path, name), message, "unknown-field")
        elif field.message_type is not None:
            yield from _field_faults(field.message_type, inner, (*path, name))


def _field_faults(descriptor: Descriptor, value: object, path: Path) -> Iterator[ValueFault]:
    if descriptor.GetOptions().map_entry:
        of = descriptor.fields_by_name["value"].message_type
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            if of is not None:
                yield from _faults(of, inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _faults(descriptor, inner, (*path, index))
    else:
        yield from _faults(descriptor, value, path)


def _any_faults(value: object, path: Path) -> Iterator[ValueFault]:
    if not isinstance(value, Mapping):
        yield ValueFault(path, 'expected a mapping with "@type" and the fields of that type', "value")
        return
    if not value:
        return
    type_url = value.get("@type")
    if not isinstance(type_url, str):
        near = next((name for name in ("type", "@Type", "type_url", "typeUrl") if name in value), None)
        hint = f" (not {near!r})" if near else ""
        yield ValueFault(path, f'"@type" is missing{hint}: which of Envoy\'s messages this is', "missing")
        return
    name = type_url.rpartition("/")[2]
    found = None if _OLD.search(name) else message_class(name)
    if found is None:
        yield ValueFault((*path, "@type"), _unknown_type(name), "unknown-type")
    else:
        rest = {key: inner for key, inner in value.items() if key != "@type"}
        yield from _faults(_descriptor(found), rest, path)


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
