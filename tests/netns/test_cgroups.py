"""Who is who by cgroup, in a real kernel: Envoy and units; nobody passes for another by user, group, mark or port."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from golden.live import envoy_binary
from hostmesh_agent import cgroup
from hostmesh_agent.capture import Caller, Capture, CaptureRequest, HostFloor, Scope, nft, show
from hostmesh_agent.capture.callers import envoy_in
from hostmesh_agent.capture.rules import Backend
from hostmesh_agent.cgroup import CgroupError, EnvoyGroup
from hostmesh_agent.cgroup_id import ByCgroup
from hostmesh_agent.units import Units
from hostmesh_api import wire
from hostmesh_api.callers import caller_addresses
from hostmesh_api.wire import ENVOY_SLICES
from netns.backends import each_backend, made_for
from netns.conftest import PEER
from netns.space import Servers, Space, run

ENVOY_UID = 900
A, B = "spiffe://td/ns/shop/sa/a", "spiffe://td/ns/shop/sa/b"
REQUEST = CaptureRequest(scope=Scope.ALL, dns=False)
CALL = """
import os, socket, sys
cgroup, uid, gid, mark, address, port = sys.argv[1:]
if cgroup:
    open(cgroup + "/cgroup.procs", "w").write("0")
client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
client.settimeout(5)
if int(mark):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(mark))
os.setresgid(int(gid), int(gid), int(gid))
os.setresuid(int(uid), int(uid), int(uid))
if int(uid):
    # As whom a socket is made is what `meta skuid` sees.
    client = socket.socket(client.family)
client.connect((address, int(port)))
print(client.recv(200).decode())
"""


@pytest.fixture(scope="module")
def root() -> Path:
    found, why_not = cgroup.usable()
    if found is None or why_not:
        pytest.skip(f"needs cgroup v2: {why_not}")
    return found


@pytest.fixture
def hierarchy(root: Path) -> Iterator[Path]:
    """Stands for the root of all cgroups: rules are made for what is below it, at its depth."""
    path = root / f"hostmesh-test-{os.getpid()}"
    path.mkdir()
    yield path
    for each in sorted(path.rglob("*"), key=lambda each: len(each.parts), reverse=True):
        if each.is_dir():
            each.rmdir()
    path.rmdir()


@pytest.fixture
def servers(host: Space, peer: Space) -> Iterator[Servers]:
    """Envoy's outbound listener on the host, a program on another machine."""
    found = Servers()
    found.tcp("envoy", 15001)
    with peer():
        found.tcp("peer", 80)
    yield found
    found.close()


def call(group: Path | None, *, uid: int = 0, gid: int = 0, mark: int = 0, to: tuple[str, int] = (PEER[0], 80)) -> str:
    words = [str(group or ""), *map(str, (uid, gid, mark, *to))]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CALL, *words], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def made(hierarchy: Path, *names: str) -> Path:
    path = hierarchy.joinpath(*names)
    path.mkdir(parents=True, exist_ok=True)
    return path


def below(group: ByCgroup | None) -> ByCgroup:
    """Return the same for the machine's root: the tests' hierarchy is one deep in it."""
    assert group is not None
    return replace(group, level=group.level + 1)


def floor(envoy: EnvoyGroup) -> HostFloor:
    return made_for(HostFloor(envoy_uid=ENVOY_UID, envoy_cgroup=below(envoy.current())))


def found_units(hierarchy: Path, *names: str) -> dict[str, ByCgroup]:
    async def look() -> dict[str, ByCgroup]:
        found = Units(lambda: None, hierarchy)
        try:
            return {each.unit: each.place for each in found.look(frozenset(names))}
        finally:
            found.close()

    return asyncio.run(look())


CAPTURED = f"envoy {PEER[0]} 80"


@each_backend
def test_envoy_is_who_is_in_its_cgroup_and_nobody_else(servers: Servers, hierarchy: Path) -> None:
    envoy = EnvoyGroup(hierarchy)
    assert Capture().apply(REQUEST, floor(envoy)).state == "on"
    blue, green = (Path(envoy.prepare(each)) for each in ("blue", "green"))
    assert [call(each, uid=uid) for each in (blue, green) for uid in (ENVOY_UID, 0, 77)] == ["peer"] * 6
    program = made(hierarchy, "system.slice", "program.service")
    for group in (program, None):
        for uid, gid, mark in ((ENVOY_UID, 0, 0), (0, ENVOY_UID, 0), (0, 0, ENVOY_UID), (0, 0, 1337), (0, 0, 0)):
            assert call(group, uid=uid, gid=gid, mark=mark) == CAPTURED


