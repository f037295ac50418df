"""The privileged part: what an agent that is not root has done by root, one act for each connection. To be audited.

systemd listens (hostmesh-privileged.socket) and starts one process of this for each connection; its standard input is
the connection. Who calls is the kernel's word: root, or the agent's user. A request is one line of JSON:

    {"verb": "stop-envoy", "instance": "blue"}

Whoever has become the agent may do these acts and no others. So no path, no text of a file and no name of a unit is
ever taken from a request; each argument is one of a few words, a number that is looked at, or goes to a program that
runs as somebody without rights. Standard library, `dns`, which reads and writes /etc/resolv.conf, what reads the words
of an upgrade, and what looks whose sockets are whose.
"""

import json
import os
import pwd
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from hostmesh_agent import socket_holders
from hostmesh_agent.dns import ROOTS_COPY, Resolver, ResolverError
from hostmesh_agent.upgrader import request as upgrades
from hostmesh_api import wire

AGENT: Final = "hostmesh-agent"
ENVOY: Final = "hostmesh-envoy"
CONFIG: Final = Path("/etc/hostmesh/agent.toml")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
KEPT: Final = ROOTS_COPY
MAX_REQUEST_BYTES: Final = 1 << 16
REQUEST_WITHIN_S: Final = 5.0
ACT_WITHIN_S: Final = 10.0
_LINK: Final = "hostmesh0"
_INSTANCES: Final = ("blue", "green")
_SIGNALS: Final = {"TERM": signal.SIGTERM, "KILL": signal.SIGKILL}
_ENVOYS_SLICE: Final = re.compile(r"0::/hostmesh\.slice/hostmesh-envoy\.slice/[a-z@.-]+")
_SHOWN: Final = ("LoadState", "User", "ActiveState", "MainPID", "ExecMainPID", "ExecMainCode", "ExecMainStatus")
_OFF: Final = ("default-route", "llmnr", "mdns", "dnsovertls", "dnssec")
_DOMAIN: Final = re.compile(r"~?(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
_MAX_DOMAINS: Final = 256
_MAX_WORDS: Final = 256
_QUIET: Final = ("show-envoy", "ssh-servers", "holders", "probe")
"""What only looks, or is asked for every few seconds: it leaves no line in the journal where it succeeds."""
_MOST_TOLD: Final = 200
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
    "SYSTEMD_COLORS": "0",
}
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid

Reply = dict[str, Any]


class RefusedError(Exception):
    """What is asked for is none of the acts, or not the caller's to ask for."""


# The acts


def _instance(value: object) -> str:
    if value not in _INSTANCES:
        raise RefusedError("instance: is neither blue nor green")
    return f"hostmesh-envoy@{value}.service"


def start_envoy(instance: object) -> Reply:
    """Start it, or start it anew. The unit says as whom it runs, and within which bounds."""
    return _run("systemctl", "restart", "--", _instance(instance))


def stop_envoy(instance: object) -> Reply:
    return _run("systemctl", "stop", "--", _instance(instance))


def forget_envoy(instance: object) -> Reply:
    """Have systemd forget that it failed."""
    return _run("systemctl", "reset-failed", "--", _instance(instance))


def show_envoy(instance: object) -> Reply:
    """Tell what systemd knows of it."""
    return _run("systemctl", "show", *(f"--property={each}" for each in _SHOWN), "--", _instance(instance))


def signal_envoy(pid: object, number: object) -> Reply:
    """Send TERM or KILL to a process that is Envoy: of its user, and in its slice."""
    if type(pid) is not int or pid <= 1 or number not in _SIGNALS:
        raise RefusedError("pid, number: are no process, and TERM or KILL")
    try:
        # Opened before it is looked at: what is looked at is then what is signalled, or there is nothing to signal.
        descriptor = os.pidfd_open(pid)
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        cgroup = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        if not is_envoy(status, cgroup, pwd.getpwnam(ENVOY).pw_uid):
            raise RefusedError(f"process {pid} is no Envoy of this host's mesh")
        signal.pidfd_send_signal(descriptor, _SIGNALS[str(number)])
    except (ProcessLookupError, FileNotFoundError):
        return {"done": False}
    return {"done": True}


