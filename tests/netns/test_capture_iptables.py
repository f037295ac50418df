"""Capture held by iptables and ipset: from any state to any state, safe after every step, gone without a trace."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from hostmesh_agent import capture, enforce
from hostmesh_agent.capture import Capture, CaptureRequest, HostFloor, Owner, Scope, iptables, kernel, nft, plan
from hostmesh_agent.capture.rules import Backend, Ruleset, Table
from hostmesh_agent.capture.xt_text import NEXT, sets_text
from hostmesh_agent.converge import InForce, in_force
from hostmesh_agent.enforce import Enforcement
from netns.conftest import HOST, PEER
from netns.others import rules_of_others
from netns.space import Servers, Space, ask, fork, run
from netns.test_strict import canary

VIRTUAL: Final = frozenset({"240.240.0.0/16", "fd00:f0f0::/112"})
FLOOR: Final = HostFloor(envoy_uid=900, backend=Backend.IPTABLES)
ON_NFTABLES: Final = HostFloor(envoy_uid=900)
SMALL: Final = CaptureRequest(virtual_prefixes=VIRTUAL)
MESH: Final = CaptureRequest(
    inbound_ports=frozenset({80, 8080}),
    mesh_prefixes=VIRTUAL | {f"{PEER[0]}/32", f"{PEER[1]}/128", "224.0.0.0/3", "10.20.0.0/15"},
    virtual_prefixes=VIRTUAL,
)
LARGE: Final = CaptureRequest(
    Scope.ALL,
    frozenset(range(1024, 1100)),
    frozenset(f"10.{n // 100}.{n % 100}.1/32" for n in range(400)) | {f"2001:db8::{n:x}0/128" for n in range(400)},
    VIRTUAL,
)
WHOLE: Final = replace(MESH, mesh_prefixes=frozenset({"0.0.0.0/0", "::/0", "10.0.0.0/8"}))
HALVES: Final = replace(MESH, mesh_prefixes=frozenset({"0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"}))
REQUESTS: Final = {"small": SMALL, "mesh": MESH, "large": LARGE, "whole": WHOLE, "halves": HALVES}
OTHERS: Final = "*nat\n:DOCKER - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\nCOMMIT\n"


def ruleset(name: str) -> Ruleset:
    return plan(REQUESTS[name], FLOOR)


def legacy(*words: str, version: str = "") -> str:
    return run(f"ip{version}tables-legacy", *words)


def everything() -> str:
    """All that capture may change, as other tools show it."""
    routes = "".join(run("ip", *words.split()) for words in ("-4 route show table all", "-6 route show table all"))
    return rules_of_others() + run("ipset", "save") + routes + run("ip", "address") + run("nft", "list", "ruleset")


def others() -> None:
    iptables._run([*iptables._program(4, "restore"), "--noflush"], OTHERS)
    run("ipset", "create", "somebodys", "hash:ip")
    run("ipset", "add", "somebodys", "10.1.2.3")


def somebodys() -> None:
    """Chains and sets by our names that are not as we make them."""
    run("ipset", "create", "HOSTMESH_mesh4", "hash:ip")
    run("ipset", "create", f"{NEXT}mesh6", "bitmap:port", "range", "0-65535")
    legacy("-t", "nat", "-N", "HOSTMESH_OUTBOUND")
    legacy("-t", "nat", "-N", "HOSTMESH_EXTRA")
    legacy("-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", "HOSTMESH_EXTRA")
    legacy("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "HOSTMESH_OUTBOUND")
    legacy("-t", "nat", "-A", "HOSTMESH_OUTBOUND", "-m", "set", "--match-set", "HOSTMESH_mesh4", "dst", "-j", "LOG")


TORN: Final[dict[str, Callable[[], object]]] = {
    "nothing": lambda: None,
    "somebody's chains and sets of our names": somebodys,
    "rules only": lambda: iptables.write(ruleset("mesh").table),
    "nftables' rules": lambda: capture.apply(plan(MESH, ON_NFTABLES)),
    "a smaller request": lambda: capture.apply(ruleset("small")),
    "a larger request": lambda: capture.apply(ruleset("large")),
}


@pytest.mark.parametrize(("torn", "wanted"), list(product(TORN, REQUESTS)))
def test_from_any_state_the_request_comes_into_force_and_goes_without_a_trace(
    host: Space, torn: str, wanted: str
) -> None:
    others()
    before = everything()
    TORN[torn]()
    capture.apply(ruleset(wanted))
    assert kernel.read() == ruleset(wanted).table
    assert nft.read() is None
    assert capture.verify(ruleset(wanted)) == ""
    capture.clear()
    assert everything() == before
    capture.clear()
    assert everything() == before


def test_rules_of_iptables_give_way_to_those_of_nftables(host: Space) -> None:
    before = everything()
    capture.apply(ruleset("mesh"))
    capture.apply(plan(MESH, ON_NFTABLES))
    assert iptables.read() is None
    assert kernel.look().backend is Backend.NFTABLES
    capture.clear()
    assert everything() == before


def test_the_state_names_the_back_end_and_what_it_cannot_do(host: Space) -> None:
    held = Capture()
    state = held.apply(MESH, FLOOR)
    assert (state.state, state.backend) == ("on", "iptables")
    assert ["mesh names need a kernel with nf_tables" in str(each) for each in state.refused] == [True]
    assert state.rules_hash == ruleset("mesh").table.digest
    assert capture.show().startswith("# held by iptables")
    assert in_force(kernel.read()) == InForce(MESH.inbound_ports, outbound=True)
    assert held.clear().state == "off"


CHANGED: Final = "another program changed"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda: legacy("-t", "nat", "-F"), CHANGED),
        (lambda: legacy("-t", "nat", "-F", version="6"), CHANGED),
        (lambda: legacy("-t", "nat", "-I", "OUTPUT", "-j", "ACCEPT"), CHANGED),
        (lambda: legacy("-t", "nat", "-D", "PREROUTING", "-j", "HOSTMESH_INBOUND"), CHANGED),
        (lambda: legacy("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-j", "HOSTMESH_OUTBOUND"), CHANGED),
        (lambda: legacy("-t", "nat", "-A", "HOSTMESH_OUTBOUND", "-j", "LOG"), CHANGED),
        (lambda: legacy("-t", "nat", "-R", "HOSTMESH_INBOUND", "1", "-j", "RETURN"), CHANGED),
        (lambda: run("ipset", "add", "HOSTMESH_mesh4", "10.99.0.0/16"), CHANGED),
        (lambda: run("ipset", "flush", "HOSTMESH_inbound_ports"), CHANGED),
        (lambda: run("ipset", "create", "HOSTMESH_more", "hash:ip"), CHANGED),
        (lambda: run("ip", "route", "flush", "proto", "157"), "no route to 240.240.0.0/16"),
    ],
    ids="flush,v6,before us,jump,second jump,add,replace,element,flush set,set,route".split(","),  # noqa: SIM905
)  # fmt: skip
def test_a_change_by_another_program_is_noticed_and_mended(host: Space, change: Callable[[], str], says: str) -> None:
    held = Capture()
    assert held.apply(MESH, FLOOR).state == "on"
    change()
    state = held.state()
    assert (state.state, says in state.error) == ("error", True), state
    assert held.apply(MESH, FLOOR).state == "on"
    assert held.state().state == "on"
    capture.clear()


# Killed


def killed_before(program: int, act: Callable[[], object]) -> bool:
    """Run `act` in a process of its own that dies when it is about to start its n-th program.

    Returns whether it ended by itself before that.
    """
    pid = fork()
    if pid == 0:
        started = 0

        def count(event: str, _: tuple[object, ...]) -> None:
            nonlocal started
            if event == "subprocess.Popen":
                started += 1
                if started == program:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            act()
            os._exit(0)
        except BaseException:
            os._exit(3)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


OLD: Final = plan(CaptureRequest(inbound_ports=frozenset({8080}), virtual_prefixes=VIRTUAL), FLOOR)
NEW: Final = plan(
    CaptureRequest(
        inbound_ports=frozenset({8080, 8081}), mesh_prefixes=frozenset({"10.20.0.0/16"}), virtual_prefixes=VIRTUAL
    ),
    replace(FLOOR, ssh_ports=frozenset({2222}), inbound_port=16006),
)
CASES: Final[dict[str, tuple[Callable[[], object], Callable[[], object], Table | None]]] = {
    "apply to nothing": (capture.clear, lambda: capture.apply(NEW), NEW.table),
    "change": (lambda: capture.apply(OLD), lambda: capture.apply(NEW), NEW.table),
    "change back": (lambda: capture.apply(NEW), lambda: capture.apply(OLD), OLD.table),
    "clear": (lambda: capture.apply(OLD), capture.clear, None),
}


@pytest.mark.parametrize("case", CASES)
def test_after_a_kill_at_any_step_ssh_is_open_strict_ports_are_closed_and_the_next_run_converges(
    peer: Space, servers: Servers, case: str
) -> None:
    before, act, wanted = CASES[case]
    for port in (22, 8080):
        servers.tcp("program", port)
    programs, ended = 0, False
    while not ended:
        programs += 1
        before()
        ended = killed_before(programs, act)
        with peer():
            for address in HOST:
                assert ask(address, 22) == "program"
                closed = ask(address, 8080) == "refused"  # nobody listens where captured calls lead
                assert closed or not case.startswith("change"), f"plaintext after program {programs}"
        act()
        assert kernel.read() == wanted, f"the next run does not converge after program {programs}"
    assert programs > 5
    capture.clear()
    assert "HOSTMESH" not in run("ipset", "list", "-n") + legacy("-t", "nat", "-S") + legacy(
        "-t", "nat", "-S", version="6"
    )


def test_the_agent_leaves_the_resolver_alone_looks_now_and_then_and_puts_rules_back(
    host: Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 192.0.2.53\n")
    enforcement = Enforcement(dns=True, resolv_conf=resolver, state_dir=tmp_path)
    put = enforcement.put(MESH, FLOOR)
    assert (put.capture.state, put.capture.backend, put.dns_in_place) == ("on", "iptables", False)
    assert resolver.read_text() == "nameserver 192.0.2.53\n"
    assert put.in_force == InForce(MESH.inbound_ports, outbound=True)
    legacy("-t", "nat", "-F", "HOSTMESH_INBOUND")
    assert enforcement.put(MESH, FLOOR) == put  # it was looked at just now
    assert kernel.read() != ruleset("mesh").table
    monkeypatch.setattr(enforce, "IPTABLES_CHECK_S", 0.0)
    assert enforcement.put(MESH, FLOOR) == put
    assert kernel.read() == ruleset("mesh").table
    assert any("chain inbound: " in each for each in enforcement.drift)
    assert enforcement.put(None, FLOOR).capture.state == "off"
    assert kernel.read() is None


def test_where_the_programs_are_missing_the_error_names_their_packages(host: Space) -> None:
    code = (
        "from netns.test_capture_iptables import FLOOR, MESH; from hostmesh_agent.capture import Capture; "
        "print(Capture().apply(MESH, FLOOR).error)"
    )
    hidden = 'mount -t tmpfs none /usr/sbin && exec "$@"'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = run("unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-c", code, environment=environment)
    assert "install the package" in said
    assert "ipset" in said


def test_rules_of_a_container_that_brought_its_own_iptables_hinder_nobody(host: Space) -> None:
    """The host itself has only the programs that speak to nf_tables, or none."""
    others()
    code = (
        "from netns.test_capture_iptables import MESH, ON_NFTABLES; from hostmesh_agent.capture import Capture; "
        "c = Capture(); print(c.state().state, c.apply(MESH, ON_NFTABLES).state, c.clear().state)"
    )
    hidden = 'mount -t tmpfs none /usr/sbin && exec "$@"'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = run("unshare", "--mount", "sh", "-c", hidden, "sh", sys.executable, "-c", code, environment=environment)
    assert said == "off on off\n"


def test_changes_of_the_rules_let_no_plaintext_in(peer: Space, servers: Servers) -> None:
    servers.tcp("program", 8080)
    capture.apply(OLD)
    with canary(peer) as found:
        for _ in range(5):
            capture.apply(NEW)
            capture.apply(OLD)
    assert set(found) == {"refused"}, found
    capture.clear()


def test_a_port_that_leaves_the_mesh_is_open_before_the_rules_follow(peer: Space, servers: Servers) -> None:
    """Another program may hold iptables' lock for long: until then nobody must be sent away."""
    servers.tcp("program", 8080)
    strict = replace(MESH, inbound_ports=frozenset({8080}), strict_ports=frozenset({8080}))
    capture.apply(plan(strict, FLOOR))
    wanted = plan(replace(MESH, inbound_ports=frozenset()), FLOOR).table
    iptables._ipset(sets_text(iptables._read().sets, wanted))
    with peer():
        assert [ask(each, 8080).split(" ")[0] for each in HOST] == ["program", "program"]
    capture.clear()


