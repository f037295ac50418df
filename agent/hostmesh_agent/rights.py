"""What takes more rights than an agent need have: done by ourselves where we are root, else by the privileged part.

The two ways are one interface, `Rights`; `here()` says which one this process has. The other side is `privileged`.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from hostmesh_agent import socket_holders

SOCKET: Final = Path("/run/hostmesh-privileged.sock")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
ANSWER_WITHIN_S: Final = 15.0
_ANSWER_BYTES: Final = 1 << 16
_VERBS: Final = {"restart": "start-envoy", "stop": "stop-envoy", "reset-failed": "forget-envoy", "show": "show-envoy"}

log = structlog.get_logger(__name__)

Names = tuple[bool, str]
"""Whether it is in place, and what is to be told of that."""


class RightsError(OSError):
    """It was not done. The message says what was asked, and who said what."""


class Rights(Protocol):
    """Blocks, each for some milliseconds. All raise OSError where it is not done."""

    helped: bool
    """Whether somebody else does it: we are not root."""

    def systemctl(self, program: str, verb: str, unit: str, properties: Sequence[str]) -> str:
        """Have systemd restart, stop, reset-failed or show a unit of Envoy's; return what it said."""

    def signal(self, descriptor: int, pid: int, number: signal.Signals) -> None:
        """Send a signal to an Envoy, by its pidfd. Raises ProcessLookupError where it has ended."""

    def resolvectl(self, program: str, what: str, link: str, values: Sequence[str]) -> None:
        """Tell systemd-resolved one thing about our link."""

    def put_names(self, path: Path, own: Callable[[], Names]) -> Names:
        """Put Envoy before the resolvers of the host's resolv.conf, as `own` does it."""

    def take_names(self, path: Path, own: Callable[[], None]) -> None:
        """Take it out of there, as `own` does it."""

    def ssh_servers(self, own: Callable[[], frozenset[int]]) -> frozenset[int]:
        """Return the ports of this host's SSH servers, as `own` finds them: who is not root does not see them all."""

    def holders(self, inodes: Collection[int], own: Callable[[], dict[int, int]]) -> dict[int, int]:
        """Return the processes that have sockets open, as `own` finds them. Never raises: who is not found is not."""

    def ask_upgrade(self, asked: Mapping[str, str], own: Callable[[], None]) -> None:
        """Have systemd start hostmesh-upgrade@, as `own` does it. `asked`: package, version, way and token."""

    async def probe(self, command: Sequence[str], own: Callable[[], Awaitable[int]]) -> int:
        """Run a command as the user of probes, as `own` does it; return its code. It ends when we are cancelled."""


class Own:
    """We have them."""

    helped = False

    within_s = 10.0
    """Less than the agent has to end in: while its own unit stops, systemd starts none that is to stop after it."""

    def systemctl(self, program: str, verb: str, unit: str, properties: Sequence[str]) -> str:
        return self._run(program, verb, *(f"--property={each}" for each in properties), "--", unit)

    def signal(self, descriptor: int, pid: int, number: signal.Signals) -> None:
        signal.pidfd_send_signal(descriptor, number)

    def resolvectl(self, program: str, what: str, link: str, values: Sequence[str]) -> None:
        self._run(program, what, link, *values)

    def put_names(self, path: Path, own: Callable[[], Names]) -> Names:
        return own()

    def take_names(self, path: Path, own: Callable[[], None]) -> None:
        own()

    def ssh_servers(self, own: Callable[[], frozenset[int]]) -> frozenset[int]:
        return own()

    def holders(self, inodes: Collection[int], own: Callable[[], dict[int, int]]) -> dict[int, int]:
        return own()

    def ask_upgrade(self, asked: Mapping[str, str], own: Callable[[], None]) -> None:
        own()

    async def probe(self, command: Sequence[str], own: Callable[[], Awaitable[int]]) -> int:
        return await own()

    def _run(self, *command: str) -> str:
        told = f"{command[0]} {command[1]} {command[-1]}"
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self.within_s,
                check=False,
                env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            )
        except subprocess.TimeoutExpired:
            raise RightsError(f"{told}: no answer within {self.within_s:g} s") from None
        if done.returncode:
            raise RightsError(f"{told}: {done.stderr.strip()[-500:] or done.returncode}")
        return done.stdout


