"""The ways to look at a program of this host, once: HTTP, TCP, a command, gRPC's health service, systemd.

The agent is root and what it looks at comes from the controller. So a probe reaches this host alone, by an address that
is the host's own: such connections never meet Envoy, and nobody makes the fleet knock at others' doors. A command runs
as a user without rights, in a session of its own, with nothing of the agent's environment; what it prints is thrown
away, and it is killed with its children when its time is over.
"""

import asyncio
import pwd
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import quote

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue, UInt32Value

from hostmesh_agent import rights
from hostmesh_agent.child import PYTHON, running
from hostmesh_agent.probes import Look
from hostmesh_api.v1.hostmesh_pb2 import Probe
from hostmesh_api.wire import VIP4, VIP6

MAX_LINE_BYTES: Final = 8192
"""Of an answer no more is read."""
_TLS: Final = str(Path(__file__).with_name("probe_tls.py"))
_EXEC: Final = str(Path(__file__).with_name("probe_exec.py"))
_EXIT_CODES: Final = {0: "", 126: "{} cannot be run by the user of probes", 127: "there is no command {}"}
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UMASK: Final = 0o077
_SERVING: Final = 1
"""grpc.health.v1.HealthCheckResponse.ServingStatus"""
_OPTIONS: Final = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


_SYSTEMD: Final = Path("/run/systemd/system")
"""It is there if systemd is process 1 (sd_booted(3))."""


class NotHereError(Exception):
    """The probe cannot be done on this host; the message says why."""


