"""Who holds what `leave` must have: the lock of a hung agent, its nftables table, an Envoy that no record names.

Looked up in /proc, so that it needs nobody to answer. A process is only ever ended by its pidfd, and after it has been
found twice: before the pidfd was open and with it in hand.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from hostmesh_agent import lock
from hostmesh_agent.process import Process

PROC: Final = Path("/proc")
_ENDS_WITHIN_S: Final = 5.0
_NETFILTER: Final = "12"
"""NETLINK_NETFILTER, as /proc/net/netlink counts protocols."""

Test = Callable[[int], bool]


def pids() -> list[int]:
    """Return all processes that this one can see, without itself."""
    return sorted(int(each.name) for each in PROC.iterdir() if each.name.isdigit() and int(each.name) != os.getpid())


def holds_lock(path: Path) -> Test:
    """Return a test: does a process hold a flock on the file?

    Not by /proc/locks: its numbers of devices and files are not those of `stat` on overlayfs and btrfs.
    """
    try:
        file = path.stat()
    except OSError:
        return lambda _: False

    def test(pid: int) -> bool:
        return any(
            os.path.samestat(found, file) and "FLOCK" in _text(PROC / f"{pid}/fdinfo/{number}")
            for number, found in _open_files(pid)
        )

    return test


def is_agent_of(state_dir: Path) -> Test:
    """Return a test: is a process the agent that holds this lock? A `leave` that does is left at its work."""
    holds = holds_lock(state_dir / lock.FILE)

    def test(pid: int) -> bool:
        command = words(pid)
        return holds(pid) and is_agent(command) and "leave" not in command

    return test


def holds_netfilter(pid: int) -> bool:
    """Tell whether a process of hostmesh's has a socket to which a table of our network can belong."""
    if not is_agent(words(pid)) or _network(str(pid)) != _network("self"):
        return False
    rows = [line.split() for line in _text(PROC / f"{pid}/net/netlink").splitlines()[1:]]
    inodes = {row[-1] for row in rows if len(row) > 3 and row[1] == _NETFILTER}
    return any(link.removeprefix("socket:[").rstrip("]") in inodes for link in _links(pid) if "socket:[" in link)


def is_timer(pid: int) -> bool:
    """Tell whether a process is a dead-man timer for the rules of our network (`deadman`)."""
    command = words(pid)
    return any("deadman" in word for word in command) and is_agent(command) and _network(str(pid)) == _network("self")


def is_envoy_of(state_dir: Path) -> Test:
    """Return a test: is a process an Envoy of this state directory, whoever started it and when?

    Envoy's binary and its working directory are both in there. Whoever looks around there with another program is left
    alone.
    """
    start = f"{state_dir.resolve()}/"

    def test(pid: int) -> bool:
        try:
            at = [os.fspath((PROC / f"{pid}/{each}").readlink()) for each in ("exe", "cwd")]
        except OSError:
            return False
        return all(each.startswith(start) for each in at)

    return test


def words(pid: int) -> list[str]:
    """Return a process's command line; empty for one that is gone, or the kernel's."""
    return _text(PROC / f"{pid}/cmdline").split("\0")[:-1]


def is_agent(command: list[str]) -> bool:
    """Tell whether a command line is one of ours: the program by its file, or a module of it run by Python."""
    return any(re.search(r"hostmesh[-_]agent", word) for word in command[:5])


def found(test: Test) -> list[int]:
    """Return the processes for which the test is true."""
    return [pid for pid in pids() if test(pid)]


def end(test: Test, grace_s: float = 0.0) -> list[int]:
    """End the processes for which the test is true, at once or after `grace_s`; return those that have ended. Blocks.

    A stopped process is ended too: SIGKILL does not wait for it to go on.
    """
    return [pid for pid in found(test) if _ended(pid, test, grace_s)]


@contextmanager
def held(test: Test) -> Iterator[list[Process]]:
    """Give the processes for which the test is true, with their pidfds in hand: they can be waited for."""
    with ExitStack() as stack:
        yield [process for pid in found(test) if (process := stack.enter_context(_opened(pid, test))) is not None]


def _ended(pid: int, test: Test, grace_s: float) -> bool:
    with _opened(pid, test) as process:
        if process is None:
            return False
        if grace_s:
            process.signal(signal.SIGTERM)
        if not grace_s or not process.wait(grace_s):
            process.signal(signal.SIGKILL)
        return process.wait(_ENDS_WITHIN_S)


@contextmanager
def _opened(pid: int, test: Test) -> Iterator[Process | None]:
    """Give a process by its pidfd; None if it is gone, or another one by now."""
    try:
        process = Process(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield process if test(pid) else None
    finally:
        process.close()


def _network(process: str) -> str:
    try:
        return os.fspath((PROC / process / "ns/net").readlink())
    except OSError:
        return ""


def _open_files(pid: int) -> Iterator[tuple[str, os.stat_result]]:
    with suppress(OSError):
        for each in (PROC / f"{pid}/fd").iterdir():
            with suppress(OSError):
                yield each.name, each.stat()


def _links(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for each in (PROC / f"{pid}/fd").iterdir():
            with suppress(OSError):
                yield os.fspath(each.readlink())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
