"""CapturePolicy: which connections of the selected hosts meet Envoy, and what happens while no Envoy is there."""

import re
from functools import lru_cache
from ipaddress import ip_network
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, PlainValidator, model_validator

from hostmesh_api.wire import MAX_INTERFACE_BYTES
from hostmesh_controller.model.schema import Spec, fault
from hostmesh_controller.model.security import PolicySelector

_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@\\-]{1,248}\.(service|scope|slice)")
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?|0|[1-9][0-9]{0,9}")
_UID_MAX: Final = 2**32 - 2
_INTERFACE: Final = re.compile(r"[^\s/]+")
_MAX_RULES: Final = 64
_MAX_PORTS: Final = 1024
_RANGE: Final = re.compile(r"([1-9][0-9]{0,4})-([1-9][0-9]{0,4})")
_IN_A_RULE: Final = {
    **{each: each for each in ("ports", "cidrs", "interfaces", "users", "units")},
    **dict.fromkeys(("uids", "user", "uid"), "users"),
}
_SIDES: Final = dict.fromkeys(("users", "units"), "outbound")


def _cidr(value: str) -> str:
    try:
        ip_network(value)
    except ValueError as error:
        raise fault("cidr", f"{value!r} is not an address or a block such as 10.0.0.0/8: {error}") from error
    return value


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _user(value: str) -> str:
    if not _USER.fullmatch(value) or (value.isdecimal() and int(value) > _UID_MAX):
        raise fault("user", f"{value!r} is not the name or the number of a user")
    return value


def _unit(value: str) -> str:
    if not _UNIT.fullmatch(value):
        raise fault("unit", f"{value!r} is not a unit with processes: write its whole name, such as shop.service")
    return value


def _interface(value: str) -> str:
    if not _INTERFACE.fullmatch(value) or len(value.encode()) > MAX_INTERFACE_BYTES or value in {".", ".."}:
        raise fault("interface", f"{value!r} is not the name of an interface ({MAX_INTERFACE_BYTES} bytes at most)")
    if value == "lo":
        raise fault("interface", "'lo' is the host itself, which is called without Envoy anyhow")
    return value


def _port_or_range(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
        return value
    if isinstance(value, str) and value.isdecimal():
        raise fault("port", f"{value!r} is text: write the port number without quotes")
    if not isinstance(value, str):
        raise fault("port", "expected a port from 1 to 65535, or a range of them such as '9000-9010'")
    if not (found := _RANGE.fullmatch(value)) or not int(found[1]) < int(found[2]) <= 65535:
        raise fault("port", f"{value!r} is no range of ports such as '9000-9010'")
    return value


def _as_written(value: int | str) -> int | str:
    return value


@lru_cache(4096)
def _numbers(ports: tuple[int | str, ...]) -> tuple[int, ...]:
    """Return each port once, in the order in which they are written; of too many no more than shows that."""
    found = dict[int, None]()
    for each in ports:
        first, _, last = str(each).partition("-")
        found.update(dict.fromkeys(range(int(first), min(int(last or first), int(first) + _MAX_PORTS) + 1)))
        if len(found) > _MAX_PORTS:
            break
    return tuple(found)


PortOrRange = Annotated[
    int | str, PlainValidator(_port_or_range), PlainSerializer(_as_written, return_type=int | str, when_used="json")
]
Cidr = Annotated[str, AfterValidator(_cidr)]
User = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_user)]
Unit = Annotated[str, AfterValidator(_unit)]
Interface = Annotated[str, AfterValidator(_interface)]
FailureMode = Literal["closed", "open"]
InboundMode = Literal["redirect", "tproxy"]


