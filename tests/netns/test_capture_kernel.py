"""The table in the kernel: from any state to any state in one step, never half, and gone without a trace."""

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, product

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import Capture, CaptureError, CaptureRequest, HostFloor, Scope, nft, plan, routes
from hostmesh_agent.capture.rules import Ruleset, Table
from netns.capturing_host import until
from netns.conftest import PEER
from netns.space import Servers, Space, ask, fork, run, snapshot
from netns.space import nft as load

VIRTUAL = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
FLOOR = HostFloor(envoy_uid=900)
SMALL = CaptureRequest(virtual_prefixes=VIRTUAL, dns=False)
MESH = CaptureRequest(
    inbound_ports=frozenset({80, 8080}),
    mesh_prefixes=VIRTUAL | {f"{PEER[0]}/32", f"{PEER[1]}/128", "224.0.0.0/3", "10.20.0.0/15"},
    virtual_prefixes=VIRTUAL,
)
LARGE = CaptureRequest(
    Scope.ALL,
    frozenset(range(1024, 1100)),
    frozenset(f"10.{n // 100}.{n % 100}.1/32" for n in range(3000)) | {f"2001:db8::{n:x}0/128" for n in range(3000)},
    VIRTUAL,
)
REQUESTS = {"small": SMALL, "mesh": MESH, "large": LARGE}

FOREIGN = """
table ip nat {
    chain PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump DOCKER
    }
    chain OUTPUT {
        type nat hook output priority -100; policy accept;
        fib daddr type local counter jump DOCKER
    }
    chain DOCKER { tcp dport 8088 counter dnat to 172.17.0.2:80; }
}
table inet filter {
    set allowed { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
    chain input {
        type filter hook input priority filter; policy accept;
        ip saddr @allowed ct state new counter accept
    }
}
table inet hostmesh2 {
    chain output { type nat hook output priority -110; policy accept; }
}
"""
SOMEBODYS = """
table inet hostmesh {
    set mesh4 { type ipv4_addr; }
    map ways { type inet_service : verdict; }
    chain ours { counter; }
    chain answers { counter; jump ours; }
    chain hooked { type route hook output priority 5; log prefix "x" limit rate 1/second; }
}
"""
TORN: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "an empty table of our name": lambda: load("table inet hostmesh {}"),
    "somebody's table of our name": lambda: load(SOMEBODYS),
    "rules only": lambda: nft.write(plan(MESH, FLOOR).table),
    "routes only": lambda: routes.write(VIRTUAL, ["::6"]),
    "a smaller request": lambda: capture.apply(plan(SMALL, FLOOR)),
    "a larger request": lambda: capture.apply(plan(LARGE, FLOOR)),
}


def ruleset(name: str) -> Ruleset:
    return plan(REQUESTS[name], FLOOR)


@pytest.mark.parametrize(("torn", "wanted"), list(product(TORN, REQUESTS)))
def test_from_any_state_the_request_comes_into_force_and_goes_without_a_trace(
    host: Space, torn: str, wanted: str
) -> None:
    load(FOREIGN)
    before = snapshot()
    TORN[torn]()
    capture.apply(ruleset(wanted))
    assert nft.read() == ruleset(wanted).table
    assert capture.verify(ruleset(wanted)) == ""
    capture.clear()
    assert snapshot() == before
    capture.clear()
    assert snapshot() == before


def test_clear_works_with_no_agent_and_no_state(host: Space) -> None:
    load(FOREIGN)
    before = snapshot()
    capture.apply(ruleset("mesh"))
    code = "from hostmesh_agent.capture import clear; clear()"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=30)
    assert snapshot() == before


def test_routes_and_addresses_of_others_stay(peer: Space) -> None:
    run("ip", "route", "add", "240.240.0.0/24", "dev", "eth0")
    run("ip", "-6", "address", "add", "2001:db8:77::10/128", "dev", "lo", "preferred_lft", "0")
    run("ip", "-6", "address", "add", "::7/128", "dev", "lo")
    until(lambda: "local ::7 " in snapshot(), "the kernel has made the route to the address, which it does later")
    before = snapshot()
    capture.apply(ruleset("mesh"))
    capture.clear()
    assert snapshot() == before


def test_nft_shows_what_our_own_listing_shows(host: Space) -> None:
    capture.apply(ruleset("mesh"))
    listed = run("nft", "list", "table", "inet", "hostmesh")
    for line in capture.show().splitlines():
        words = line.strip()
        if words.startswith(("meta skuid", "tcp dport", "ip daddr", "ip6 daddr", "fib daddr", "iif", "meta nfproto")):
            assert words in listed


