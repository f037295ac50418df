"""CapturePolicy: which connections of the selected hosts meet Envoy, and what happens while no Envoy is there."""

import re
from ipaddress import ip_network
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hostmesh_api.wire import MAX_INTERFACE_BYTES
from hostmesh_controller.model.schema import Port, Spec, fault
from hostmesh_controller.model.security import PolicySelector

_UNIT: Final = re.compile(r"[A-Za-z0-9:_.@\\-]{1,248}\.(service|scope|slice)")
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}\$?|0|[1-9][0-9]{0,9}")
_UID_MAX: Final = 2**32 - 2
_INTERFACE: Final = re.compile(r"[^\s/]+")
_MAX_RULES: Final = 64


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


Cidr = Annotated[str, AfterValidator(_cidr)]
User = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_user)]
Unit = Annotated[str, AfterValidator(_unit)]
Interface = Annotated[str, AfterValidator(_interface)]
FailureMode = Literal["closed", "open"]


class InboundRule(Spec):
    """Connections to the host: every field that is given must hold, of one list one entry.

    `ports` are the host's own, `cidrs` the callers', `interfaces` those where they come in.
    """

    refused: ClassVar = {
        "users": "the kernel does not tell of an inbound connection whose it is: name the ports",
        "units": "the kernel does not tell of an inbound connection whose it is: name the ports",
    }

    ports: Annotated[tuple[Port, ...], Field(max_length=1024)] = ()
    cidrs: Annotated[tuple[Cidr, ...], Field(max_length=1024)] = ()
    interfaces: Annotated[tuple[Interface, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _says_something(self) -> "InboundRule":
        if not any(getattr(self, name) for name in type(self).model_fields):
            fields = ", ".join(type(self).model_fields)
            raise fault("missing", f"an empty rule would be about everything: give one of {fields}")
        return self


class OutboundRule(InboundRule):
    """Connections of the host's programs. `ports` and `cidrs` are those that they call; `interfaces` where they leave.

    `users` are names or numbers, `units` systemd's names, both of the program that calls.
    """

    refused: ClassVar = {}

    users: Annotated[tuple[User, ...], Field(max_length=256)] = ()
    units: Annotated[tuple[Unit, ...], Field(max_length=256)] = ()


class InboundCapture(Spec):
    """Of the ports that the mesh declares on the host: what an `include` matches (none: all) and no `exclude` does."""

    include: Annotated[tuple[InboundRule, ...], Field(max_length=_MAX_RULES)] = ()
    exclude: Annotated[tuple[InboundRule, ...], Field(max_length=_MAX_RULES)] = ()
    failure_mode: FailureMode = "closed"


class OutboundCapture(Spec):
    """Of what the scope takes: what an `include` matches (none: all) and no `exclude` does."""

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

    selector: PolicySelector | None = None
    scope: Literal["mesh", "all"] | None = None
    inbound: InboundCapture = InboundCapture()
    outbound: OutboundCapture = OutboundCapture()