@dataclass(frozen=True, slots=True)
class Ways:
    """Looks at programs. `exec_user` runs commands; "" runs none.

    `systemctl` is asked for units, where there is `systemd`.
    """

    exec_user: str
    systemctl: str = "systemctl"
    systemd: Path = _SYSTEMD

    async def look(self, probe: Probe, address: str) -> Look:
        """Look once.

        Args:
            probe: how; it may take its `timeout_s`.
            address: the workload's, for probes that name none.
        """
        timeout_s = max(1, probe.timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._look(probe, address)
        except TimeoutError:
            return Look(well=False, reason=f"no answer within {timeout_s} s")
        except (NotHereError, OSError, ValueError, OverflowError) as error:
            return Look(well=False, reason=str(error) or type(error).__name__)

    async def _look(self, probe: Probe, address: str) -> Look:
        match probe.WhichOneof("way"):
            case "http_get":
                return await _http(probe.http_get, local(probe.http_get.host or address))
            case "tcp_socket":
                return await _tcp(local(probe.tcp_socket.host or address), probe.tcp_socket.port)
            case "exec":
                return await self._exec(list(probe.exec.command))
            case "grpc":
                return await _grpc(probe.grpc, local(address))
            case "systemd":
                return await self._unit(probe.systemd.unit)
            case _:
                return Look(well=False, reason="this agent does not know the probe: upgrade it")

    async def _unit(self, unit: str) -> Look:
        if not self.systemd.is_dir():
            raise NotHereError(f"{unit} cannot be looked at: systemd does not run on this host")
        pipe = asyncio.subprocess.PIPE
        wanted = "--property=LoadState,ActiveState,SubState,Result"
        async with running(self.systemctl, "show", wanted, "--", unit, stdout=pipe, env={"PATH": _PATH}) as process:
            answer, _ = await process.communicate()
        if process.returncode:
            raise NotHereError(f"systemctl show ended with code {process.returncode}")
        return unit_state(unit, answer.decode(errors="replace"))

    async def _exec(self, command: list[str]) -> Look:
        if not self.exec_user:
            raise NotHereError("probes.exec_user in agent.toml is empty: this host runs no commands")
        user, group = _unprivileged(self.exec_user)

        async def own() -> int:
            become = (*PYTHON, _EXEC, str(user), str(group))
            async with running(*become, *command, env={"PATH": _PATH}, umask=_UMASK) as process:
                return await process.wait()

        code = await rights.here().probe(command, own)
        return Look(code == 0, _EXIT_CODES.get(code, f"{command[0]} ended with code {code}").format(command[0]))


def unit_state(unit: str, shown: str) -> Look:
    """Return what `systemctl show` says of a unit: well if it is active. One that reloads is."""
    said = dict(line.partition("=")[::2] for line in shown.splitlines())
    if said.get("LoadState") == "not-found":
        return Look(well=False, reason=f"there is no unit {unit}")
    active = said.get("ActiveState", "")
    if active in {"active", "reloading", "refreshing"}:
        return Look(well=True)
    result = said.get("Result", "success")
    because = "" if result == "success" else f", {result}"
    return Look(well=False, reason=f"{unit} is {active or 'in no known state'} ({said.get('SubState', '')}{because})")


def local(host: str) -> str:
    """Return the address of this host that a probe names.

    Raises:
        NotHereError: it is none.
    """
    if host.lower() == "localhost":
        return "127.0.0.1"
    try:
        parsed = ip_address(host)
    except ValueError:
        raise NotHereError(f"{host!r} is no address: a probe looks at its own host, by one of its addresses") from None
    if parsed.is_loopback:
        return host
    family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
    # The kernel takes the virtual addresses for its own; they lead to Envoy.
    if not parsed.is_unspecified and parsed not in VIP4 and parsed not in VIP6:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind((host, 0))
            return host
    raise NotHereError(f"{host} is not of this host: a probe looks at its own host alone")


async def _tcp(host: str, port: int) -> Look:
    _, writer = await asyncio.open_connection(host, port)
    writer.transport.abort()
    return Look(well=True)


async def _http(get: Probe.HttpGet, host: str) -> Look:
    request = http_request(get, host)
    if get.tls:
        status = await _https_status(request, host, get.port)
    else:
        reader, writer = await asyncio.open_connection(host, get.port, limit=MAX_LINE_BYTES)
        try:
            writer.write(request)
            line = await reader.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            line = b""
        finally:
            writer.transport.abort()
        status = status_of(line)
    if status is None:
        return Look(well=False, reason="the answer is not HTTP")
    return Look(200 <= status < 400, "" if 200 <= status < 400 else f"HTTP status {status}")


async def _https_status(request: bytes, host: str, port: int) -> int | None:
    """Return the status of an answer over TLS; the certificate is not judged, as in Kubernetes.

    In a process of its own: the agent has no TLS but gRPC's (see `slim`), and few programs are probed this way.
    """
    pipe = asyncio.subprocess.PIPE
    async with running(*PYTHON, _TLS, host, str(port), stdin=pipe, stdout=pipe) as process:
        answer, _ = await process.communicate(request)
    if process.returncode:
        raise NotHereError(answer.decode(errors="replace").strip() or "the TLS connection failed")
    return status_of(answer)


def http_request(get: Probe.HttpGet, host: str) -> bytes:
    """Return the request of a probe. Its headers replace those that are sent anyway.

    Raises:
        NotHereError: a header would be more than one.
    """
    path = quote(get.path, safe="/?&=%:@!$'()*+,;~[]-._")
    shown = f"[{host}]" if ":" in host else host
    headers = {"host": ("Host", f"{shown}:{get.port}"), "user-agent": ("User-Agent", "hostmesh-probe")}
    more = []
    for each in get.headers:
        if any(character in each.name + each.value for character in "\r\n\0"):
            raise NotHereError(f"header {each.name!r} has a line break")
        headers.pop(each.name.lower(), None)
        more.append(f"{each.name}: {each.value}")
    lines = [f"GET {'' if path.startswith('/') else '/'}{path} HTTP/1.1", *map(": ".join, headers.values()), *more]
    return ("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode()


def status_of(line: bytes) -> int | None:
    """Return the status in the first line of an answer, None if it is none."""
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or len(words[1]) != 3 or not words[1].isdigit():
        return None
    return int(words[1])


async def _grpc(asked: Probe.Grpc, host: str) -> Look:
    target = f"[{host}]:{asked.port}" if ":" in host else f"{host}:{asked.port}"
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        # HealthCheckRequest and -Response have one field each, like these: no generated code for two bytes.
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=StringValue.SerializeToString,
            response_deserializer=UInt32Value.FromString,
        )
        try:
            status = (await check(StringValue(value=asked.service))).value
        except grpc.aio.AioRpcError as error:
            return Look(well=False, reason=f"{error.code().name}: {error.details()}")
        except DecodeError:
            return Look(well=False, reason="the answer is not of gRPC's health service")
    return Look(status == _SERVING, "" if status == _SERVING else f"gRPC health status {status}")


def _unprivileged(name: str) -> tuple[int, int]:
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise NotHereError(
            f"there is no user {name!r} to run commands as: see probes.exec_user in agent.toml"
        ) from None
    if found.pw_uid == 0:
        raise NotHereError("commands do not run as root: see probes.exec_user in agent.toml")
    return found.pw_uid, found.pw_gid