_TCP_PROXY = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_PROXY = {"name": "tcp", "typed_config": {"@type": _TCP_PROXY, "stat_prefix": "in", "cluster": "peer"}}
_AT_PEER = {"endpoint": {"address": {"socket_address": {"address": PEER[0], "port_value": 80}}}}
_PEERS = {"cluster_name": "peer", "endpoints": [{"lb_endpoints": [_AT_PEER]}]}
_IN = {"name": "in", "address": {"pipe": {"path": "in.sock"}}, "filter_chains": [{"filters": [_PROXY]}]}
_CLUSTER = {"name": "peer", "type": "STATIC", "load_assignment": _PEERS}
ONE_PROXY = json.dumps({"static_resources": {"listeners": [_IN], "clusters": [_CLUSTER]}})


def through_a_real_envoy(group: Path, uid: int, directory: Path) -> str:
    """Run Envoy's very binary in the group, as the user, and return who answers what it calls at PEER."""
    directory.mkdir()
    (directory / "envoy.json").write_text(ONE_PROXY)
    os.chown(directory, uid, uid)
    program = ["--config-path", "envoy.json", "--disable-hot-restart", "--concurrency", "1", "--log-level", "off"]
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", str(envoy_binary()), *program]
    script = 'echo 0 > "$1/cgroup.procs" && shift && exec "$@"'
    process = subprocess.Popen(["sh", "-c", script, "sh", str(group), *become], cwd=directory)
    try:
        return asyncio.run(heard_at(directory / "in.sock"))
    finally:
        process.kill()
        process.wait()


async def heard_at(place: Path) -> str:
    async with asyncio.timeout(20):
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(place))
            except OSError:
                await asyncio.sleep(0.05)
                continue
            try:
                return (await reader.read(200)).decode()
            finally:
                writer.close()


@each_backend
def test_envoys_very_binary_is_captured_like_any_program_outside_of_its_cgroup(
    servers: Servers, hierarchy: Path
) -> None:
    envoy = EnvoyGroup(hierarchy)
    assert Capture().apply(REQUEST, floor(envoy)).state == "on"
    own = Path(envoy.prepare("blue"))
    program = made(hierarchy, "system.slice", "program.service")
    with tempfile.TemporaryDirectory(prefix="hm-") as directory:
        Path(directory).chmod(0o711)
        found = {
            (group, uid): through_a_real_envoy(group, uid, Path(directory, f"{group.name}-{uid}"))
            for group in (own, program)
            for uid in (ENVOY_UID, 77)
        }
    assert found == {
        (own, ENVOY_UID): "peer",
        (own, 77): "peer",
        (program, ENVOY_UID): CAPTURED,
        (program, 77): CAPTURED,
    }


@each_backend
def test_a_slice_made_anew_is_seen_before_envoy_starts_in_it(servers: Servers, hierarchy: Path) -> None:
    capture, envoy = Capture(), EnvoyGroup(hierarchy)
    request, before = REQUEST, floor(envoy)
    assert capture.apply(request, before).state == "on"
    envoy.in_force = envoy.current()
    assert call(Path(envoy.prepare())) == "peer"
    envoy.remove()
    assert not hierarchy.joinpath("hostmesh.slice").exists()
    with pytest.raises(CgroupError, match="put right first"):
        envoy.prepare()
    # Without that Envoy would have captured itself.
    assert call(made(hierarchy, *ENVOY_SLICES, "envoy")) == CAPTURED
    after = floor(envoy)
    assert after != before
    assert capture.apply(request, after).state == "on"
    envoy.in_force = envoy.current()
    assert call(Path(envoy.prepare())) == "peer"


def envoy_in_place() -> ByCgroup | None:
    return envoy_in(nft.read())