UNITS: Final = Path(__file__).parents[2] / "packaging/systemd"


@pytest.mark.parametrize("unit", ["as-root/hostmesh-agent.service.conf", "hostmesh-guard.service"])
def test_what_the_units_leave_of_root_is_enough_for_iptables(host: Space, unit: str) -> None:
    lines = (UNITS / unit).read_text().splitlines()
    found = [line for line in lines if line.startswith("CapabilityBoundingSet=")][-1]
    kept = [f"+{each.removeprefix('CAP_').lower()}" for each in found.partition("=")[2].split()]
    code = (
        "from hostmesh_agent.capture import *; from hostmesh_agent.capture.rules import Backend; "
        "r = CaptureRequest(inbound_ports=frozenset({8080}), strict_ports=frozenset({8080})); "
        "held = Capture(); f = HostFloor(envoy_uid=900, backend=Backend.IPTABLES); "
        "print(held.apply(r, f), held.clear())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    bounded = ("setpriv", f"--bounding-set=-all,{','.join(kept)}", sys.executable, "-c", code)
    said = run(*bounded, environment=environment)
    assert "state='on'" in said, said


def test_an_owner_of_nftables_table_is_no_obstacle(host: Space) -> None:
    """A host whose owner has chosen iptables meanwhile: what the agent had in nf_tables goes."""
    owner = Owner()
    capture.apply(plan(MESH, ON_NFTABLES), owner)
    assert capture.apply(ruleset("mesh"), owner).backend is Backend.IPTABLES
    assert nft.read() is None
    owner.close()
    capture.clear()