class Helped:
    """The privileged part has them."""

    helped = True

    def __init__(self, place: Path = SOCKET) -> None:
        self._place = place

    def systemctl(self, program: str, verb: str, unit: str, properties: Sequence[str]) -> str:
        instance = unit.partition("@")[2].partition(".")[0]
        return str(self.ask(_VERBS[verb], instance=instance).get("said", ""))

    def signal(self, descriptor: int, pid: int, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(descriptor, number)
        except PermissionError:
            self.ask("signal-envoy", pid=pid, number=number.name.removeprefix("SIG"))

    def resolvectl(self, program: str, what: str, link: str, values: Sequence[str]) -> None:
        self.ask("tell-resolved", what=what, values=list(values))

    def put_names(self, path: Path, own: Callable[[], Names]) -> Names:
        self._only_the_hosts(path)
        reply = self.ask("put-names")
        return reply["in_place"] is True, str(reply["detail"])

    def take_names(self, path: Path, own: Callable[[], None]) -> None:
        self._only_the_hosts(path)
        self.ask("take-names")

    def ssh_servers(self, own: Callable[[], frozenset[int]]) -> frozenset[int]:
        return own() | frozenset(map(int, self.ask("ssh-servers")["ports"]))

    def holders(self, inodes: Collection[int], own: Callable[[], dict[int, int]]) -> dict[int, int]:
        found = own()
        hidden = sorted({each for each in inodes if each} - found.keys())[: socket_holders.MOST]
        if hidden:
            try:
                found |= {int(inode): int(pid) for inode, pid in self.ask("holders", inodes=hidden)["held"]}
            except OSError as error:
                log.warning("programs of other users are not known", error=str(error))
        return found

    def ask_upgrade(self, asked: Mapping[str, str], own: Callable[[], None]) -> None:
        self.ask("ask-upgrade", **asked)

    @staticmethod
    def _only_the_hosts(path: Path) -> None:
        if path != RESOLV_CONF:
            raise RightsError(f"an agent that is not root changes {RESOLV_CONF} alone; dns.resolv_conf is {path}")

    async def probe(self, command: Sequence[str], own: Callable[[], Awaitable[int]]) -> int:
        reader, writer = await asyncio.open_unix_connection(self._place)
        try:
            writer.write(request("probe", command=list(command)))
            return int(_reply("probe", await reader.readline())["code"])
        finally:
            writer.close()

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Have it done; return what is told of it.

        Raises:
            RightsError: it was not done.
        """
        try:
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(ANSWER_WITHIN_S)
                asking.connect(os.fspath(self._place))
                asking.sendall(request(verb, **arguments))
                data = b""
                while not data.endswith(b"\n") and (some := asking.recv(_ANSWER_BYTES)):
                    data += some
        except OSError as error:
            raise RightsError(f"{verb}: the privileged part ({self._place}) does not answer: {error}") from error
        return _reply(verb, data)


def _reply(verb: str, data: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(data)
    except ValueError:
        raise RightsError(f"{verb}: the privileged part hung up") from None
    if not isinstance(reply, dict) or "error" in reply:
        raise RightsError(f"{verb}: {reply['error'] if isinstance(reply, dict) else reply}")
    return reply


def request(verb: str, **arguments: Any) -> bytes:
    """Return the line that asks for an act."""
    return json.dumps({"verb": verb, **arguments}).encode() + b"\n"


def here(place: Path = SOCKET) -> Rights:
    """Return how this process has them. Where there is no privileged part we have what we have."""
    return Helped(place) if os.geteuid() != 0 and place.exists() else Own()
