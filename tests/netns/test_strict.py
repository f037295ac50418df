"""A port that takes mutual TLS alone is closed to plaintext at every moment: real rules, a canary that never stops.

No Envoy runs here: what is captured is refused. The program must not see a byte.
"""

import json
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostmesh_agent import capture
from hostmesh_agent.capture import CaptureError, CaptureRequest, HostFloor, Owner, kernel
from hostmesh_agent.capture import owner as ownership
from hostmesh_agent.config import AgentConfig, CaptureSettings, EnvoySettings, FloorSettings
from hostmesh_agent.converge import InForce
from hostmesh_agent.enforce import Enforcement
from hostmesh_agent.guard import FILE, Guard, close_strict_ports
from hostmesh_agent.state import write_private
from hostmesh_agent.status import CAPTURE_OFF
from netns.backends import each_backend, made_for
from netns.conftest import HOST
from netns.space import Servers, Space, ask, nft, run

FLOOR = HostFloor(envoy_uid=900)
STRICT = CaptureRequest(inbound_ports=frozenset({8080}), dns=False)
OTHER_TABLE = """
table inet other {
    chain c {
        type filter hook input priority 0
    }
}
"""
OTHER = CaptureRequest(inbound_ports=frozenset({8080, 8081}), dns=False)


@pytest.fixture
def program(peer: Space, servers: Servers) -> None:
    for port in (8080, 8081, 22):
        servers.tcp("program", port)


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


@pytest.fixture
def enforcement(host: Space, tmp_path: Path, owner: Owner) -> Enforcement:
    return Enforcement(dns=False, resolv_conf=tmp_path / "resolv.conf", state_dir=tmp_path, owner=owner)


@contextmanager
def canary(peer: Space, port: int = 8080) -> Iterator[Counter[str]]:
    """Call the program's port from outside the mesh, all the time; count what comes of it."""
    found: Counter[str] = Counter()
    stop, begun = threading.Event(), threading.Event()

    def call() -> None:
        with peer():
            while not stop.is_set():
                found[ask(HOST[0], port)] += 1
                begun.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(10)
    try:
        yield found
    finally:
        stop.set()
        thread.join(10)


def test_another_programs_flush_lets_no_plaintext_in(program: None, peer: Space, enforcement: Enforcement) -> None:
    assert enforcement.put(STRICT, FLOOR).capture.state == "on"
    with canary(peer) as found:
        for _ in range(20):
            nft("flush ruleset")
            nft(OTHER_TABLE)
    assert set(found) == {"refused"}, found
    assert enforcement.look() == InForce(frozenset({8080}))


@each_backend
def test_changes_of_the_rules_and_a_new_agent_let_no_plaintext_in(
    program: None, peer: Space, enforcement: Enforcement, owner: Owner, tmp_path: Path
) -> None:
    enforcement.put(STRICT, made_for(FLOOR))
    with canary(peer) as found:
        for _ in range(5):
            enforcement.put(OTHER, made_for(FLOOR))
            enforcement.put(STRICT, made_for(FLOOR))
        owner.close()
        successor = Owner()
        later = Enforcement(dns=False, resolv_conf=tmp_path / "r", state_dir=tmp_path, owner=successor)
        assert later.look() == InForce(frozenset({8080}))
        assert later.put(STRICT, made_for(FLOOR)).capture.state == "on"
        nft("flush ruleset")
    assert set(found) == {"refused"}, found
    assert later.look() == InForce(frozenset({8080}))
    successor.close()


def test_nobody_but_the_running_agent_changes_its_rules(enforcement: Enforcement, owner: Owner) -> None:
    enforcement.put(STRICT, FLOOR)
    done = subprocess.run(["nft", "delete", "table", "inet", "hostmesh"], capture_output=True, text=True)
    assert "Operation not permitted" in done.stderr
    with pytest.raises(CaptureError, match="if it does not answer, end it first"):
        capture.clear()
    enforcement.put(None, FLOOR)
    assert run("nft", "list", "ruleset") == ""


def test_rules_whose_agent_has_ended_are_taken_away_by_anybody(enforcement: Enforcement, owner: Owner) -> None:
    enforcement.put(STRICT, FLOOR)
    owner.close()
    capture.clear()
    assert run("nft", "list", "ruleset") == ""