def test_what_is_in_force_is_told_by_the_hash_of_what_the_kernel_has(host: Space) -> None:
    everything = Capture()
    assert everything.state().state == "off"
    state = everything.apply(MESH, FLOOR)
    assert (state.state, state.rules_hash) == ("on", ruleset("mesh").table.digest)
    assert everything.apply(SMALL, FLOOR).rules_hash == ruleset("small").table.digest
    assert everything.clear().state == "off"
    assert everything.state().state == "off"


CHANGED = "another program changed"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: run("nft", "flush", "ruleset"), "is gone"),
        (lambda: run("nft", "add", "rule", "inet", "hostmesh", "outbound", "counter", "accept"), CHANGED),
        (lambda: run("nft", "insert", "rule", "inet", "hostmesh", "outbound", "accept"), CHANGED),
        (lambda: run("nft", "add", "element", "inet", "hostmesh", "mesh4", "{ 10.99.0.0/16 }"), CHANGED),
        (lambda: run("nft", "flush", "chain", "inet", "hostmesh", "inbound"), CHANGED),
        (lambda: run("nft", "add", "chain", "inet", "hostmesh", "extra"), CHANGED),
        (lambda: run("ip", "route", "flush", "proto", "157"), "no route to 240.240.0.0/16"),
        (lambda: run("ip", "-6", "address", "flush", "dev", "lo"), "the loopback interface has lost ::6"),
    ],
    ids=["flush", "add", "insert", "element", "flush chain", "chain", "route", "address"],
)  # fmt: skip
def test_a_change_by_another_program_is_noticed_and_mended(host: Space, change: Callable[[], str], says: str) -> None:
    everything = Capture()
    assert everything.apply(MESH, FLOOR).state == "on"
    change()
    state = everything.state()
    assert (state.state, says in state.error) == ("error", True), state
    assert everything.apply(MESH, FLOOR).state == "on"


def test_while_nobody_changes_anything_the_rules_are_not_read_again(host: Space) -> None:
    everything = Capture()
    applied = everything.apply(MESH, FLOOR)
    began = time.process_time()
    states = [everything.state() for _ in range(100)]
    spent_ms = (time.process_time() - began) * 1000 / len(states)
    print(f"a look at what has not changed: {spent_ms:.2f} ms of a core")
    assert all(state is applied for state in states)
    run("nft", "add", "table", "ip", "others")
    state = everything.state()
    assert state == applied
    assert state is not applied  # another program changed its own table: ours was read, and found to be the same
    assert everything.state() is state


def test_nothing_in_force_is_remembered_too_until_somebody_applies_something(host: Space) -> None:
    everything = Capture()
    state = everything.state()
    assert state.state == "off"
    assert everything.state() is state
    capture.apply(ruleset("mesh"))
    assert everything.state().rules_hash == ruleset("mesh").table.digest


@pytest.mark.parametrize(
    "break_it",
    [
        lambda: run("ip", "route", "flush", "proto", "157"),
        lambda: run("ip", "-6", "route", "flush", "table", "local", "proto", "157"),
        lambda: run("ip", "route", "replace", "unreachable", "240.240.0.0/16"),
        lambda: run("ip", "-6", "address", "del", "::6/128", "dev", "lo"),
        lambda: run("ip", "link", "set", "lo", "down"),
    ],
    ids=["IPv4", "IPv6", "unreachable", "address", "loopback"],
)
def test_lost_routes_and_addresses_are_seen_without_reading_the_rules(host: Space, break_it: Callable[[], str]) -> None:
    whole = ruleset("mesh")
    everything = Capture()
    assert everything.apply(MESH, FLOOR).state == "on"
    assert routes.in_place(whole.virtual_prefixes, whole.loopback_addresses)
    break_it()
    assert not routes.in_place(whole.virtual_prefixes, whole.loopback_addresses)
    assert everything.state().state == "error"


def test_what_a_half_way_clear_has_left_is_noticed_and_cleared(host: Space) -> None:
    before = snapshot()
    capture.apply(ruleset("mesh"))
    nft.remove()
    assert "cleared half-way" in Capture().state().error
    assert Capture().clear().state == "off"
    assert Capture().state().state == "off"
    assert snapshot() == before


def test_rules_that_cannot_be_written_leave_no_routes_behind(host: Space) -> None:
    before = snapshot()
    whole = ruleset("mesh")
    broken = replace(whole, table=replace(whole.table, sets=()))
    with pytest.raises(CaptureError, match="could not write the capture rules"):
        capture.apply(broken)
    assert snapshot() == before


