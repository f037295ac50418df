"""Rules, routes and addresses are all there or not there: a process is killed after every single netlink message."""

import ctypes
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import closing
from typing import Final

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureRequest, HostFloor, Owner, nft, plan, routes
from hostmesh_agent.capture.rules import Table
from netns.conftest import HOST
from netns.space import Servers, Space, ask

FLOOR: Final = HostFloor(envoy_uid=900)
VIRTUAL: Final = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
OLD: Final = plan(CaptureRequest(inbound_ports=frozenset({8080}), virtual_prefixes=VIRTUAL), FLOOR)
NEW: Final = plan(
    CaptureRequest(
        inbound_ports=frozenset({8080, 8081}), mesh_prefixes=frozenset({"10.20.0.0/16"}), virtual_prefixes=VIRTUAL
    ),
    FLOOR,
)
_TRACE_ME, _CONTINUE_TO_CALL, _GET_REGISTERS = 0, 24, 12  # linux/ptrace.h: TRACEME, SYSCALL, GETREGS
_SENDTO, _SENDMSG = 44, 46  # x86-64
_ORIG_RAX: Final = 15  # of struct user_regs_struct
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def killed_after(messages: int, act: Callable[[], object]) -> bool:
    """Run `act` in a process of its own and kill it when the kernel has done its n-th netlink message.

    Returns whether it ended by itself before that. It has no other sockets than netlink's, so it sends nothing else.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the servers' threads are not in the child
        pid = os.fork()
    if pid == 0:
        _libc.ptrace(_TRACE_ME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    sent, entering = 0, True
    registers = (ctypes.c_ulonglong * 27)()
    while True:
        _libc.ptrace(_CONTINUE_TO_CALL, pid, None, None)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return True
        assert os.WIFSTOPPED(status)
        if os.WSTOPSIG(status) != signal.SIGTRAP:
            continue
        entering = not entering
        _libc.ptrace(_GET_REGISTERS, pid, None, registers)
        # Stops come in pairs, before and after each call: what is done is done at the second.
        if entering and registers[_ORIG_RAX] in {_SENDTO, _SENDMSG}:
            sent += 1
            if sent == messages:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return False


def apply_owned() -> None:
    with closing(Owner()) as owner:
        capture.apply(NEW, owner)


def undo() -> None:
    """As the dead-man timer does it: back to what was in force before."""
    routes.write(VIRTUAL, OLD.loopback_addresses)
    nft.write(OLD.table)


CASES: Final[dict[str, tuple[Callable[[], object], Callable[[], object], tuple[Table | None, ...]]]] = {
    "apply to nothing": (capture.clear, apply_owned, (None, NEW.table)),
    "change": (lambda: capture.apply(OLD), lambda: capture.apply(NEW), (OLD.table, NEW.table)),
    "undo a trial": (lambda: capture.apply(NEW), undo, (NEW.table, OLD.table)),
    "clear": (lambda: capture.apply(OLD), capture.clear, (OLD.table, None)),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads x86-64's registers")
@pytest.mark.parametrize("case", CASES)
def test_old_or_new_is_whole_after_every_single_message(peer: Space, servers: Servers, case: str) -> None:
    before, act, allowed = CASES[case]
    servers.tcp("ssh", 22)
    messages, ended = 0, False
    found: set[Table | None] = set()
    while not ended:
        messages += 1
        before()
        ended = killed_after(messages, act)
        table = nft.read()
        assert table in allowed, f"after message {messages}"
        found.add(table)
        if table is not None:
            ruleset = OLD if table == OLD.table else NEW
            lacking = routes.lacking(ruleset.virtual_prefixes, ruleset.loopback_addresses)
            assert case == "clear" or not lacking, f"rules without their routes after message {messages}"
        with peer():
            assert ask(HOST[0], 22) == "ssh"
        act()
        assert nft.read() == allowed[-1], f"the next run does not converge after message {messages}"
        assert bool(routes.read()) is (allowed[-1] is not None)
    assert found == set(allowed)
    assert messages > 5