def is_envoy(status: str, cgroup: str, uid: int) -> bool:
    """Tell by what /proc says of a process."""
    users = re.findall(r"^Uid:\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)$", status, re.MULTILINE)
    return users == [(str(uid),) * 4] and any(_ENVOYS_SLICE.fullmatch(line) for line in cgroup.splitlines())


def put_names() -> Reply:
    """Put Envoy before the resolvers of resolv.conf."""
    before = _resolv_conf()
    try:
        state = Resolver(RESOLV_CONF, KEPT).apply()
    except ResolverError as error:
        return {"error": str(error)}
    return {"in_place": state.in_place, "detail": state.detail, "changed": _resolv_conf() != before}


def take_names() -> Reply:
    """Take it out of there."""
    before = _resolv_conf()
    try:
        Resolver(RESOLV_CONF, KEPT).restore()
    except ResolverError as error:
        return {"error": str(error)}
    with suppress(OSError):
        KEPT.rmdir()
    return {"changed": _resolv_conf() != before}


def _resolv_conf() -> tuple[int, int] | None:
    """Return what tells one file from another that took its place; None: there is none."""
    try:
        found = RESOLV_CONF.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def tell_resolved(what: object, values: object) -> Reply:
    """Tell systemd-resolved one thing about the link hostmesh0: all that the agent ever tells it."""
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise RefusedError("values: are no list of words")
    allowed = {
        **dict.fromkeys(_OFF, values == ["no"]),
        "dns": values == [wire.SPLIT_DNS_ADDRESS],
        "domain": 0 < len(values) <= _MAX_DOMAINS and all(_DOMAIN.fullmatch(each) for each in values),
        "revert": not values,
    }
    if not isinstance(what, str) or not allowed.get(what, False):
        raise RefusedError("what, values: are nothing that is told")
    return _run("resolvectl", what, _LINK, *values)


def ssh_servers() -> Reply:
    """Tell on which ports SSH servers listen: what is never captured, and what only root finds out for sure."""
    from hostmesh_agent.capture import floor

    return {"ports": sorted(floor.ssh_servers())}


def holders(inodes: object) -> Reply:
    """Tell which processes have sockets open, for those that are somebody's."""
    if not (
        isinstance(inodes, list) and len(inodes) <= socket_holders.MOST and all(type(each) is int for each in inodes)
    ):
        raise RefusedError("inodes: are no list of sockets")
    return {"held": list(socket_holders.pids(inodes).items())}


def ask_upgrade(package: object, version: object, way: object, token: object) -> Reply:
    """Start hostmesh-upgrade@, which believes nothing of this and judges by the owner's word. It is not waited for."""
    words = (package, version, way, token)
    if not all(isinstance(each, str) for each in words):
        raise RefusedError("package, version, way, token: are no words")
    try:
        asked = upgrades.parse(":".join(map(str, words)))
    except upgrades.BadRequestError as error:
        raise RefusedError(str(error)) from None
    return _run("systemctl", "start", "--no-block", "--", asked.unit)