def test_rules_without_an_owner_are_left_without(host: Space, enforcement: Enforcement) -> None:
    """Flags cannot be changed, and rules that are made anew let connections past them for a moment."""
    assert capture.Capture().apply(STRICT, FLOOR).state == "on"
    assert enforcement.put(OTHER, FLOOR).in_force == InForce(frozenset({8080, 8081}))
    assert "flags" not in run("nft", "list", "table", "inet", "hostmesh").split("set", 1)[0]


def test_where_the_kernel_knows_no_owners_rules_have_none(
    host: Space, enforcement: Enforcement, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags that no kernel has stand for those that an older one does not have."""
    monkeypatch.setattr(ownership, "PERSISTS", 0)
    monkeypatch.setattr("hostmesh_agent.capture.nft.PERSISTS", 1 << 20)
    assert enforcement.put(STRICT, FLOOR).capture.state == "on"
    assert not owner.supported
    nft("flush ruleset")
    assert enforcement.put(STRICT, FLOOR).capture.state == "on"


# After a boot


def config(directory: Path, **changes: object) -> AgentConfig:
    backend = CaptureSettings(backend=made_for(FLOOR).backend.value)
    fields: dict[str, object] = {"state_dir": directory, "run_dir": directory, "capture": backend}
    fields |= {"envoy": EnvoySettings(user="nobody")}
    return AgentConfig(**{**fields, **changes})  # type: ignore[arg-type]  # a test's table of fields


def remembered(directory: Path, *ports: int) -> None:
    write_private(directory / FILE, json.dumps(ports).encode())


@each_backend
def test_ports_that_were_strict_are_closed_before_anything_of_the_mesh_runs(
    program: None, peer: Space, owner: Owner, tmp_path: Path
) -> None:
    Guard(tmp_path).note(frozenset({8080}))
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    with peer():
        assert ask(HOST[0], 8080) == "program"
    assert close_strict_ports(config(tmp_path), owner) == {8080}
    with peer():
        assert [ask(each, 8080) for each in HOST] == ["refused", "refused"]
        assert ask(HOST[0], 8081) == "program"
    nft("flush ruleset")
    with peer():
        assert ask(HOST[0], 8080) == "refused"


@each_backend
def test_rules_that_outlived_the_agent_are_left_as_they_are(program: None, owner: Owner, tmp_path: Path) -> None:
    remembered(tmp_path, 8080)
    capture.Capture().apply(CaptureRequest(inbound_ports=frozenset({8081}), dns=False), made_for(FLOOR))
    before = kernel.read()
    assert before is not None
    assert close_strict_ports(config(tmp_path), owner) == frozenset()
    assert kernel.read() == before


@pytest.mark.parametrize("how", ["file", "toml"])
def test_a_host_whose_owner_wants_no_capture_has_none(host: Space, owner: Owner, tmp_path: Path, how: str) -> None:
    remembered(tmp_path, 8080)
    if how == "file":
        (tmp_path / CAPTURE_OFF).touch()
    wanted = CaptureSettings(enabled=how == "file")
    assert close_strict_ports(config(tmp_path, capture=wanted), owner) == frozenset()
    assert run("nft", "list", "ruleset") == ""


@each_backend
def test_what_is_remembered_never_closes_ssh(program: None, peer: Space, owner: Owner, tmp_path: Path) -> None:
    remembered(tmp_path, 8080, 22)
    assert close_strict_ports(config(tmp_path), owner) == {8080}
    with peer():
        assert ask(HOST[0], 22) == "program"


@pytest.mark.parametrize("content", [b"{", b"null", b'["x", -1, 70000]', b"[" * 5000])
def test_what_is_damaged_on_disk_closes_nothing_and_harms_nothing(
    host: Space, owner: Owner, tmp_path: Path, content: bytes
) -> None:
    write_private(tmp_path / FILE, content)
    assert close_strict_ports(config(tmp_path), owner) == frozenset()


@each_backend
def test_ports_that_the_hosts_owner_keeps_are_closed_without_any_controller(
    program: None, peer: Space, servers: Servers, owner: Owner, tmp_path: Path
) -> None:
    servers.tcp("outbound", 15001)
    kept = FloorSettings(min_mtls="strict", mtls_ports=(8081,))
    assert close_strict_ports(config(tmp_path, floor=kept), owner) == {8081}
    with peer():
        assert ask(HOST[0], 8081) == "refused"
        # The listener of outbound connections is no way in.
        assert ask(HOST[0], 15001) == "refused"
        assert ask(HOST[0], 8080) == "program"


def test_what_is_remembered_is_roots_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Guard(tmp_path).note(frozenset({8080}))
    finally:
        os.umask(before)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