def test_rules_that_name_envoys_cgroup_are_read_back(host: Space, hierarchy: Path) -> None:
    envoy = EnvoyGroup(hierarchy)
    assert Capture().apply(REQUEST, floor(envoy)).state == "on"
    assert envoy_in_place() == below(envoy.current())
    assert "socket cgroupv2 level 3" in run("nft", "list", "table", "inet", "hostmesh")
    assert "socket cgroupv2 level 3" in show()
    assert Capture().apply(REQUEST, HostFloor(envoy_uid=ENVOY_UID)).state == "on"
    assert envoy_in_place() is None


@each_backend
@pytest.mark.parametrize("version", [4, 6])
def test_units_and_users_reach_envoy_at_their_own_address(
    servers: Servers, hierarchy: Path, version: int, backend: Backend
) -> None:
    one = made(hierarchy, "system.slice", "one.service")
    inside = made(hierarchy, "system.slice", "one.service", "a-group-of-its-own")
    other = made(hierarchy, "system.slice", "other.service")
    units = found_units(hierarchy, "one.service", "gone.service", "a-group-of-its-own")
    assert units.keys() == {"one.service"}
    callers = (Caller(A, cgroups=frozenset({below(units["one.service"])})), Caller(B, uids=frozenset({77})))
    capture = Capture()
    state = capture.apply(replace(REQUEST, callers=callers), made_for(HostFloor(envoy_uid=ENVOY_UID)))
    assert state.state == "on", state.error
    assert capture.state().state == "on"
    address, index = (PEER[version == 6], 80), int(version == 6)
    who = {
        (inside, 0): A,
        (one, 0): A,
        (one, 77): A,  # a unit says more than a user
        (other, 77): B,
        (other, 0): "",
    }
    for (group, uid), identity in who.items():
        assert call(group, uid=uid, to=address) == f"envoy {PEER[index]} 80"
        at = str(caller_addresses(identity)[index]) if identity else ("127.0.0.1", wire.OUTBOUND_V6)[index]
        assert servers.arrived[-1] == at, (group, uid)
    if backend is Backend.IPTABLES:
        return
    text = run("nft", "list", "table", "inet", "hostmesh")
    assert f"dnat ip to {caller_addresses(A)[0]}:15001" in text
    assert f"dnat ip6 to [{caller_addresses(A)[1]}]:15001" in text


WITHOUT_ROOT = """
import os, sys
from pathlib import Path
from hostmesh_agent.cgroup import EnvoyGroup
os.setresuid(65534, 65534, 65534)
print(EnvoyGroup(Path(sys.argv[1]), makes=sys.argv[2] == "makes").why_not)
"""


def test_an_agent_that_is_not_root_knows_envoy_by_the_cgroup_that_systemd_has_made(hierarchy: Path) -> None:
    made(hierarchy, *ENVOY_SLICES)
    assert run(sys.executable, "-c", WITHOUT_ROOT, str(hierarchy), "systemd").strip() == ""
    assert "Permission denied" in run(sys.executable, "-c", WITHOUT_ROOT, str(hierarchy), "makes")


NAMESPACED = """
from pathlib import Path
from hostmesh_agent import cgroup
from hostmesh_agent.capture import Capture, CaptureRequest, HostFloor, Scope
from hostmesh_agent.cgroup import EnvoyGroup
root, why_not = cgroup.usable()
assert not why_not, why_not
assert not (root / "hostmesh.slice").exists()
envoy = EnvoyGroup(root)
floor = HostFloor(envoy_uid=900, envoy_cgroup=envoy.current())
state = Capture().apply(CaptureRequest(scope=Scope.ALL, dns=False), floor)
assert state.state == "on", state.error
print(Path(envoy.prepare("inside")).relative_to(root))
"""


def test_in_a_cgroup_namespace_levels_count_from_its_root(servers: Servers, hierarchy: Path) -> None:
    container = made(hierarchy, "container")
    anew = 'umount -l "$1" && mount -t cgroup2 none "$1" && exec "$2" -c "$3"'
    script = f"echo 0 > {container}/cgroup.procs && exec unshare --cgroup --mount sh -c '{anew}' \"$@\""
    root, _ = cgroup.usable()
    found = run("sh", "-c", script, "sh", "sh", str(root), sys.executable, NAMESPACED).strip()
    assert found == "hostmesh.slice/hostmesh-envoy.slice/inside"
    assert call(container / found) == "peer"
    assert call(made(container, "program.service"), uid=ENVOY_UID) == CAPTURED
