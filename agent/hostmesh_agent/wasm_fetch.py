"""The process that gets one Wasm module: standard library only, since the agent itself has no TLS (see `slim`).

Run as `python -I -S wasm_fetch.py DIRECTORY GROUP SHA256 URL ALLOWED REFUSED`. The module is written to
DIRECTORY/<its sha256>.wasm, to be read by GROUP. Its sha256 goes to stdout, or the reason why there is none; the exit
code tells which. No address in a block of REFUSED (joined by commas) is dialled unless it is in one of ALLOWED.
"""

import functools
import gzip
import hashlib
import http.client
import io
import ipaddress
import os
import socket
import ssl
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Final

EXIT_LATER: Final = 75
"""It may go better another time: sysexits.h calls it EX_TEMPFAIL."""
EXIT_NEVER: Final = 1
"""Another module, another address or another sum is needed."""
MAX_BYTES: Final = 256 << 20
"""Istio's limit."""
_TIMEOUT_S: Final = 15.0
_MAGIC: Final = b"\0asm"
_GZIP: Final = b"\x1f\x8b"
_TAR_AT: Final = 257
_TAR: Final = b"ustar"
_BOXES: Final = 4
"""How many wrappings are taken off."""
_FINAL: Final = frozenset({501, 505, 511})
"""Of the statuses from 500 on those that stay (Istio's list)."""


class NeverError(Exception):
    """Asking again does not help."""


def main() -> int:
    directory, group, wanted, url = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    rules = Rules(sys.argv[5], sys.argv[6])
    try:
        module = unboxed(read(url, rules))
        found = checked(module, wanted)
        store(directory, found, module, group)
    except NeverError as error:
        print(error)
        return EXIT_NEVER
    except (OSError, http.client.HTTPException) as error:
        print(f"{type(error).__name__}: {error}")
        return EXIT_LATER
    print(found)
    return 0


def read(url: str, rules: "Rules") -> bytes:
    """Return what is at a URL: of a file, or over HTTP without any proxy."""
    if url.startswith("file://"):
        try:
            with Path(url.removeprefix("file://")).open("rb") as file:
                return bounded(file)
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            raise NeverError(f"{error.filename}: {error.strerror}") from None
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Http(rules),
        _Https(rules),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "hostmesh-agent", "Accept": "*/*"})  # noqa: S310 - only HTTP has a handler
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return bounded(answer)
    except urllib.error.HTTPError as error:
        text = f"HTTP status {error.code} {error.reason}"
        if error.code < 500 or error.code in _FINAL:
            raise NeverError(text) from None
        raise OSError(text) from None


class Rules:
    """Which addresses may be dialled: a configuration must not make root ask what answers this host alone."""

    def __init__(self, allowed: str, refused: str) -> None:
        self._allowed, self._refused = _blocks(allowed), _blocks(refused)

    def allow(self, address: str) -> bool:
        found = ipaddress.ip_address(address.partition("%")[0])
        return any(found in block for block in self._allowed) or not any(found in block for block in self._refused)


def _blocks(texts: str) -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    return [ipaddress.ip_network(text) for text in texts.split(",") if text]


class _Http(urllib.request.HTTPHandler):
    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_Connection, rules=self._rules), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self._rules = rules

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_SecureConnection, rules=self._rules), request)


class _Connection(http.client.HTTPConnection):
    def __init__(self, host: str, *, rules: Rules, **more: Any) -> None:
        super().__init__(host, **more)
        self._rules = rules

    def connect(self) -> None:
        self.sock = dial(self.host, self.port, self._rules)


class _SecureConnection(_Connection):
    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def dial(host: str, port: int, rules: Rules) -> socket.socket:
    """Connect to an address of a host that may be dialled: the very one that was judged."""
    failure: OSError = OSError(f"{host!r} has no address")
    refused: list[str] = []
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if not rules.allow(str(address[0])):
            refused.append(str(address[0]))
            continue
        try:
            return socket.create_connection((str(address[0]), port), _TIMEOUT_S)
        except OSError as error:
            failure = error
    if refused:
        raise NeverError(
            f"modules are not fetched from {refused[0]}: that is for the host alone; wasm.allow_cidrs in agent.toml "
            "can allow it"
        )
    raise failure


def bounded(file: Any) -> bytes:
    data: bytes = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise NeverError(f"it is larger than {MAX_BYTES >> 20} MiB")
    return data


def unboxed(data: bytes) -> bytes:
    """Return the module inside of gzip and tar, as far as it is one; as in Istio the first file of a tar counts."""
    for _ in range(_BOXES):
        if data.startswith(_GZIP):
            data = _opened(data, lambda box: bounded(gzip.GzipFile(fileobj=box)))
        elif data[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
            data = _opened(data, _first_file)
    return data


def _opened(data: bytes, take: Any) -> bytes:
    try:
        found: bytes = take(io.BytesIO(data))
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise NeverError(f"it cannot be unpacked: {error}") from None
    return found


def _first_file(box: BinaryIO) -> bytes:
    with tarfile.open(fileobj=box) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                return bounded(file)
    return b""


def checked(module: bytes, wanted: str) -> str:
    """Return the sum of a module; it must be the one that is wanted, if one is.

    Of what is no module nothing is told: it may be any file of the host.
    """
    if not module.startswith(_MAGIC) or len(module) < 8:
        raise NeverError("it is not a Wasm module")
    found = hashlib.sha256(module).hexdigest()
    if wanted and found != wanted:
        raise NeverError(f"its sha256 is {found}, wanted is {wanted}")
    return found


def store(directory: Path, name: str, module: bytes, group: int) -> None:
    """Write the module where Envoy can read it and only root can change it."""
    draft = directory / f".{name}.{os.getpid()}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(module)
            if os.geteuid() == 0 or group in os.getgroups():
                os.fchown(descriptor, -1, group)
            os.fchmod(descriptor, 0o640)
            file.flush()
            os.fsync(descriptor)
        draft.replace(directory / f"{name}.wasm")
    finally:
        draft.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
