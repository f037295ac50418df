"""Which files and sockets of the host Envoy may be told to use: a walk over a configuration, on the wire or as JSON.

Without the owner's word Envoy reads what lies in its own directory, and keys and certificates anywhere: of those it
shows nothing to anybody but certificates. It writes to its own output, and uses no unix socket. Pure.
"""

import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.struct_pb2 import Struct

from hostmesh_agent.bootstrap import field_name
from hostmesh_agent.policy_floor.table import LEAVES, READ, SECRETS, SOCKET, SOURCE, TARGET, WRITE, Table
from hostmesh_agent.wire_fields import fields, inside

MAX_DEPTH: Final = 100
"""Of messages in messages: protobuf's own bound."""
OUTPUTS: Final = frozenset({"/dev/stdout", "/dev/stderr", "/dev/null"})
MAX_REMEMBERED: Final = 4096
"""Endpoints; a service with more is looked through at each change."""
OWN_KEYS: Final = "certs"
"""Below Envoy's directory: keys, which are for TLS and not to be read otherwise."""

_ENDPOINT: Final = "envoy.config.endpoint.v3.LbEndpoint"
_ANY: Final = "google.protobuf.Any"
_STRUCTS: Final = frozenset({"udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"})
_TLS: Final = "envoy.extensions.transport_sockets.tls.v3."
_OF_TLS: Final = frozenset(
    _TLS + name for name in ("TlsCertificate", "CertificateValidationContext", "TlsSessionTicketKeys")
)
_TYPE_URL: Final = 1
_VALUE: Final = 2
_MAP_VALUE: Final = 2
_UNIX: Final = ("unix:", "unix-abstract:", "vsock:")


@dataclass(frozen=True, slots=True)
class Reach:
    """What the host's owner allows beside the usual; see `config.FloorSettings`."""

    unix_sockets: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    refused_extensions: tuple[str, ...] = ()

    def of_leaf(self, kind: str, text: str, *, tls: bool) -> str:
        """Return why a path (or target) must not be used as what it is in its message; "" if it may be."""
        if kind == SOURCE:
            return "it gets configuration from another source than this agent"
        if not text or (kind in {READ, SECRETS} and tls):
            return ""
        if kind == TARGET:
            return "" if not text.startswith(_UNIX) else self._socket(text.partition(":")[2])
        if kind == SOCKET:
            return self._socket(text)
        if "\0" not in text and (_usual(kind, text) or _among(text, self.files)):
            return ""
        does = "writes to" if kind == WRITE else "reads"
        return f"it {does} {text!r} (allowed with floor.files in agent.toml)"

    def _socket(self, path: str) -> str:
        if "\0" not in path and _among(path, self.unix_sockets):
            return ""
        return f"it uses the unix socket {path!r} (allowed with floor.unix_sockets in agent.toml)"

    def of_extension(self, name: str) -> str:
        """Return why a type of message is not taken at all; "" if it is."""
        if any(part in name for part in self.refused_extensions):
            return f"it uses {name} (refused by floor.refused_extensions in agent.toml)"
        return ""


def _usual(kind: str, text: str) -> bool:
    if kind == WRITE:
        return text in OUTPUTS
    if text.startswith("/"):
        return False
    parts = posixpath.normpath(text).split("/")
    return ".." not in text.split("/") and (kind == SECRETS or parts[0] != OWN_KEYS)


def _among(path: str, allowed: tuple[str, ...]) -> bool:
    if ".." in path.split("/"):
        return False
    return any(path == each or (each.endswith("/") and path.startswith(each)) for each in allowed)


@dataclass(frozen=True, slots=True)
class _At:
    """A place in a configuration. `tls`: what is named there are keys and certificates."""

    message: str
    data: Any
    tls: bool = False
    depth: int = 0

    def below(self, message: str, data: Any) -> "_At":
        return _At(message, data, self.tls or message in _OF_TLS, self.depth + 1)


