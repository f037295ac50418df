"""What the specs of all kinds are made of: the base model and the types of single fields.

Numbers and booleans are strict, as in Kubernetes: `weight: "80"` is a mistake, not 80. Keys are written in camelCase.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    Strict,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from hostmesh_api.wire import ENVOYS_TCP_PORTS
from hostmesh_controller.model.durations import Duration

_BROADCAST: Final = "255.255.255.255"


def fault(code: str, message: str, *at: str | int) -> PydanticCustomError:
    """Return the error a validator raises: `at` are the steps from the validated value to the field in question."""
    return PydanticCustomError("hostmesh", "{message}", {"code": code, "message": message, "at": at})


class Spec(BaseModel):
    """A part of a spec: immutable, closed, equal by content.

    `not_yet` names the fields (as users write them) that Istio or Kubernetes has here and hostmesh does not
    implement yet: they are refused by name, where a misspelt field gets a suggestion. `refused` says why for those
    that need more words. `meant`: what to write in place of a word that suggests itself and is no field. `at_top` says
    that the fields of the kind stand beside metadata, not under `spec`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_default=False,
        hide_input_in_errors=True,
    )
    not_yet: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}
    meant: ClassVar[Mapping[str, str]] = {}
    at_top: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """Return what the user wrote, ready for JSON: fields left out stay out."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def given(spec: Spec, *fields: str) -> list[str]:
    """Return which of the fields (Python names) are set and not None, in the order asked."""
    return [name for name in fields if getattr(spec, name) is not None]


def at_most_one(spec: Spec, *fields: str) -> None:
    """Refuse two of the fields together, as `oneOf` in the schema does.

    Raises:
        PydanticCustomError: more than one is set.
    """
    found = [to_camel(name) for name in given(spec, *fields)]
    if len(found) > 1:
        raise fault("one-of", f"only one of {', '.join(found)} may be set", found[1])


@contextmanager
def as_fault(code: str) -> Iterator[None]:
    """Turn a ValueError into the error of the field that is being validated."""
    try:
        yield
    except ValueError as error:
        raise fault(code, str(error)) from error


_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN_MAX = 253
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_PORT_NAME = re.compile(r"[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?")
_PORT_NAME_MAX = 62


def check_label(value: str) -> str:
    """Return `value` if it is an RFC 1123 label.

    Raises:
        ValueError: it is not.
    """
    if not _LABEL.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a valid name: up to 63 lower-case letters, digits and '-', starting and ending with a "
            "letter or digit"
        )
    return value


def check_subdomain(value: str) -> str:
    """Return `value` if it is an RFC 1123 subdomain: labels joined by dots, 253 characters at most.

    Raises:
        ValueError: it is not.
    """
    if len(value) > _SUBDOMAIN_MAX or not all(_LABEL.fullmatch(part) for part in value.split(".")):
        raise ValueError(
            f"{value!r} is not a valid name: lower-case letters, digits, '-' and '.', 253 characters at most, each "
            "part starting and ending with a letter or digit"
        )
    return value


def check_label_value(value: str) -> str:
    """Return `value` if Kubernetes takes it as the value of a label.

    Raises:
        ValueError: it does not.
    """
    if not _LABEL_VALUE.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a valid label value: up to 63 letters, digits, '-', '_' and '.', starting and ending "
            "with a letter or digit"
        )
    return value


def check_label_key(value: str) -> str:
    """Return `value` if Kubernetes takes it as the key of a label: an optional DNS prefix, '/', and a name.

    Raises:
        ValueError: it does not.
    """
    prefix, slash, name = value.rpartition("/")
    if slash:
        check_subdomain(prefix)
    if not name or not _LABEL_VALUE.fullmatch(name):
        raise ValueError(f"{value!r} is not a valid label key")
    return value


def check_host(value: str) -> str:
    """Return `value` if it is a DNS name, short or full, or a wildcard such as `*.example.com`.

    Raises:
        ValueError: it is neither.
    """
    name = value.removeprefix("*.")
    if len(value) > _SUBDOMAIN_MAX or not all(_LABEL.fullmatch(part) for part in name.lower().split(".")):
        raise ValueError(f"{value!r} is not a host name (or a wildcard such as '*.example.com')")
    return value


def check_ip(value: str) -> str:
    """Return `value` if it is an IPv4 or IPv6 address that one machine or service can have.

    Raises:
        ValueError: it is not.
    """
    try:
        address = ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address") from None
    if address.is_unspecified or address.is_multicast or value == _BROADCAST:
        raise ValueError(f"{value!r} is no address that one machine or service can have")
    return value


def _not_envoys(value: int) -> int:
    # A listener of ours on the same port would be refused by every Envoy; a call to it would run in circles.
    if value in ENVOYS_TCP_PORTS:
        with as_fault("port"):
            raise ValueError(f"port {value} is Envoy's own on every host of the mesh: use another")
    return value


def _checked(check: Callable[[str], str], code: str, *, or_empty: bool = False) -> AfterValidator:
    def validate(value: str) -> str:
        if or_empty and not value:
            return value
        with as_fault(code):
            return check(value)

    return AfterValidator(validate)


def _port_name(value: str) -> str:
    if len(value) > _PORT_NAME_MAX or not _PORT_NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not a valid port name: letters, digits and '-', 62 characters at most")
    return value


def _target_port(value: object) -> int | str:
    with as_fault("port"):
        if isinstance(value, int) and not isinstance(value, bool):
            if not 1 <= value <= 65535:
                raise ValueError(f"expected a port between 1 and 65535, found {value}")
            return _not_envoys(value)
        if not isinstance(value, str):
            raise ValueError("expected a port number or a port name")
        if value.isdigit():
            raise ValueError(f"{value!r} is text: write the port number without quotes")
        return _port_name(value)


def _cluster_ip(value: str) -> str:
    return value if value in {"", "None"} else check_ip(value)


def _export_to(value: str) -> str:
    # "~" exports to nobody.
    return value if value in {"*", ".", "~"} else check_label(value)


def _number_key(value: object) -> object:
    # Keys of a mapping are text in JSON and in our documents, whatever they stand for.
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _duration(value: object) -> Duration:
    if isinstance(value, Duration):
        return value
    with as_fault("duration"):
        if not isinstance(value, str):
            raise ValueError("expected a duration such as 1.5s, 100ms or 1h2m (a number needs its unit)")
        return Duration(value)


def _positive(value: Duration) -> Duration:
    with as_fault("duration"):
        return value.at_least_1ms()


Flag = Annotated[bool, Strict()]
Integer = Annotated[int, Strict(), Field(ge=-(2**31), le=2**31 - 1)]
Count = Annotated[int, Strict(), Field(ge=0, le=2**31 - 1)]
Unsigned = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1)]
Number = Annotated[float, Strict()]
Percent = Annotated[float, Strict(), Field(ge=0, le=100, allow_inf_nan=False)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
MeshPort = Annotated[Port, AfterValidator(_not_envoys)]
"""A port on which a service is called or a workload listens."""
PortKey = Annotated[Port, BeforeValidator(_number_key)]
PortName = Annotated[str, _checked(_port_name, "port-name")]
OptionalPortName = Annotated[str, _checked(_port_name, "port-name", or_empty=True)]
TargetPort = Annotated[int | str, PlainValidator(_target_port)]
ClusterIp = Annotated[str, _checked(_cluster_ip, "address")]
Label = Annotated[str, _checked(check_label, "name")]
OptionalSubdomain = Annotated[str, _checked(check_subdomain, "name", or_empty=True)]
LabelKey = Annotated[str, _checked(check_label_key, "label")]
LabelValue = Annotated[str, _checked(check_label_value, "label")]
HostName = Annotated[str, _checked(check_host, "host-name")]
IpAddress = Annotated[str, _checked(check_ip, "address")]
ExportTo = Annotated[str, _checked(_export_to, "export-to")]

AnyDuration = Annotated[Duration, PlainValidator(_duration), PlainSerializer(str, return_type=str)]
PositiveDuration = Annotated[AnyDuration, AfterValidator(_positive)]
"""At least 1 ms, as Istio's schema asks for nearly all of its durations."""
