"""The list of hosts that `hostmesh register -f hosts.yaml` reads.

defaults:                       # of all hosts; each may say otherwise
  sudo: true
  identity: ~/.ssh/fleet
hosts:
- name: web-1                   # in the mesh
  ssh: admin@10.0.0.7           # user@address[:port]
  addresses: [10.0.0.7]         # under which others reach it; a new host has that of ssh unless given
  hostKey: SHA256:…             # or a list; known_hosts unless given
  namespace: shop
  serviceAccount: web
  workload: web-1
  labels: {app: web}            # of its workload
  hostLabels: {tier: web}       # of the host itself, by which Rollouts choose
  ports: {http: 8080}
  verify: http://catalog/       # it calls this at the end
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hostmesh_controller.cli.failure import CliError, problem_line
from hostmesh_controller.cli.ssh.host_keys import read_pin
from hostmesh_controller.cli.ssh.place import Place, read_place
from hostmesh_controller.cli.ssh.verifying import read_verify
from hostmesh_controller.yaml_nodes import Document, YamlProblem, read_yaml


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Settings(_Table):
    sudo: bool | None = None
    identity: str | None = None
    namespace: str | None = None
    service_account: Annotated[str | None, Field(alias="serviceAccount")] = None
    labels: dict[str, str] = {}
    host_labels: Annotated[dict[str, str], Field(alias="hostLabels")] = {}
    ports: dict[str, Annotated[int, Field(ge=1, le=65535)]] = {}
    verify: str | None = None


class _Host(_Settings):
    name: str
    ssh: str
    addresses: list[str] = []
    workload: str | None = None
    host_key: Annotated[list[str], BeforeValidator(_listed), Field(alias="hostKey")] = []


class _File(_Table):
    defaults: _Settings = _Settings()
    hosts: Annotated[list[_Host], Field(min_length=1)]


class Listed(BaseModel):
    """A host of the file, with the file's defaults, checked."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)
    name: str
    place: Place
    addresses: list[str]
    pins: tuple[str, ...]
    sudo: bool
    identity: Path | None
    namespace: str | None
    service_account: str | None
    labels: dict[str, str]
    host_labels: dict[str, str]
    ports: dict[str, int]
    workload: str | None
    verify: str

    def body(self) -> dict[str, Any]:
        """What POST /v1/register takes."""
        return {
            "addresses": self.addresses,
            "namespace": self.namespace,
            "service_account": self.service_account,
            "labels": self.labels,
            "ports": [{"name": name, "number": number} for name, number in self.ports.items()],
            "workload": self.workload,
            "ssh_host_keys": [],
            # Not told where there are none: an older controller does not know the word.
            **({"host_labels": self.host_labels} if self.host_labels else {}),
        }


def read_hosts(name: str, text: str, *, sudo: bool = False, identity: Path | None = None) -> list[Listed]:
    """Read the file; `sudo` and `identity` are the command line's, for hosts that the file says nothing of.

    Raises:
        CliError: every mistake, with file and line.
    """
    documents = list(read_yaml(text))
    problems = [
        _line(name, each.line, each.column, "", each.message) for each in documents if isinstance(each, YamlProblem)
    ]
    found = [each for each in documents if isinstance(each, Document)]
    if problems or len(found) != 1:
        raise _wrong(problems or [f"{name}: one document with `hosts:` is expected, there are {len(found)}"])
    document = found[0]
    try:
        read = _File.model_validate(document.value)
    except ValidationError as error:
        raise _wrong([_at(name, document, each["loc"], each["msg"]) for each in error.errors()]) from None
    problems, hosts, seen = [], [], dict[str, int]()
    for index, each in enumerate(read.hosts):
        if each.name in seen:
            problems.append(_at(name, document, ("hosts", index, "name"), f"'{each.name}' is there twice"))
        seen[each.name] = index
        try:
            hosts.append(_whole(each, read.defaults, sudo, identity))
        except _FieldError as error:
            problems.append(_at(name, document, ("hosts", index, error.field), str(error)))
    if problems:
        raise _wrong(problems)
    return hosts


class _FieldError(Exception):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _whole(host: _Host, defaults: _Settings, sudo: bool, identity: Path | None) -> Listed:
    place = _checked("ssh", host.ssh, read_place)
    if not host.addresses and not place.ip:
        raise _FieldError("ssh", "ssh names no IP address: say `addresses: [IP]`")
    wanted_sudo = host.sudo if host.sudo is not None else defaults.sudo
    file = host.identity or defaults.identity
    verify = host.verify or defaults.verify or ""
    return Listed(
        name=host.name,
        place=place,
        addresses=host.addresses,
        pins=tuple(_checked("hostKey", each, read_pin) for each in host.host_key),
        sudo=sudo if wanted_sudo is None else wanted_sudo,
        identity=Path(file).expanduser() if file else identity,
        namespace=host.namespace or defaults.namespace,
        service_account=host.service_account or defaults.service_account,
        labels={**defaults.labels, **host.labels},
        host_labels={**defaults.host_labels, **host.host_labels},
        ports={**defaults.ports, **host.ports},
        workload=host.workload,
        verify=_checked("verify", verify, read_verify) if verify else "",
    )


def _checked(field: str, text: str, read: Any) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise _FieldError(field, str(error)) from None


def _at(name: str, document: Document, path: tuple[int | str, ...], message: str) -> str:
    """A problem at its field, or at the nearest one around it that is there."""
    for length in range(len(path), -1, -1):
        place = document.places.get(path[:length])
        if place is not None:
            shown = ".".join(str(each) for each in path)
            return _line(name, place.line, place.column, shown, message)
    return _line(name, 1, 1, "", message)


def _line(name: str, line: int, column: int, path: str, message: str) -> str:
    problem: Mapping[str, object] = {
        "file": name,
        "line": line,
        "column": column,
        "path": path,
        "message": message,
        "severity": "error",
    }
    return problem_line(problem)


def _wrong(problems: list[str]) -> CliError:
    return CliError("\n".join(["error: the list of hosts is wrong", *(f"  {each}" for each in problems)]))
