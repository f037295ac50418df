"""The agent's local socket: one line of JSON in, one line of JSON out. For root (or the agent's own user) alone."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent.peer import uid_of

STATUS: Final = "status"
RELEASE: Final = "release"
"""Stop doing anything to the host, and end: the host leaves."""
REFRESH: Final = "refresh"
"""Look at everything again now."""
ACCEPT: Final = "accept"
"""Take the configuration that is held back because it takes most of what there is away."""
ENVOY_UPGRADE: Final = "envoy-upgrade"
ENVOY_ROLLBACK: Final = "envoy-rollback"
DRAIN: Final = "drain"
"""Let nobody call this host's workloads; asked again, it says how far that is."""
DRAIN_UNTIL_BOOT: Final = "drain-until-boot"
"""The same, but a boot ends it: the host shuts down."""
UNDRAIN: Final = "undrain"
UNDRAIN_UNTIL_BOOT: Final = "undrain-until-boot"
"""End what a shutdown began, and leave what the host's owner wants."""

TIMEOUT_S: Final = 10.0
_MAX_LINE_BYTES: Final = 1 << 20

log = structlog.get_logger(__name__)

PLAN: Final = "capture plan"
"""What capture would be, beside what it is."""
TRIAL: Final = "capture trial"
"""Capture what is wanted for some `seconds`, under a dead-man timer."""
_BOUND_THEMSELVES: Final = frozenset({TRIAL})
"""Verbs that are not cut off: what they began in a thread goes on, and nobody would know of it."""

RESUME: Final = "capture resume"
"""Hold nothing that is held in memory alone."""

Verb = Callable[[], Awaitable[Mapping[str, Any]]]
Asked = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""A verb that is told more than its name: the whole request."""


class ControlError(Exception):
    """The agent did not answer, or refused."""


class AgentAbsentError(ControlError):
    """No agent listens on the socket."""


class Control:
    """The listening side. `verbs` maps a verb to what answers it; those of `asked` are given the request."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb], asked: Mapping[str, Asked] | None = None) -> None:
        self._path = path
        self._verbs = verbs
        self._asked = asked or {}

    async def run(self) -> None:
        """Answer until cancelled."""
        listener = listen(self._path)
        server = await asyncio.start_unix_server(self._answer, sock=listener, limit=_MAX_LINE_BYTES)
        try:
            async with server:
                await server.serve_forever()
        finally:
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await self._reply(reader, writer)
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError) as error:
            log.warning("control request failed", error=str(error))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Mapping[str, Any]:
        # The mode of the socket says the same; this holds also if somebody changes it.
        peer = uid_of(writer.get_extra_info("socket"))
        if peer not in (0, os.geteuid()):
            return {"error": f"uid {peer} may not control the agent"}
        async with asyncio.timeout(TIMEOUT_S):
            request = json.loads(await reader.readline())
        name = str(request.get("verb", "")) if isinstance(request, dict) else ""
        async with asyncio.timeout(None if name in _BOUND_THEMSELVES else TIMEOUT_S):
            if name in self._asked:
                return await self._asked[name](request)
            verb = self._verbs.get(name)
            return {"error": f"unknown verb {name!r}"} if verb is None else await verb()


def call(path: Path, verb: str, timeout_s: float = TIMEOUT_S, **more: Any) -> dict[str, Any]:
    """Ask the agent; `more` goes along with the verb. Blocks.

    Raises:
        AgentAbsentError: it does not run.
        ControlError: it does not answer in time, or says no.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise AgentAbsentError(f"no agent runs (nobody answers on {path})") from None
        except PermissionError:
            raise ControlError(f"{path}: only root may ask the agent") from None
        except OSError as error:
            raise ControlError(f"{path}: {error}") from error
        try:
            client.sendall(json.dumps({"verb": verb, **more}).encode() + b"\n")
            with client.makefile("rb") as file:
                reply = json.loads(file.readline(16 * _MAX_LINE_BYTES))
        except (OSError, ValueError) as error:
            raise ControlError(f"{path}: the agent does not answer: {error}") from error
    if not isinstance(reply, dict):
        raise ControlError(f"{path}: not an answer: {reply!r}")
    if "error" in reply:
        raise ControlError(f"the agent refused: {reply['error']}")
    return reply


def listen(path: Path) -> socket.socket:
    """Bind the socket, 0600 from its first moment. One agent holds the lock before it comes here."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(previous)
    return listener
