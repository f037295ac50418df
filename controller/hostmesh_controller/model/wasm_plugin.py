"""WasmPlugin: code of the user's own inside Envoy."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from hostmesh_controller.model.schema import Integer, Port, Spec, fault
from hostmesh_controller.model.security import PolicySelector

_GATEWAY_API: Final = "it selects Kubernetes' gateways and ambient waypoints; use selector"
_SHA256: Final = re.compile(r"([a-f0-9]{64})?")


def _url(value: str) -> str:
    if not value:
        raise fault("missing", "must not be empty")
    scheme, separator, rest = value.partition("://")
    if not separator:
        scheme, rest = "", value
    try:
        parts = urlsplit(value if separator else f"oci://{value}")
    except ValueError:
        parts = urlsplit("")
    if scheme not in {"", "oci", "http", "https", "file"} or any(char in value for char in " \t\r\n"):
        raise fault("url", f"{value!r}: url must have schema one of [http, https, file, oci]")
    if scheme in {"", "oci"} and parts.netloc and not re.search(r"[#%$@]", parts.netloc):
        raise fault(
            "not-supported",
            f"{value!r} is an image of an OCI registry, and hosts have no registry client yet: give file:// (a path "
            "on the hosts) or http(s)://",
        )
    if scheme == "file" and not (rest.startswith("/") and len(rest) > 1):
        raise fault("url", f"{value!r}: expected file:/// and an absolute path on the hosts")
    if scheme != "file" and not parts.hostname:
        raise fault("url", f"{value!r}: url must have schema one of [http, https, file, oci], and a host")
    return value


def _sha256(value: str) -> str:
    if not _SHA256.fullmatch(value):
        raise fault("sha256", "expected the 64 hexadecimal digits (lower case) that sha256sum prints")
    return value


class EnvVar(Spec):
    """A variable the plugin sees: a value, or (HOST) Envoy's own of that name."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    value_from: Literal["INLINE", "HOST"] = "INLINE"
    value: Annotated[str, Field(max_length=2048)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> "EnvVar":
        if self.value_from == "HOST" and self.value is not None:
            raise fault("one-of", "value may only be set when valueFrom is INLINE", "value")
        return self


class VmConfig(Spec):
    """The machine that runs the plugin."""

    env: Annotated[tuple[EnvVar, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _names_are_told_apart(self) -> "VmConfig":
        seen: set[str] = set()
        for index, variable in enumerate(self.env):
            if variable.name in seen:
                raise fault("duplicate", f"Duplicate value: {variable.name!r} is there twice", "env", index, "name")
            seen.add(variable.name)
        return self


class PluginPort(Spec):
    """A port of the service that is called, or of the workload."""

    number: Port


class TrafficSelector(Spec):
    """CLIENT is outbound traffic (and a gateway's), SERVER inbound; UNDEFINED is both."""

    mode: Literal["UNDEFINED", "CLIENT", "SERVER", "CLIENT_AND_SERVER"] = "UNDEFINED"
    ports: tuple[PluginPort, ...] = ()

    @model_validator(mode="after")
    def _ports_are_told_apart(self) -> "TrafficSelector":
        numbers = [port.number for port in self.ports]
        for index, number in enumerate(numbers):
            if number in numbers[:index]:
                raise fault("duplicate", f"Duplicate value: port {number} is there twice", "ports", index, "number")
        return self


class WasmPluginSpec(Spec):
    """A module from a file on the hosts or over HTTP, in the filter chains of the selected workloads.

    A higher `priority` comes first within a phase; None is after all that have one.
    """

    refused: ClassVar[Mapping[str, str]] = {
        "imagePullSecret": "only images of an OCI registry have one, and hosts have no registry client yet",
        "targetRef": _GATEWAY_API,
        "targetRefs": _GATEWAY_API,
        "verificationKey": "Istio ignores it; use sha256",
    }

    selector: PolicySelector | None = None
    url: Annotated[str, AfterValidator(_url)]
    sha256: Annotated[str, AfterValidator(_sha256)] = ""
    image_pull_policy: Literal["UNSPECIFIED_POLICY", "IfNotPresent", "Always"] = "UNSPECIFIED_POLICY"
    plugin_config: Mapping[str, Any] | None = None
    plugin_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    phase: Literal["UNSPECIFIED_PHASE", "AUTHN", "AUTHZ", "STATS"] = "UNSPECIFIED_PHASE"
    priority: Integer | None = None
    fail_strategy: Literal["FAIL_CLOSE", "FAIL_OPEN", "FAIL_RELOAD"] = "FAIL_CLOSE"
    vm_config: VmConfig | None = None
    match: tuple[TrafficSelector, ...] = ()
    type: Literal["UNSPECIFIED_PLUGIN_TYPE", "HTTP", "NETWORK"] = "UNSPECIFIED_PLUGIN_TYPE"
