"""A real request from the host, by a name of the mesh: resolver, redirect, Envoy and mutual TLS have to work for it.

Where the operator names a URL it must be answered. Where none is named, services are tried that the controller says
the host can call (`explain`). One whose own program is down is no fault of the host: it is told, and fails nothing.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.ssh.shell import Shell
from hostmesh_controller.cli.ssh.steps import StepError

_EXPLAINED: Final = 50
"""How many services the controller is asked about at most."""
_CALLED: Final = 3
_OF_ENVOY: Final = frozenset({"502", "503", "504"})
"""What Envoy says itself where no program answers."""


class Asked(NamedTuple):
    """What the host called and was answered, or that nothing was; `lacks`: what is not shown for that reason, or ""."""

    said: str
    lacks: str = ""


NOTHING_ASKED: Final = Asked("")
NOT_MADE: Final = "no request was made"
NOT_ANSWERED: Final = "no request was answered"
NOTHING_TO_CALL: Final = Asked(
    f"{NOT_MADE}: the mesh has no HTTP service that this host can call; --verify names one", NOT_MADE
)


def read_verify(url: str) -> str:
    """Check a URL that a host is to call.

    Raises:
        ValueError: it is none that can be called so.
    """
    split = urlsplit(url)
    if split.scheme != "http" or not re.fullmatch(r"[A-Za-z0-9.-]+", split.hostname or "") or not url.isprintable():
        raise ValueError(f"'{url}' is not http://NAME[:PORT][/PATH] of a service in the mesh")
    return url


def call(shell: Shell, host: str, url: str) -> Asked:
    """Call a service of the mesh from the host; return what was called and answered.

    Raises:
        StepError: nothing answered, or only Envoy.
    """
    answered, said = _request(shell, url)
    if not answered:
        raise StepError(f"{url} called from the host: {said}", f"hostmesh explain {host} {url}")
    return Asked(f"GET {url} from the host: {said}")


def try_services(shell: Shell, host: str, connection: Connection) -> Asked:
    """Call a service that the host can call; return what was called and answered, or that nothing was."""
    tried: list[str] = []
    for url in islice(_callable(host, connection), _CALLED):
        answered, said = _request(shell, url)
        if answered:
            return Asked(f"GET {url} from the host: {said}")
        tried.append(f"{url}: {said}")
    if tried:
        return Asked(f"{NOT_ANSWERED}: {'; '.join(tried)}", NOT_ANSWERED)
    return NOTHING_TO_CALL


def _callable(host: str, connection: Connection) -> Iterator[str]:
    """Yield URLs of services that the controller says the host can call."""
    for url in islice(_urls(connection), _EXPLAINED):
        try:
            story = connection.post("/v1/explain", {"host": host, "target": url})
        except CliError:  # it may have gone meanwhile
            continue
        # An answer that Envoy gives itself, or a call that goes past it, shows nothing.
        if story["reached"] and any(each["stage"] == "endpoint" for each in story["steps"]):
            yield url


def _urls(connection: Connection) -> Iterator[str]:
    for item in connection.get("/v1/objects", {"kind": "Service"})["items"]:
        meta, spec = item["document"]["metadata"], item["document"].get("spec", {})
        for port in spec.get("ports", ()):
            if _is_http(port):
                yield f"http://{meta['name']}.{meta['namespace']}.svc:{port['port']}/"


def _is_http(port: dict[str, Any]) -> bool:
    protocol = str(port.get("appProtocol") or port.get("name", "").partition("-")[0])
    return protocol.lower() == "http"


def _request(shell: Shell, url: str) -> tuple[bool, str]:
    """Return whether a program answered, and the status or what went wrong."""
    split = urlsplit(url)
    host, port, path = split.hostname or "", split.port or 80, split.path or "/"
    script = (
        f"exec 3<>/dev/tcp/{host}/{port} || exit 7; "
        f"printf 'GET %s HTTP/1.1\\r\\nHost: %s\\r\\nConnection: close\\r\\n\\r\\n' {shlex.quote(path)} "
        f"{shlex.quote(split.netloc)} >&3; head -n 1 <&3"
    )
    answer = shell.run(f"timeout 20 bash -c {shlex.quote(script)}", within_s=30)
    status = answer.out.split()[1:2]
    said = answer.out.strip() or answer.said or "nothing"
    return answer.code == 0 and bool(status) and status[0] not in _OF_ENVOY, said