def probe(command: object) -> Reply:
    """Run a command as the user that agent.toml names for probes, until it ends or the caller hangs up."""
    if not (isinstance(command, list) and 0 < len(command) <= _MAX_WORDS and all(map(_is_word, command))):
        raise RefusedError("command: is no list of words")
    account = probes_account(CONFIG)
    become = [sys.executable, "-I", "-S", str(Path(__file__).with_name("probe_exec.py"))]
    child = subprocess.Popen(
        [*become, str(account.pw_uid), str(account.pw_gid), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={"PATH": _ENVIRONMENT["PATH"]},
        cwd="/",
        start_new_session=True,
    )
    ended = os.pidfd_open(child.pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(0, select.POLLIN | select.POLLHUP)
    # The caller has said all: what is to be read now is that it is gone. The unit bounds the rest.
    poll.poll()
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return {"error": "the caller has hung up"}
    return {"code": child.returncode}


def probes_account(config: Path) -> pwd.struct_passwd:
    """Return who runs the commands of probes, by the host's owner's word. Never root."""
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = {}
    name = document.get("probes", {}).get("exec_user", "nobody")
    if not name:
        raise RefusedError("probes.exec_user in agent.toml is empty: this host runs no commands")
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise RefusedError(f"probes.exec_user in agent.toml: there is no user {name!r}") from None
    if 0 in (account.pw_uid, account.pw_gid):
        raise RefusedError("probes.exec_user in agent.toml is root")
    return account


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _run(*command: str) -> Reply:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ACT_WITHIN_S,
            env=_ENVIRONMENT,
            cwd="/",
            check=False,
        )
    except FileNotFoundError:
        return {"error": f"there is no {command[0]}"}
    except subprocess.TimeoutExpired:
        return {"error": f"{' '.join(command[:2])}: no answer within {ACT_WITHIN_S:.0f} s"}
    if done.returncode:
        return {"error": f"{' '.join(command[:2])}: {done.stderr.strip()[-500:] or done.returncode}"}
    return {"said": done.stdout}


VERBS: Final[Mapping[str, tuple[Callable[..., Reply], Sequence[str]]]] = {
    "start-envoy": (start_envoy, ("instance",)),
    "stop-envoy": (stop_envoy, ("instance",)),
    "forget-envoy": (forget_envoy, ("instance",)),
    "show-envoy": (show_envoy, ("instance",)),
    "signal-envoy": (signal_envoy, ("pid", "number")),
    "put-names": (put_names, ()),
    "take-names": (take_names, ()),
    "tell-resolved": (tell_resolved, ("what", "values")),
    "ssh-servers": (ssh_servers, ()),
    "holders": (holders, ("inodes",)),
    "ask-upgrade": (ask_upgrade, ("package", "version", "way", "token")),
    "probe": (probe, ("command",)),
}


# The connection


def answer(line: bytes) -> Reply:
    """Do what a request asks for, and return what is to be said."""
    try:
        request = json.loads(line)
        if not isinstance(request, dict) or not isinstance(request.get("verb"), str):
            raise RefusedError("it is no request")
        act, names = VERBS.get(request.pop("verb"), (None, ()))
        if act is None or set(request) != set(names):
            raise RefusedError("it is none of the acts")
        return act(**request)
    except RefusedError as error:
        return {"error": f"refused: {error}"}
    except (ValueError, RecursionError):
        return {"error": "refused: it is no request"}
    except OSError as error:
        return {"error": f"{error.strerror or error}"}


def may_ask(uid: int) -> bool:
    """Tell whether a user may ask."""
    try:
        return uid in (0, pwd.getpwnam(AGENT).pw_uid)
    except KeyError:
        return uid == 0


def read_line(connection: socket.socket) -> bytes:
    """Return the request. Raises RefusedError where it is none, or does not come."""
    connection.settimeout(REQUEST_WITHIN_S)
    data = b""
    while not data.endswith(b"\n"):
        try:
            some = connection.recv(MAX_REQUEST_BYTES)
        except TimeoutError:
            raise RefusedError("it does not come") from None
        data += some
        if not some or len(data) > MAX_REQUEST_BYTES:
            raise RefusedError("it is no line, or too long a one")
    return data


def line_of(who: str, line: bytes, reply: Reply) -> str:
    """Return the line of an act for the journal, as systemd takes it from stderr; "" for what is not told."""
    verb, asked = "", ""
    with suppress(ValueError, RecursionError):
        request = json.loads(line)
        if isinstance(request, dict) and isinstance(request.get("verb"), str):
            verb = request.pop("verb")
            asked = json.dumps(request)
            asked = f"{verb} {asked if len(asked) <= _MOST_TOLD else asked[:_MOST_TOLD] + '…'}: "
    if "error" in reply:
        told = f"<5>{who}: {asked}{reply['error']}"
    elif verb in _QUIET or reply.get("changed") is False:
        return ""
    else:
        told = f"<6>{who}: {asked}{'nothing to do' if reply.get('done') is False else 'done'}"
    return "".join(each if each.isprintable() else " " for each in told)


def main() -> NoReturn:
    os.umask(0o022)
    connection = socket.socket(fileno=0)
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    asked = b""
    try:
        if may_ask(uid):
            asked = read_line(connection)
            reply = answer(asked)
        else:
            reply = {"error": f"refused: uid {uid} may not ask"}
    except RefusedError as error:
        reply = {"error": f"refused: {error}"}
    if told := line_of(f"uid {uid}, process {pid}", asked, reply):
        print(told, file=sys.stderr, flush=True)
    try:
        connection.settimeout(REQUEST_WITHIN_S)
        connection.sendall(json.dumps(reply).encode() + b"\n")
    except OSError:
        pass  # nobody waits for it any more
    os._exit(0)


if __name__ == "__main__":
    main()