def test_a_request_that_cannot_be_planned_changes_nothing(host: Space) -> None:
    everything = Capture()
    before = everything.apply(MESH, FLOOR)
    state = everything.apply(CaptureRequest(mesh_prefixes=frozenset({"nonsense"})), FLOOR)
    assert (state.state, "nonsense" in state.error, state.rules_hash) == ("error", True, before.rules_hash)
    assert everything.state() == before


def test_without_the_right_the_error_says_which_one_is_missing(host: Space) -> None:
    code = "from hostmesh_agent.capture import Capture; print(Capture().state().error)"
    done = run("unshare", "--user", sys.executable, "-c", code, environment=environment())
    assert "capture needs CAP_NET_ADMIN" in done


def test_a_refused_batch_leaves_everything_as_it_was(host: Space) -> None:
    capture.apply(ruleset("mesh"))
    before = snapshot()
    table = ruleset("small").table
    broken = type(table)(sets=(), chains=table.chains)  # rules that look into sets which are not there
    with pytest.raises(CaptureError, match="could not write the capture rules"):
        nft.write(broken)
    assert snapshot() == before


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def writes_in_turns(tables: Sequence[Table]) -> int:
    """Start a process that writes one table after the other without end; return its number."""
    pid = fork()
    if pid == 0:
        try:
            for table in cycle(tables):
                nft.write(table)
        finally:
            os._exit(1)
    return pid


def test_a_kill_in_the_middle_of_applying_leaves_all_or_nothing(host: Space) -> None:
    tables = [ruleset(name).table for name in ("mesh", "large")]
    whole = {None, *(each.digest for each in tables)}
    seen: Counter[str | None] = Counter()
    for attempt in range(40):
        if attempt >= 20 and len(seen) > 1:
            break
        pid = writes_in_turns(tables)
        deadline = time.monotonic() + 0.015 * (attempt % 20)
        while time.monotonic() < deadline:
            nft.read()
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "it wrote until it was killed"
        table = nft.read()
        seen[table.digest if table else None] += 1
    print(f"killed while there was: {sorted(seen.values())}")
    assert set(seen) <= whole
    assert len(seen) > 1
    capture.clear()


@pytest.fixture
def callers(peer: Space, servers: Servers) -> Iterator[Callable[[], Counter[str]]]:
    """Call a mesh service without pause from two threads; called, it ends them and tells the answers."""
    answers: Counter[str] = Counter()
    done = threading.Event()

    def call() -> None:
        while not done.is_set():
            answers[ask(PEER[0], 443).partition(" ")[0]] += 1

    servers.tcp("blue", 15001)
    servers.tcp("green", 16001)
    capture.apply(ruleset("mesh"))
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()

    def finish() -> Counter[str]:
        done.set()
        for thread in threads:
            thread.join(10)
        return answers

    yield finish
    finish()


def test_rules_and_sets_change_under_load_without_a_failed_or_an_uncaptured_connection(
    callers: Callable[[], Counter[str]],
) -> None:
    neighbours = ("10.9.0.1/32", "10.9.0.3/32", "10.8.0.0/16"), ("10.9.0.4/31", "10.10.0.0/15")
    tables = [
        plan(replace(MESH, mesh_prefixes=MESH.mesh_prefixes | set(others)), HostFloor(900, outbound_port=port)).table
        for port, others in zip((16001, 15001), neighbours, strict=True)
    ]
    for _ in range(50):
        for table in tables:
            nft.write(table)
    answers = callers()
    assert set(answers) == {"blue", "green"}
    print(f"100 changes under {answers.total()} connections: {dict(answers)}")


def test_how_long_it_takes_is_told(host: Space) -> None:
    def spent_ms(act: Callable[[], object]) -> float:
        began = time.perf_counter()
        act()
        return (time.perf_counter() - began) * 1000

    tables = [plan(MESH, HostFloor(envoy_uid=900, outbound_port=port)).table for port in (16001, 15001)]
    first_ms, change_ms, read_ms = [], [], []
    for _ in range(10):
        first_ms.append(spent_ms(lambda: nft.write(tables[0])))
        change_ms.append(spent_ms(lambda: nft.write(tables[1])))
        read_ms.append(spent_ms(nft.read))
        nft.remove()
    for name, times_ms in {"install": first_ms, "change": change_ms, "read back": read_ms}.items():
        print(f"{name}: median {statistics.median(times_ms):.1f} ms, best {min(times_ms):.1f} ms")
    print(f"install with 6,000 prefixes: {spent_ms(lambda: nft.write(ruleset('large').table)):.0f} ms")