class Walk:
    """Looks through configurations. What was found harmless among the endpoints of a service is not looked at again."""

    def __init__(self, table: Table, reach: Reach) -> None:
        self._step = _Step(table, reach)
        self._harmless: set[bytes] = set()

    def problem(self, type_url: str, value: bytes) -> str:
        """Return why a configuration on the wire would make Envoy reach too far; "" if it would not.

        Raises:
            ValueError: it cannot be read.
        """
        return self._first(lambda: _At(self._step.known(type_url), value))

    def problem_of_json(self, message: str, document: Mapping[str, Any]) -> str:
        """Return the same of a configuration in protobuf's JSON.

        Raises:
            ValueError: it is none.
        """
        return self._first(lambda: _At(message, document))

    def _first(self, start: Callable[[], _At]) -> str:
        endpoints: list[bytes] = []
        try:
            todo = [start()]
            while todo:
                at = todo.pop()
                if at.depth > MAX_DEPTH:
                    return f"it is nested more than {MAX_DEPTH} deep"
                if at.message == _ENDPOINT and isinstance(at.data, bytes):
                    if at.data in self._harmless:
                        continue
                    endpoints.append(at.data)
                todo.extend(self._step.on_wire(at) if isinstance(at.data, bytes) else self._step.in_json(at))
        except _RefusedError as refused:
            return str(refused)
        if len(self._harmless) + len(endpoints) > MAX_REMEMBERED:
            self._harmless.clear()
        self._harmless.update(endpoints[:MAX_REMEMBERED])
        return ""


class _RefusedError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of the walk, in each of the two forms."""

    table: Table
    reach: Reach

    def known(self, type_url: str) -> str:
        """Return the name of the message that a type's URL means."""
        name = type_url.rpartition("/")[2]
        why = self.reach.of_extension(name)
        if not why and not self.table.knows(name):
            why = f"it holds {name!r}, of which this agent cannot tell what it does"
        if why:
            raise _RefusedError(why)
        return name

    def on_wire(self, at: _At) -> Iterator[_At]:
        if at.message == _ANY:
            yield from self._any(at)
        elif at.message in _STRUCTS:
            yield from self._struct(at)
        else:
            leading = self.table.leading.get(at.message)
            if leading is None:
                return
            for number, value in fields(at.data):
                field = leading.get(number)
                if field is None or not isinstance(value, bytes):
                    continue
                if field.leads_to in LEAVES:
                    self._leaf(field.leads_to, value, at)
                else:
                    yield at.below(field.leads_to, value)

    def in_json(self, at: _At) -> Iterator[_At]:
        if not isinstance(at.data, Mapping):
            raise ValueError(f"{at.message} is {type(at.data).__name__} in place of an object")
        if at.message == _ANY:
            yield from self._any_in_json(at)
            return
        if at.message in _STRUCTS:
            type_url = str(at.data.get("type_url", at.data.get("typeUrl", "")))
            yield _At(self.known(type_url), at.data.get("value") or {}, depth=at.depth + 1)
            return
        known = self.table.by_name.get(at.message, {})
        for key, value in at.data.items():
            field = known.get(field_name(str(key)))
            if field is None or value is None:
                continue
            if field.leads_to in LEAVES:
                self._leaf(field.leads_to, value, at)
                continue
            message, held = field.leads_to, value if isinstance(value, list) else [value]
            if field.is_map:
                message, held = self.table.leading[message][_MAP_VALUE].leads_to, list(_values(value))
            yield from (at.below(message, each) for each in held)

    def _any(self, at: _At) -> Iterator[_At]:
        """Everything that is said twice is looked at twice: the reader takes the last."""
        urls = [each.decode() for each in inside(at.data, _TYPE_URL)]
        for url in filter(None, urls):
            name = self.known(url)
            for value in inside(at.data, _VALUE):
                yield _At(name, value, depth=at.depth + 1)

    def _struct(self, at: _At) -> Iterator[_At]:
        from google.protobuf.json_format import MessageToDict

        for url in filter(None, (each.decode() for each in inside(at.data, _TYPE_URL))):
            name = self.known(url)
            # All that is said of it together, as its reader takes it.
            document = MessageToDict(Struct.FromString(b"".join(inside(at.data, _VALUE))))
            yield _At(name, document, depth=at.depth + 1)

    def _any_in_json(self, at: _At) -> Iterator[_At]:
        if at.data:
            content = {key: value for key, value in at.data.items() if key != "@type"}
            yield _At(self.known(str(at.data.get("@type", ""))), content, depth=at.depth + 1)

    def _leaf(self, kind: str, value: Any, at: _At) -> None:
        text = "" if kind == SOURCE else value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise ValueError("a text is expected")
        why = self.reach.of_leaf(kind, text, tls=at.tls)
        if why:
            raise _RefusedError(why)


def _values(value: Any) -> Iterator[Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a map is expected")
    yield from value.values()
