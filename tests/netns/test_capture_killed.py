"""Rules, routes and addresses are all there or not there: a process is killed after every single netlink message."""

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Final

import pytest

from hostmesh_agent import capture, name_link
from hostmesh_agent.capture import Caller, CaptureRequest, HostFloor, Owner, nft, plan, routes
from hostmesh_agent.capture.rules import Ruleset, Table
from hostmesh_agent.places import GREEN, PORTS
from hostmesh_api import wire
from netns.conftest import HOST
from netns.space import Servers, Space, ask, fork, run

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
x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads x86-64's registers")
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def killed_after(messages: int, act: Callable[[], object]) -> bool:
    """Run `act` in a process of its own and kill it when the kernel has done its n-th netlink message.

    Returns whether it ended by itself before that. It has no other sockets than netlink's, so it sends nothing else.
    """
    pid = fork()
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
    routes.add(VIRTUAL, OLD.loopback_addresses)
    nft.write(OLD.table)
    routes.write(VIRTUAL, OLD.loopback_addresses)


MESH: Final = CaptureRequest(
    inbound_ports=frozenset({8080, 8081}), strict_ports=frozenset({8080}), virtual_prefixes=VIRTUAL
)
CLOSED: Final = plan(MESH, FLOOR)
PASSING: Final = plan(replace(MESH, inbound_ports=MESH.strict_ports), FLOOR)
"""In failure mode open while no Envoy is there: what is STRICT stays captured."""
CLIENTS: Final = replace(FLOOR, uses_clients=True)
REDIRECTED, TRANSPARENT = (plan(replace(MESH, transparent=each), CLIENTS) for each in (False, True))
SECOND: Final = PORTS[GREEN]
UPGRADED: Final = plan(
    MESH,
    replace(
        FLOOR,
        outbound_port=SECOND.outbound,
        inbound_port=SECOND.inbound,
        dns_port=SECOND.dns,
        door_port=SECOND.door,
        doorways=frozenset({("", 8443)}),
    ),
)
CALLERS: Final = plan(
    replace(
        MESH, callers=tuple(Caller(f"spiffe://td/ns/shop/sa/{each}", uids=frozenset({each})) for each in (1000, 1001))
    ),
    FLOOR,
)
Act = Callable[[], object]


def from_to(before: Ruleset, after: Ruleset) -> tuple[Act, Act, tuple[Ruleset | None, ...]]:
    return lambda: capture.apply(before), lambda: capture.apply(after), (before, after)


CASES: Final[dict[str, tuple[Act, Act, tuple[Ruleset | None, ...]]]] = {
    "apply to nothing": (capture.clear, apply_owned, (None, NEW)),
    "change": from_to(OLD, NEW),
    "undo a trial": (lambda: capture.apply(NEW), undo, (NEW, OLD)),
    "clear": (lambda: capture.apply(OLD), capture.clear, (OLD, None)),
    "to tproxy": from_to(CLOSED, TRANSPARENT),
    "from tproxy to redirects while an Envoy uses its clients' addresses": from_to(TRANSPARENT, REDIRECTED),
    "from tproxy to rules without it": from_to(TRANSPARENT, CLOSED),
    "clear of tproxy": (lambda: capture.apply(TRANSPARENT), capture.clear, (TRANSPARENT, None)),
    "to the second Envoy and its door": from_to(CLOSED, UPGRADED),
    "back to the first Envoy": from_to(UPGRADED, CLOSED),
    "failure mode open, Envoy gone": from_to(CLOSED, PASSING),
    "failure mode open, Envoy back": from_to(PASSING, CLOSED),
    "identities of programs": from_to(CLOSED, CALLERS),
    "no identities of programs": from_to(CALLERS, CLOSED),
}


@x86_64
@pytest.mark.parametrize("case", CASES)
def test_old_or_new_is_whole_after_every_single_message(peer: Space, servers: Servers, case: str) -> None:
    before, act, allowed = CASES[case]
    clears = allowed[-1] is None
    servers.tcp("ssh", 22)
    messages, ended = 0, False
    found: set[Table | None] = set()
    tables = {None if each is None else each.table: each for each in allowed}
    while not ended:
        messages += 1
        before()
        ended = killed_after(messages, act)
        table = nft.read()
        assert table in tables, f"after message {messages}"
        found.add(table)
        if (ruleset := tables[table]) is not None and not clears:
            assert not lacking(ruleset), f"rules without their routes after message {messages}"
        with peer():
            assert ask(HOST[0], 22) == "ssh"
        act()
        assert nft.read() == (None if allowed[-1] is None else allowed[-1].table), f"no way on after message {messages}"
        assert bool(routes.read()) is not clears
    assert found == set(tables)
    assert messages > 5


def lacking(ruleset: Ruleset) -> routes.Additions:
    return routes.lacking(ruleset.virtual_prefixes, ruleset.loopback_addresses, ruleset.marked_home)


@x86_64
def test_the_link_for_names_is_ours_after_every_single_message_and_the_next_agent_finishes_or_removes_it(
    host: Space,
) -> None:
    messages, ended = 0, False
    while not ended:
        messages += 1
        ended = killed_after(messages, name_link.make)
        if messages % 2:
            name_link.make()
            found = name_link.find()
            assert found is not None
            assert (found.ours, found.up) == (True, True)
            shown = run("ip", "-details", "address", "show", "dev", name_link.NAME)
            assert f"alias {name_link.ALIAS}" in shown
            assert "group default" in shown
            assert "inet6 fe80:" not in shown
            assert f"inet {wire.SPLIT_DNS_ADDRESS}/32" in shown
        name_link.remove()
        assert name_link.find() is None, f"what was there after message {messages} is not known as ours"
    assert messages > 5


@x86_64
def test_the_removal_of_the_link_for_names_is_whole_after_every_single_message(host: Space) -> None:
    messages, ended = 0, False
    while not ended:
        messages += 1
        name_link.make()
        ended = killed_after(messages, name_link.remove)
        name_link.remove()
        assert name_link.find() is None
