"""Ends a process at one of its system calls, and makes of it what a power cut makes: by ptrace(2), for every call.

Disks change by system calls alone. So an operation that is ended before each of them in turn has been ended at every
moment that there is. A power cut takes, besides, what was written and not synchronised.
"""

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_TRACEME, _SYSCALL, _SETOPTIONS, _GET_SYSCALL_INFO = 0, 24, 0x4200, 0x420E
_SYSGOOD, _EXITKILL = 0x1, 0x100000
_INFO = struct.Struct("=B3xIQQQ6Q")  # struct ptrace_syscall_info at a call's entry
_ENTRY = 1

# openat write pwrite64 rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir ftruncate chmod fchmod fchmodat
# fchown link linkat symlink symlinkat copy_file_range sendfile, and then fsync fdatasync
_CHANGING = {
    "x86_64": (257, 1, 18, 82, 264, 316, 87, 263, 83, 258, 84, 77, 90, 91, 268, 93, 86, 265, 88, 266, 326, 40, 74, 75),
    "aarch64": (56, 64, 68, 38, 276, 35, 34, 46, 52, 53, 55, 37, 36, 285, 71, 82, 83),
}
CHANGING = frozenset(_CHANGING.get(platform.machine(), ()))
_SYNCS = frozenset({74, 75} if platform.machine() == "x86_64" else {82, 83})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@dataclass
class Course:
    """How it went: `finished` before the call at which it was to end; `calls` that were counted."""

    finished: bool = False
    calls: int = 0
    synced: set[tuple[int, int]] = field(default_factory=set)


def at_every_step(act: Callable[[], object], prepare: Callable[[], None], tree: Path) -> Iterator[int]:
    """Do `prepare`, then `act` in a child that loses power before its nth change of a file; yield n, for n = 1, 2, …

    The last one yielded was not cut: it is where it finished. What the child needs of other processes it must not ask.
    """
    step = 0
    while True:
        step += 1
        prepare()
        before = {_inode(each) for each in _files(tree)}
        course = cut(act, step)
        if not course.finished:
            for each in _files(tree):
                if _inode(each) not in before | course.synced:
                    os.truncate(each, 0)
        yield step
        if course.finished:
            return


def cut(act: Callable[[], object], at: int) -> Course:
    """Do it in a child that ends before its `at`th change of a file."""
    pid = os.fork()
    if pid == 0:
        _child(act)
    course = Course()
    os.waitpid(pid, 0)
    _ptrace(_SETOPTIONS, pid, 0, _SYSGOOD | _EXITKILL)
    syncing = 0
    while True:
        _ptrace(_SYSCALL, pid, 0, 0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the operation failed"
            course.finished = True
            return course
        assert os.WIFSTOPPED(status), f"ended by signal {os.WTERMSIG(status)}"
        assert os.WSTOPSIG(status) == signal.SIGTRAP | 0x80, f"stopped by {os.WSTOPSIG(status)}"
        operation, number, argument = _info(pid)
        if operation != _ENTRY:
            if syncing:
                course.synced.add(_inode(Path(f"/proc/{pid}/fd/{syncing}")))
            continue
        syncing = argument if number in _SYNCS else 0
        if number in CHANGING:
            course.calls += 1
            if course.calls == at:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return course


def _child(act: Callable[[], object]) -> None:
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        _ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        act()
        code = 0
    finally:
        os._exit(code)


def _info(pid: int) -> tuple[int, int, int]:
    buffer = ctypes.create_string_buffer(128)
    _ptrace(_GET_SYSCALL_INFO, pid, len(buffer), ctypes.addressof(buffer))
    operation, _, _, _, number, argument, *_ = _INFO.unpack_from(buffer.raw)
    return operation, number, argument


def _ptrace(request: int, pid: int, address: int, data: int) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _files(tree: Path) -> list[Path]:
    return [each for each in tree.rglob("*") if each.is_file() and not each.is_symlink()]


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
