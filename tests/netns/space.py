"""Network namespaces without a name, for tests: entered by the calling thread, gone when nobody is in them any more.

Nothing is left behind even if a test dies: no file names the namespace, so the kernel frees it with its last user.
"""

import ctypes
import os
import socket
import struct
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Final

CLONE_NEWNET: Final = 0x40000000
SO_ORIGINAL_DST: Final = 80
WAIT_S: Final = 5.0

_libc = ctypes.CDLL(None, use_errno=True)
_HOME: Final = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
"""Where the tests' process was when this was imported: in no test's namespace yet."""


def run(*command: str, environment: dict[str, str] | None = None) -> str:
    """Run a command in the thread's namespace and return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, text=True, timeout=30, check=True)


def snapshot() -> str:
    """Everything that capture may change in the kernel, as other tools show it."""
    return run("nft", "-a", "list", "ruleset") + "".join(
        run("ip", *words.split())
        for words in ("-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule", "address")
    )


@dataclass(frozen=True)
class Space:
    """A network namespace, held by a descriptor."""

    descriptor: int

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Be in the namespace: sockets and processes made meanwhile are in it for good."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self.descriptor)
            yield
        finally:
            _enter(here)
            os.close(here)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def fork() -> int:
    """Fork as `os.fork` does; the child goes on where its parent is.

    gRPC ends its threads before a fork and starts them anew in the namespace of who forked, from where they would call
    for all tests that follow: so this forks at home.
    """
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _enter(_HOME)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the tests' threads do not matter to the child
            return os.fork()
    finally:  # in both
        _enter(here)
        os.close(here)


@contextmanager
def new_space() -> Iterator[Space]:
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        space = Space(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        run("ip", "link", "set", "lo", "up")
    finally:
        _enter(here)
        os.close(here)
    try:
        yield space
    finally:
        os.close(space.descriptor)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Sockets made meanwhile by this thread belong to `uid`, as the kernel's `meta skuid` sees it."""
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(0)


def original_destination(connection: socket.socket) -> tuple[str, int] | None:
    """Return where the caller wanted to go; None if it came by itself."""
    try:
        if connection.family == socket.AF_INET:
            raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
            found = str(ip_address(raw[4:8])), struct.unpack(">H", raw[2:4])[0]
        else:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
            found = str(ip_address(raw[8:24])), struct.unpack(">H", raw[2:4])[0]
    except OSError:
        return None
    return None if found == connection.getsockname()[:2] else found


@dataclass
class Servers:
    """Listeners in threads, all closed together. Every server tells who it is and what was asked for."""

    sockets: list[socket.socket] = field(default_factory=list)
    arrived: list[str] = field(default_factory=list)
    """At which of the host's addresses connections came, in their order."""
    threads: list[threading.Thread] = field(default_factory=list)

    def tcp(self, name: str, port: int, *, tells_where: bool = False) -> None:
        """Listen in the calling thread's namespace on every address of both families.

        Answers "NAME" to a direct call and "NAME ADDRESS PORT" with the original destination to a redirected one. With
        `tells_where` both are followed by " at " and the address of this host where the call came.
        """
        self.listen(port, lambda listener: _answer_all(listener, name, self.arrived, tells_where))

    def tcp_at(self, name: str, address: str, port: int) -> None:
        """Listen at one address alone; answers as `tcp` does."""
        listener = socket.create_server((address, port))
        self._serve(listener, lambda: _answer_all(listener, name, self.arrived, tells_where=False))

    def listen(self, port: int, serve: Callable[[socket.socket], None]) -> None:
        """The same with a service of one's own, which takes connections until that fails."""
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            listener = socket.socket(family)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address, port))
            listener.listen(128)
            self._serve(listener, partial(serve, listener))

    def udp(self, address: str, port: int, answer: Callable[[bytes], bytes]) -> socket.socket:
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((address, port))
        self._serve(server, lambda: _answer_datagrams(server, answer))
        return server

    def _serve(self, server: socket.socket, loop: Callable[[], None]) -> None:
        self.sockets.append(server)
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self.threads.append(thread)

    def close(self) -> None:
        for server in self.sockets:
            with suppress(OSError):  # a UDP socket says "not connected", and wakes its reader all the same
                server.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(WAIT_S)
            assert not thread.is_alive()
        for server in self.sockets:
            server.close()


def _answer_all(listener: socket.socket, name: str, arrived: list[str], tells_where: bool) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            arrived.append(connection.getsockname()[0])
            original = original_destination(connection)
            words = [name, *map(str, original or ()), *(["at", arrived[-1]] if tells_where else [])]
            try:
                connection.sendall(" ".join(words).encode())
            except OSError:
                continue  # the caller went away


def _answer_datagrams(server: socket.socket, answer: Callable[[bytes], bytes]) -> None:
    while True:
        try:
            data, peer = server.recvfrom(65535)
        except OSError:
            return
        if not data:
            return
        server.sendto(answer(data), peer)


def ask(
    address: str,
    port: int,
    *,
    uid: int = 0,
    source: str = "",
    source_port: int = 0,
    within_s: float = WAIT_S,
) -> str:
    """Connect and return what the server says; "refused", "unreachable" or "silent" if none does."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with as_user(uid):
        client = socket.socket(family)
    with client:
        client.settimeout(within_s)
        try:
            if source or source_port:
                client.bind((source, source_port))
            client.connect((address, port))
            return b"".join(iter(lambda: client.recv(4096), b"")).decode()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "silent"
        except OSError as error:
            return f"unreachable: {error.strerror}"


def ask_udp(address: str, port: int, data: bytes) -> bytes:
    """Send one datagram and return the answer.

    Raises:
        ConnectionRefusedError: nobody listens there.
        TimeoutError: no answer came.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(WAIT_S)
        client.connect((address, port))
        client.send(data)
        return client.recv(65535)