class InboundRule(Spec):
    """Connections to the host: every field that is given must hold, of one list one entry.

    `ports` (numbers, and ranges such as "9000-9010") are the host's own, `cidrs` the callers', `interfaces` those where
    they come in.
    """

    refused: ClassVar = {
        "users": "the kernel does not tell of an inbound connection whose it is: name the ports",
        "units": "the kernel does not tell of an inbound connection whose it is: name the ports",
        "uids": "the kernel does not tell of an inbound connection whose it is: name the ports",
    }

    ports: Annotated[tuple[PortOrRange, ...], Field(max_length=_MAX_PORTS)] = ()
    cidrs: Annotated[tuple[Cidr, ...], Field(max_length=1024)] = ()
    interfaces: Annotated[tuple[Interface, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _says_something(self) -> "InboundRule":
        if not any(getattr(self, name) for name in type(self).model_fields):
            fields = ", ".join(type(self).model_fields)
            raise fault("missing", f"an empty rule would be about everything: give one of {fields}")
        return self

    @model_validator(mode="after")
    def _has_not_too_many_ports(self) -> "InboundRule":
        if len(self.port_numbers) > _MAX_PORTS:
            message = f"more than the {_MAX_PORTS} ports that a rule may have; one without ports is for all of them"
            raise fault("too-many", message, "ports")
        return self

    @property
    def port_numbers(self) -> tuple[int, ...]:
        """All of `ports`, each once; none: the rule is for every port."""
        return _numbers(self.ports)


class OutboundRule(InboundRule):
    """Connections of the host's programs. `ports` and `cidrs` are those that they call; `interfaces` where they leave.

    `users` are names or numbers, `units` systemd's names, both of the program that calls.
    """

    refused: ClassVar = {}
    meant: ClassVar = dict.fromkeys(("uids", "uid", "user"), "users takes numbers as well as names")

    users: Annotated[tuple[User, ...], Field(max_length=256)] = ()
    units: Annotated[tuple[Unit, ...], Field(max_length=256)] = ()


class InboundCapture(Spec):
    """Of the ports that the mesh declares on the host: what an `include` matches (none: all) and no `exclude` does.

    `mode`: with `tproxy` programs see the address of who calls, with `redirect` that of Envoy.
    """

    meant: ClassVar = {
        word: f"it belongs into a rule, exclude[0].{field} or include[0].{field}" for word, field in _IN_A_RULE.items()
    }

    mode: InboundMode = "redirect"

    include: Annotated[tuple[InboundRule, ...], Field(max_length=_MAX_RULES)] = ()
    exclude: Annotated[tuple[InboundRule, ...], Field(max_length=_MAX_RULES)] = ()
    failure_mode: FailureMode = "closed"


class OutboundCapture(Spec):
    """Of what the scope takes: what an `include` matches (none: all) and no `exclude` does."""

    meant = InboundCapture.meant

    include: Annotated[tuple[OutboundRule, ...], Field(max_length=_MAX_RULES)] = ()
    exclude: Annotated[tuple[OutboundRule, ...], Field(max_length=_MAX_RULES)] = ()
    failure_mode: FailureMode = "closed"


class CapturePolicySpec(Spec):
    """What of the selected hosts' connections meets Envoy.

    It holds for a whole host, if its selector matches the labels of the Host with those of one of its workloads; in the
    root namespace it selects in all. One policy holds for a host, they are not merged: one with labels goes before one
    without, one of the host's own namespaces before one of the root namespace, then the oldest. What the Host itself
    says (`spec.capture.scope`) goes before the policy, and what the host's owner excludes (agent.toml) before all. SSH,
    the controllers and Envoy are never captured.

    `scope`: `mesh` takes what goes to destinations known to the mesh, `all` every connection; None is `mesh`. Where
    nothing else may be called (REGISTRY_ONLY), it is `all` whatever is said.

    Ports that take mutual TLS alone (STRICT) stay captured whatever is excluded or not included. Virtual addresses
    are nobody's but Envoy's: rules about ports, addresses and interfaces do not hold there, those about users and units
    do, and who is not in the mesh is refused at once.

    `failureMode` says what happens while no Envoy is there. `closed`: connections are refused. `open`: they pass by
    until Envoy is back; but never to STRICT ports, to virtual addresses, to services of the mesh, nor where nothing
    else may be called.
    """

    meant: ClassVar = {
        **dict.fromkeys(("failureMode", "include", "exclude", "mode"), "say it under inbound or outbound"),
        **{
            word: f"it belongs into a rule, {_SIDES.get(field, 'inbound')}.exclude[0].{field} or such"
            for word, field in _IN_A_RULE.items()
        },
    }

    selector: PolicySelector | None = None
    scope: Literal["mesh", "all"] | None = None
    inbound: InboundCapture = InboundCapture()
    outbound: OutboundCapture = OutboundCapture()
