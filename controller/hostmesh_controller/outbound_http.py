"""GET of URLs that a configuration names: the one way in which the controller calls whom users tell it to call.

The address that is connected to is the one that was judged: names are looked up here, once for each connection, also
after a redirect. Proxies of the environment are not asked. Time, bytes and redirects are bounded.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

import httpcore

from hostmesh_api.dialling import DialPolicy
from hostmesh_controller.metrics import build_version

MAX_REDIRECTS: Final = 3
MAX_ETAG_CHARS: Final = 256
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_SCHEMES: Final = frozenset({"http", "https"})
_NOT_MODIFIED: Final = 304

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""A host's addresses."""


class FetchError(Exception):
    """Nothing was fetched. The text says why, and nothing of what was answered: it may come from anywhere."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer. `url` is where it came from in the end; `body` is None where it is as it was (304)."""

    url: str
    body: bytes | None
    etag: str = ""


async def look_up(host: str, port: int) -> list[str]:
    """Return a host's addresses, as the machine's resolver has them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_of_this_machine(address: str) -> bool:
    """Tell whether an address is this machine's own: only those can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


@dataclass(frozen=True, slots=True)
class OutboundHttp:
    """Fetches over HTTP and HTTPS.

    Attributes:
        policy: which addresses may be dialled.
        own_ports: the controller's, which are never dialled on this machine, whatever the policy allows.
        ca_file: certificates (PEM) that are trusted beside the system's.
        resolve: looks a name up.
    """

    policy: DialPolicy = field(default_factory=DialPolicy)
    own_ports: frozenset[int] = frozenset()
    ca_file: Path | None = None
    resolve: Resolve = field(default=look_up)

    async def get(self, url: str, *, timeout_s: float, max_bytes: int, etag: str = "") -> Fetched:
        """Return what is at a URL, all redirects and time included.

        Raises:
            FetchError: it cannot be had, or must not be asked for.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._get(url, max_bytes, etag)
        except TimeoutError:
            raise FetchError(f"not within {timeout_s:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError, ValueError) as error:
            raise FetchError(_reason(error)) from None

    async def _get(self, url: str, max_bytes: int, etag: str) -> Fetched:
        _check(url)
        # The system's certificates are read, which takes some 10 ms.
        tls = await asyncio.to_thread(self._tls)
        async with httpcore.AsyncConnectionPool(tls, network_backend=_Backend(self), max_connections=1) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                headers = _headers(url, {"If-None-Match": etag} if etag else {})
                async with pool.stream("GET", url, headers=list(headers.items())) as answer:
                    if answer.status not in _REDIRECTS:
                        return await _read(url, answer, max_bytes)
                    url = _redirected(url, _header(answer, b"location"))
                    etag = ""
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.ca_file is not None:
            try:
                context.load_verify_locations(self.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise FetchError(f"{self.ca_file}: cannot be read: {error}") from None
        return context

    async def addresses_of(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host that may be dialled.

        Raises:
            FetchError: it has none.
        """
        try:
            found = await self.resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise FetchError(f"the name {host!r} cannot be looked up: {error}") from None
        refused: list[str] = []
        for address in found:
            problem = "a zone belongs to one link" if "%" in address else self._refusal(address, port)
            if not problem:
                return [address, *(each for each in found if each != address and not self._refusal(each, port))]
            refused.append(f"{address} ({problem})")
        if not refused:
            raise FetchError(f"the name {host!r} has no address")
        raise FetchError(
            f"it leads to {', '.join(refused)}, which is not asked because a configuration says so; "
            "allow_cidrs in controller.toml can allow it"
        )

    def _refusal(self, address: str, port: int) -> str:
        if "%" in address:
            return "link-local"
        if port in self.own_ports and is_of_this_machine(address.removeprefix("::ffff:")):
            return "the controller itself"
        return self.policy.refusal(address)


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were judged, and to nothing else."""

    def __init__(self, outbound: OutboundHttp) -> None:
        self._outbound = outbound
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = FetchError(f"the name {host!r} has no address")
        for address in await self._outbound.addresses_of(host, port):
            try:
                return await self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.NetworkError, OSError) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - httpcore's interface
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002 - as above
    ) -> httpcore.AsyncNetworkStream:
        raise FetchError(f"{path}: sockets of this machine are not asked")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _headers(url: str, more: Mapping[str, str]) -> dict[str, str]:
    # Compressed bytes would have no bound.
    found = {"Accept": "application/json, */*;q=0.5", "Accept-Encoding": "identity"}
    return {"Host": urlsplit(url).netloc, "User-Agent": f"hostmesh-controller/{build_version()}", **found, **more}


async def _read(url: str, answer: httpcore.Response, max_bytes: int) -> Fetched:
    if answer.status == _NOT_MODIFIED:
        return Fetched(url, None, _header(answer, b"etag"))
    if not 200 <= answer.status < 300:
        raise FetchError(f"HTTP status {answer.status}")
    if _header(answer, b"content-encoding").lower() not in {"", "identity"}:
        raise FetchError("the answer is compressed, which was not asked for")
    body = bytearray()
    async for part in answer.aiter_stream():
        body += part
        if len(body) > max_bytes:
            raise FetchError(f"the answer is larger than {max_bytes // 1024} KiB")
    etag = _header(answer, b"etag")
    return Fetched(url, bytes(body), etag if len(etag) <= MAX_ETAG_CHARS else "")


def _header(answer: httpcore.Response, name: bytes) -> str:
    value = next((value for each, value in answer.headers if each.lower() == name), b"")
    return value.decode("latin-1")


def _check(url: str, what: str = "it is") -> None:
    """Refuse what is no URL of HTTP.

    Raises:
        FetchError: it is none.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise FetchError(f"{what} no URL") from None
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.username is not None or not url.isascii():
        raise FetchError(f"{what} no URL of http:// or https://")


def _redirected(url: str, location: str) -> str:
    try:
        target = urljoin(url, location)
    except ValueError:
        target = ""
    _check(target, "it redirects to what is")
    if url.startswith("https://") and not target.startswith("https://"):
        raise FetchError("it redirects from https:// to http://, where anybody on the way can change the answer")
    return target


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]}…"
