"""The short life between the agent's fork and Envoy: run as a script, it gives up everything and becomes Envoy.

An own program rather than a preexec function: the agent has threads (grpc), and after a fork of a threaded process only
an exec is safe. It imports only what starts fast, since it stands in the way of a restart.

It writes the process record itself, before it becomes Envoy: an agent killed at any moment leaves no Envoy that the
next agent does not know. Run as `python -I -S launch.py SPEC`, SPEC being the JSON of `Spec`'s keys, or a file with it
(as a unit of systemd's: `envoy_unit`).
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable
from typing import Any, Final, TypedDict

EXIT_NOT_STARTED: Final = 126

# From linux/prctl.h and linux/capability.h.
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_PR_SET_KEEPCAPS: Final = 8
NET_BIND_SERVICE: Final = 10
NET_ADMIN: Final = 12
NET_RAW: Final = 13
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAPABILITIES: Final = 64


class Spec(TypedDict):
    """What to become. `uid` None: stay who we are (an agent that is not root). `cgroup`: a directory; "": stay.

    `capabilities` are kept, by number, as far as we have them. `max_files` 0: limits are as they are. `record` "":
    somebody else writes it. `log`: the file to write to; "": where we write.
    """

    argv: list[str]
    cwd: str
    binary: str
    uid: int | None
    gid: int
    max_files: int
    record: str
    log: str
    umask: int
    facts: dict[str, str]
    cgroup: str
    capabilities: list[int]


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 - pathlib starts slowly
        return file.read().strip()


def start_ticks(pid: int) -> int:
    """Return when the process started, in clock ticks since boot: with pid and boot id it names a process for good.

    Raises:
        ProcessLookupError: there is no such process, or only its zombie.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - as above
            # The program's name, in parentheses, may contain anything; what counts comes after it (proc(5)).
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(pid) from None
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[19])


def write_record(path: str, facts: dict[str, str], pid: int) -> None:
    """Say what a process is, by a rename. Where a disk is full, in the old file's place: an Envoy must not need room.

    Raises:
        ProcessLookupError: there is no such process.
        OSError: the file cannot be written.
    """
    document = {**facts, "pid": pid, "start_ticks": start_ticks(pid), "boot_id": boot_id()}
    data = json.dumps(document).encode()
    draft = f"{path}.{os.getpid()}"
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(draft, path)  # noqa: PTH105 - as above
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(draft)  # noqa: PTH108 - as above
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _overwrite(path, data)


def _overwrite(path: str, data: bytes) -> None:
    """Write over an earlier record of ours. Who reads half of it finds no JSON, and then no record."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "wb") as file:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the record is another user's", path)
        file.write(data)
        file.truncate()


def _prctl(option: int, argument: int = 0, second: int = 0) -> bool:
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, argument, second, 0, 0) == 0)


def permitted() -> int:
    """Return what this process may do, a bit for each capability from 0 to 31."""
    return int(_capabilities()[1][1])


def use(capabilities: Iterable[int]) -> None:
    """Use these again, after a change of the effective user has taken all from use; we have them still."""
    header, data = _capabilities()
    data[0] = sum(1 << each for each in capabilities) & data[1]
    _capset(header, data)


def _capabilities() -> tuple[Any, Any]:
    """Effective, permitted, inheritable, of the capabilities 0 to 31; then the same of the others."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    return header, data


def _capset(header: Any, data: Any) -> None:
    if ctypes.CDLL(None, use_errno=True).capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _set_capabilities(only: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(only, only, only, 0, 0, 0)
    _capset(header, data)


def give_up_privileges(uid: int | None, gid: int, capabilities: list[int]) -> None:
    """Become `uid`, with no other group, the capabilities that are kept as far as we have them, and no way to others.

    Always kept is to bind ports below 1024: a Gateway may ask for one at any time, a running Envoy cannot gain it, and
    starting another would cut connections. The alternative, net.ipv4.ip_unprivileged_port_start, would give such ports
    to every user of the host.
    """
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    have = permitted()
    kept = [each for each in capabilities if have & 1 << each]
    if uid is not None:
        for capability in range(_CAPABILITIES):
            if capability not in kept:
                _prctl(_PR_CAPBSET_DROP, capability)
        os.setgroups([])
        # What is permitted would go with the user; an exec ends this again.
        _prctl(_PR_SET_KEEPCAPS, 1)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    try:
        _set_capabilities(sum(1 << each for each in kept))
    except OSError:
        # The unit's filter has no such call. What is ambient is all that the exec of another user than root keeps.
        if uid is not None or os.geteuid() == 0:
            raise
    for each in kept:
        # Only what is ambient survives the exec of a program without capabilities of its own.
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, each)
    if not _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        raise OSError("prctl(PR_SET_NO_NEW_PRIVS) failed")


def become(uid: int, gid: int, groups: list[int], capabilities: list[int]) -> None:
    """Become another user than root, with these capabilities, and hand them on to what is started."""
    have = permitted()
    kept = [each for each in capabilities if have & 1 << each]
    os.setgroups(groups)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    _set_capabilities(sum(1 << each for each in kept))
    for each in kept:
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, each)


def join(cgroup: str) -> None:
    """Enter a cgroup: before there is any socket, since a socket keeps the cgroup that it is made in."""
    if cgroup:
        with open(f"{cgroup}/cgroup.procs", "w", encoding="ascii") as file:  # noqa: PTH123 - pathlib starts slowly
            file.write("0")


def redirect(log: str) -> None:
    """Write to a file that is there, from now on. Where it cannot be had (a full disk) our words stay where they go."""
    with contextlib.suppress(OSError):
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)


def read_spec(argument: str) -> Spec:
    """Return the specification: the argument, or what the file has that it names by its whole path."""
    if argument.startswith("/"):
        with open(argument, encoding="utf-8") as file:  # noqa: PTH123 - as above
            argument = file.read()
    return json.loads(argument)  # type: ignore[no-any-return] # by the agent's own hand, and read at once


def main(spec: Spec) -> None:
    """Become Envoy; returns only by an exception."""
    join(spec["cgroup"])
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    os.chdir(spec["cwd"])
    os.umask(spec["umask"])
    if spec["max_files"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["max_files"], spec["max_files"]))
        # A core of Envoy holds private keys.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Python ignores SIGPIPE and SIGXFSZ, and an exec keeps what is ignored.
    for each in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(each, signal.SIG_DFL)
    if spec["log"]:
        redirect(spec["log"])
    if spec["record"]:
        write_record(spec["record"], spec["facts"], os.getpid())
    give_up_privileges(spec["uid"], spec["gid"], spec["capabilities"])
    os.execve(spec["binary"], spec["argv"], {})  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    try:
        main(read_spec(sys.argv[1]))
    except (OSError, ValueError) as error:
        print(f"[hostmesh-agent] Envoy cannot be started: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_NOT_STARTED)
