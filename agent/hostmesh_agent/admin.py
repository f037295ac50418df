"""A client of Envoy's admin interface on its unix socket. Small and bounded: it asks a process that may be ill."""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

TIMEOUT_S: Final = 5.0
MAX_BODY_BYTES: Final = 16 << 20
_MAX_HEAD_BYTES: Final = 64 << 10


class AdminError(Exception):
    """Envoy did not answer, or not as expected."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """`state` is Envoy's: LIVE, DRAINING, PRE_INITIALIZING or INITIALIZING."""

    version: str
    state: str
    uptime_s: int


class Admin:
    """Each call is one connection. All raise AdminError, within `timeout_s`."""

    def __init__(self, socket: Path | Callable[[], Path], timeout_s: float = TIMEOUT_S) -> None:
        """`socket` may be a function: of two Envoys, the one that serves now is asked."""
        self._find = socket
        self._timeout_s = timeout_s

    @property
    def _socket(self) -> Path:
        return self._find if isinstance(self._find, Path) else self._find()

    async def live(self) -> bool:
        """Whether Envoy says it serves. It says so too without any listener: see `listeners`."""
        status, _ = await self.request("GET", "/ready")
        return status == 200

    async def listeners(self) -> frozenset[str]:
        """Names of the active listeners; warming ones are not among them."""
        document = await self._json("/listeners?format=json")
        return frozenset(str(each.get("name", "")) for each in document.get("listener_statuses", ()))

    async def server_info(self) -> ServerInfo:
        document = await self._json("/server_info")
        return ServerInfo(
            version=str(document.get("version", "")),
            state=str(document.get("state", "")),
            uptime_s=int(str(document.get("uptime_current_epoch", "0s")).rstrip("s") or 0),
        )

    async def stats(self, pattern: str) -> Mapping[str, int]:
        """Counters and gauges whose name matches the regular expression. It must need no URL quoting."""
        document = await self._json(f"/stats?format=json&type=All&filter={pattern}")
        found = document.get("stats", ())
        return {str(each["name"]): int(each["value"]) for each in found if isinstance(each.get("value"), int)}

    async def serials(self) -> frozenset[int]:
        """Return the serial numbers of the certificates that Envoy shows."""
        document = await self._json("/certs")
        return frozenset(
            int(str(each["serial_number"]), 16)
            for context in document.get("certificates", ())
            for each in context.get("cert_chain", ())
        )

    async def drain(self) -> None:
        """Stop accepting, close what is idle, end nothing that is in use."""
        status, _ = await self.request("POST", "/drain_listeners?graceful&skip_exit")
        if status != 200:
            raise AdminError(f"Envoy refused to drain: HTTP {status}")

    async def request(self, method: str, target: str) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(method, target)
        except TimeoutError:
            raise AdminError(f"{self._socket}: no answer to {target} within {self._timeout_s:g} s") from None
        except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise AdminError(f"{self._socket}: {target}: {error}") from error

    async def _json(self, target: str) -> Any:
        status, body = await self.request("GET", target)
        if status != 200:
            raise AdminError(f"{self._socket}: {target}: HTTP {status}")
        try:
            return json.loads(body)
        except ValueError as error:
            raise AdminError(f"{self._socket}: {target}: not JSON: {error}") from error

    async def _exchange(self, method: str, target: str) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=_MAX_HEAD_BYTES)
        try:
            writer.write(
                f"{method} {target} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()
            )
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split(" ")[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            return status, await _body(reader, headers)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        return await _chunks(reader)
    if "content-length" in headers:
        return await reader.readexactly(_bounded(int(headers["content-length"])))
    return await reader.read(MAX_BODY_BYTES)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        _bounded(len(body) + size)
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return bytes(body)


def _bounded(size_bytes: int) -> int:
    if not 0 <= size_bytes <= MAX_BODY_BYTES:
        raise ValueError(f"the answer is larger than {MAX_BODY_BYTES} bytes")
    return size_bytes
