"""The ansible collection on real hosts: Debian 11, 12 and 13, over SSH, with packages from the signed repository.

The tests are a fleet's life, in this order: each begins where the one before has ended.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from e2e.driver import Lab, eventually
from hosts.calls import outbound
from hosts.fleet import OPERATOR, Fleet, Run, versions, why_no_ansible
from hosts.machine import Machine
from hosts.mesh import STOCK
from hosts.repository import Repository, serve
from hosts.test_life import envoy, state
from packages.building import Built, ship

pytestmark = pytest.mark.timeout(900)
URL: Final = f"http://stock.shop:{STOCK}/"
BROKEN: Final = "99.9"
UNSERVED: Final = "99.5"
"""Whose Envoy does not start."""
OTHER_ENVOY: Final = "1.40.90"
"""Of the version that follows this tree's."""
_END: Final = "\nsys.exit(main())\n"
"""Of the programs that the packages bring (packaging/shipping: launcher)."""
SERVICE: Final = f"""
apiVersion: v1
kind: Service
metadata: {{name: stock, namespace: shop}}
spec:
  selector: {{app: stock}}
  ports: [{{name: http, port: {STOCK}}}]
"""
Tell = Callable[[str, object], None]
NOTHING_CHANGED: Final = {"changed": 0, "failed": 0, "unreachable": 0}


@pytest.fixture(scope="module")
def published(lab: Lab, packages: Repository, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with this tree's version, into which others come later."""
    dist = tmp_path_factory.mktemp("published")
    publish(packages.built, dist, packages.built.version)
    return serve(lab, "outside", Built(dist, packages.built.version), port=8001)


def publish(built: Built, dist: Path, version: str) -> None:
    """Put a version into the repository. An .rpm is there since a repository has both; nobody takes it here."""
    for each in (*built.debs(version), built.rpm("hostmesh-controller", version)):
        os.link(built.dist / each, dist / each)
    if version == built.following:
        repack(built, dist, version, version, {"hostmesh-envoy": another_envoy})
    ship("repository", {"DIST": str(dist)})


def publish_bad(built: Built, dist: Path, version: str, spoil: Mapping[str, Callable[[Path], None]]) -> None:
    """Put a version of the agent and its Envoy into the repository that is like the one that follows, but spoilt."""
    as_is = dict.fromkeys(("hostmesh-agent", "hostmesh-envoy"), unchanged)
    repack(built, dist, built.following, version, {**as_is, **spoil})
    ship("repository", {"DIST": str(dist)})


def repack(built: Built, dist: Path, of: str, version: str, change: Mapping[str, Callable[[Path], None]]) -> None:
    """Pack packages as another version, each changed so, with all else as it is."""
    for name, changes in change.items():
        tree = dist / "tree"
        subprocess.run(["dpkg-deb", "-R", built.dist / built.deb(name, of), tree], check=True, timeout=120)
        changes(tree)
        for info in tree.glob("usr/lib/hostmesh-agent/lib/*/dist-packages/hostmesh-*.dist-info/METADATA"):
            info.write_text(info.read_text().replace(f"\nVersion: {of}\n", f"\nVersion: {version}\n"))
        control = tree / "DEBIAN/control"
        control.write_text(control.read_text().replace(f"\nVersion: {of}\n", f"\nVersion: {version}\n"))
        (tree / "DEBIAN/md5sums").unlink(missing_ok=True)
        (dist / built.deb(name, version)).unlink(missing_ok=True)
        words = ["dpkg-deb", "-Znone", "--root-owner-group", "--build"]
        subprocess.run([*words, tree, dist / built.deb(name, version)], check=True, timeout=120, capture_output=True)
        shutil.rmtree(tree)


def unchanged(_: Path) -> None:
    """Of that package nothing is another but the version."""


def ending_agent(tree: Path) -> None:
    program = tree / "usr/bin/hostmesh-agent"
    text = program.read_text()
    assert text.endswith(_END), text
    broken = f'\nif sys.argv[1:] == ["run"]:\n    sys.exit("broken"){_END}'
    program.write_text(text.replace(_END, broken))


def another_envoy(tree: Path, version: str = OTHER_ENVOY, binary: bytes = b"") -> None:
    home = tree / "usr/lib/hostmesh-envoy"
    binary = binary or (home / "envoy").read_bytes() + version.encode()
    (home / "envoy").write_bytes(binary)
    said = json.loads((home / "manifest.json").read_text())
    said |= {"version": version, "sha256": hashlib.sha256(binary).hexdigest()}
    (home / "manifest.json").write_text(json.dumps(said))


def ending_envoy(tree: Path) -> None:
    another_envoy(tree, "1.40.95", b"#!/bin/sh\nexit 7\n")


@pytest.fixture(scope="module")
def bare(lab: Lab, published: Repository) -> Iterator[Fleet]:
    if why := why_no_ansible():
        pytest.skip(why)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="hm-fleet-"))
        stack.callback(shutil.rmtree, directory)
        suites = {"ruler": "bookworm", "red": "bullseye", "green": "bookworm", "blue": "trixie"}
        ruler, *agents = (
            Machine(lab, name, suite, 90 + number, directory / name)
            for number, (name, suite) in enumerate(suites.items())
        )
        made = Fleet(lab, directory, published, ruler, tuple(agents))
        stack.callback(made.remove)
        made.boot()
        yield made


@pytest.fixture(scope="module")
def looked(bare: Fleet) -> Run:
    """What a run in check mode says of bare hosts."""
    return bare.play("rollout", "--check", "--diff")


@pytest.fixture(scope="module")
def rolled(bare: Fleet, looked: Run) -> Run:
    """The first rollout."""
    version = bare.repository.built.version
    return bare.play("rollout", agent_version=version, controller_version=version)


@pytest.fixture(scope="module")
def fleet(bare: Fleet, rolled: Run) -> Fleet:
    """Three hosts of the mesh, each of which serves stock and calls it."""
    assert rolled.code == 0, rolled.said
    bare.hostmesh("apply", "-f", "-", text_in=SERVICE)
    for each in bare.agents:
        eventually(lambda each=each: served_to(each) == names(bare), f"{each.name} calls all", timeout_s=60)  # type: ignore[misc]
    return bare


def names(fleet: Fleet) -> set[str]:
    return {each.name for each in fleet.agents}


def served_to(machine: Machine) -> set[str]:
    """Who answers the host's calls of stock, with mutual TLS."""
    found = set()
    for _ in range(30):
        done = machine.run("curl", "-sS", "--fail", "-m", "5", URL, check=False)
        if done.returncode == 0:
            answer = json.loads(done.stdout)
            if "spiffe://" in answer["headers"].get("x-forwarded-client-cert", ""):
                found.add(answer["name"])
    return found


def test_a_look_at_bare_hosts_tells_what_would_be_done_and_does_nothing(
    bare: Fleet, looked: Run, record_property: Tell
) -> None:
    assert looked.code == 0, looked.said
    record_property("seen", f"{looked.took_s:.0f} s")
    assert "deb [signed-by=" in looked.said
    assert versions(bare.agents) == ["", "", ""]
    for each in bare.machines:
        assert bare.left(each) == [], each.name


def test_a_fleet_is_rolled_out(fleet: Fleet, rolled: Run, record_property: Tell) -> None:
    record_property("seen", f"{rolled.took_s:.0f} s")
    assert versions(fleet.agents) == [fleet.repository.built.version] * 3
    listed = json.loads(fleet.hostmesh("host", "list", "-o", "json"))
    assert {each["name"]: each["connected"] for each in listed} == dict.fromkeys(names(fleet), True)


def test_no_join_string_was_in_any_file_or_log(fleet: Fleet, rolled: Run) -> None:
    # The control node writes files as it runs: they are seen, and none held one.
    assert rolled.written > 0
    assert rolled.secrets_in == []
    assert "hm1." not in rolled.said
    for each in fleet.machines:
        assert "hm1." not in each.run("journalctl", "--no-pager", "-o", "cat").stdout
        look = ("grep", "-rlsE", "hm1[.][A-Za-z0-9_-]{100}", "/etc", "/home", "/root", "/run", "/tmp", "/var")
        assert each.run(*look, check=False).stdout == ""


def test_a_second_rollout_changes_nothing(fleet: Fleet, record_property: Tell) -> None:
    version = fleet.repository.built.version
    again = fleet.play("rollout", agent_version=version, controller_version=version, agent_health_urls=[URL])
    assert again.code == 0, again.said
    record_property("seen", f"{again.took_s:.0f} s")
    assert {what: again.count(what) for what in NOTHING_CHANGED} == NOTHING_CHANGED, again.said


def test_a_look_at_hosts_that_are_rolled_out_finds_nothing_to_do(fleet: Fleet, record_property: Tell) -> None:
    look = fleet.play("rollout", "--check", "--diff", agent_health_urls=[URL])
    assert look.code == 0, look.said
    record_property("seen", f"{look.took_s:.0f} s")
    assert {what: look.count(what) for what in NOTHING_CHANGED} == NOTHING_CHANGED, look.said


def test_what_the_inventory_says_later_reaches_the_mesh(fleet: Fleet) -> None:
    first = fleet.agents[0].name
    for labels in ({"app": "stock", "tier": "front"}, {"app": "stock"}):
        settings = {"agent_workload_labels": labels, "agent_health_urls": [URL]}
        for options in (("--check",), ()):
            done = fleet.play("rollout", "--limit", first, *options, **settings)
            assert (done.code, done.count("changed")) == (0, 1), done.said
        found = json.loads(fleet.hostmesh("get", "we", first, "-n", "shop", "-o", "json"))
        assert found["spec"]["labels"] == labels


def test_an_upgrade_goes_in_waves_and_no_call_fails(fleet: Fleet, packages: Repository, record_property: Tell) -> None:
    built = packages.built
    publish(built, fleet.repository.built.dist, built.following)
    # apt has not read of it yet.
    look = fleet.play("upgrade", "--check", agent_version=built.following, agent_health_urls=[URL])
    assert (look.code, look.count("changed")) == (0, 3), look.said
    assert f"would install hostmesh-agent={built.following}, hostmesh-envoy={built.following}" in look.said
    assert versions(fleet.agents) == [built.version] * 3
    before = [envoy(each) for each in fleet.agents]
    with outbound(fleet.agents[2], URL, STOCK) as tally:
        done = fleet.play("upgrade", agent_version=built.following, agent_health_urls=[URL])
    assert done.code == 0, done.said
    record_property("seen", f"{done.took_s:.0f} s")
    assert versions(fleet.agents) == [built.following] * 3
    # One host, then one in ten, then a quarter at a time: here each is a wave of its own.
    assert done.said.count("PLAY [Upgrade in waves") == 3
    # Envoy runs in the new version too: none is left for the next boot.
    assert [each.agent()["envoy"]["version"] for each in fleet.agents] == [OTHER_ENVOY] * 3
    assert not set(before) & {envoy(each) for each in fleet.agents}
    assert tally["failed"] == 0, tally
    assert tally["sent"] > 50
    assert served_to(fleet.agents[0]) == names(fleet)


def stops_at_the_first(fleet: Fleet, version: str, before: str) -> Run:
    """Upgrade to a version that is bad: the other hosts hear nothing of it, and no call fails."""
    first, *others = fleet.agents
    kept = [(state(each)["MainPID"], envoy(each)) for each in others]
    with outbound(others[1], URL, STOCK) as tally:
        done = fleet.play("upgrade", agent_version=version, agent_health_urls=[URL], agent_health_timeout=10)
    assert done.code != 0
    assert versions(fleet.agents) == [version, before, before]
    assert done.hosts[first.name]["failed"] == 1, done.said
    assert not set(done.hosts) & {each.name for each in others}, done.hosts
    assert [(state(each)["MainPID"], envoy(each)) for each in others] == kept
    assert tally["failed"] == 0, tally
    for each in others:
        assert served_to(each) == names(fleet)
    return done


def test_an_envoy_that_does_not_start_stops_at_the_first_host(
    fleet: Fleet, packages: Repository, record_property: Tell
) -> None:
    built, first = packages.built, fleet.agents[0]
    publish_bad(built, fleet.repository.built.dist, UNSERVED, {"hostmesh-envoy": ending_envoy})
    old = envoy(first)
    done = stops_at_the_first(fleet, UNSERVED, built.following)
    record_property("seen", f"{done.took_s:.0f} s")
    assert "TASK [hostmesh.mesh.agent : Exchange the Envoy that runs]" in done.said
    found = first.agent()["envoy"]
    assert (found["pid"], found["version"]) == (old, OTHER_ENVOY)
    assert "code 7" in found["put_back"]


def test_a_version_that_does_not_come_up_stops_at_the_first_host(
    fleet: Fleet, packages: Repository, record_property: Tell
) -> None:
    # The first host's Envoy goes on without its agent.
    built = packages.built
    publish_bad(built, fleet.repository.built.dist, BROKEN, {"hostmesh-agent": ending_agent})
    done = stops_at_the_first(fleet, BROKEN, built.following)
    record_property("seen", f"{done.took_s:.0f} s")


def test_a_health_gate_that_is_not_passed_stops_at_the_first_host(fleet: Fleet, packages: Repository) -> None:
    _, second, _ = fleet.agents
    nobody = [f"http://nobody.shop:{STOCK}/"]
    options = ("--limit", second.name)
    done = fleet.play("upgrade", *options, agent_version=packages.built.following, agent_health_urls=nobody)
    assert done.code != 0
    assert "Send real requests through the mesh" in done.said
    assert done.hosts[second.name]["failed"] == 1, done.said


@contextmanager
def deaf(machine: Machine) -> Iterator[None]:
    """Nobody can log in meanwhile."""
    signal = ("systemctl", "kill", "--kill-who=main")
    machine.run(*signal, "--signal=STOP", "ssh.service")
    try:
        yield
    finally:
        machine.run(*signal, "--signal=CONT", "ssh.service")


def test_a_way_back_goes_on_past_a_host_that_cannot_be_reached(fleet: Fleet, packages: Repository) -> None:
    version, following = fleet.repository.built.version, packages.built.following
    first, second, _ = fleet.agents
    options = ("--limit", f"{first.name},{second.name}")
    # The first host has a version that does not come up, the second one cannot be reached.
    with deaf(second):
        done = fleet.play("rollback", *options, agent_version=version, agent_health_urls=[URL])
    assert done.code != 0
    assert versions(fleet.agents) == [version, following, following]
    assert {name: each["failed"] for name, each in done.hosts.items()} == {first.name: 0, second.name: 1}
    assert "it cannot be reached" in done.said.partition("Tell which hosts")[2]
    nobody = [f"http://nobody.shop:{STOCK}/"]
    sick = fleet.play("rollback", *options, agent_version=version, agent_health_urls=nobody)
    assert sick.code != 0
    assert versions(fleet.agents) == [version, version, following]
    assert {name: each["failed"] for name, each in sick.hosts.items()} == {first.name: 1, second.name: 1}


def test_an_older_version_comes_back_on_all_hosts(fleet: Fleet, record_property: Tell) -> None:
    version = fleet.repository.built.version
    with outbound(fleet.agents[2], URL, STOCK) as tally:
        done = fleet.play("rollback", agent_version=version, agent_health_urls=[URL])
    assert done.code == 0, done.said
    record_property("seen", f"{done.took_s:.0f} s")
    assert versions(fleet.agents) == [version] * 3
    assert OTHER_ENVOY not in [each.agent()["envoy"]["version"] for each in fleet.agents]
    assert tally["failed"] == 0, tally
    assert served_to(fleet.agents[0]) == names(fleet)


def test_a_controller_comes_from_a_folder_in_another_version_and_goes_back(fleet: Fleet, packages: Repository) -> None:
    built, ruler = packages.built, fleet.controller
    of_folder = {"repository_directory": str(fleet.repository.built.dist)}
    options = ("--limit", ruler.name)

    def rolled_out(version: str, *more: str, downgrade: bool = False) -> Run:
        settings = {**of_folder, "controller_version": version, "controller_downgrade": downgrade}
        done = fleet.play("rollout", *options, *more, **settings)
        assert done.code == 0, done.said
        return done

    def installed() -> set[str]:
        shown = ("dpkg-query", "-W", "-f", "${Version}\n", "hostmesh", "hostmesh-controller")
        return set(ruler.run(*shown).stdout.split())

    look = rolled_out(built.following, "--check")
    assert f"would install hostmesh-controller={built.following}, hostmesh={built.following}" in look.said
    assert installed() == {built.version}
    rolled_out(built.following)
    assert installed() == {built.following}
    again = rolled_out(built.following)
    assert again.count("changed") == 0, again.said
    rolled_out(built.version, downgrade=True)
    assert installed() == {built.version}


def test_the_authority_is_rotated_under_load(fleet: Fleet, record_property: Tell) -> None:
    before = roots(fleet)
    with outbound(fleet.agents[0], URL, STOCK) as tally:
        done = fleet.play("rotate_ca")
    assert done.code == 0, done.said
    record_property("seen", f"{done.took_s:.0f} s")
    after = roots(fleet)
    assert len(after) == 1
    assert not set(after) & set(before)
    assert tally["failed"] == 0, tally
    assert served_to(fleet.agents[2]) == names(fleet)


def roots(fleet: Fleet) -> dict[str, str]:
    found = json.loads(fleet.hostmesh("ca", "show", "-o", "json"))["roots"]
    return {each["id"]: each["state"] for each in found if each["state"] != "revoked"}


def test_the_controller_is_an_inventory(fleet: Fleet) -> None:
    made = json.loads(fleet.hostmesh("api-token", "create", "inventory", "--role", "viewer", "-o", "json"))
    (fleet.directory / "token").write_text(made["token"])
    bundle = fleet.controller.run("cat", "/var/lib/hostmesh-controller/ca/bundle.pem").stdout
    (fleet.directory / "roots.pem").write_text(bundle)
    inventory = fleet.directory / "hostmesh.yml"
    inventory.write_text(
        f"plugin: hostmesh.mesh.hosts\naddress: https://{fleet.controller.ip}:15014\n"
        f"ca: {fleet.directory}/roots.pem\ntoken_file: {fleet.directory}/token\n"
    )
    done, _ = fleet.control("ansible-inventory", "-i", str(inventory), "--list")
    found = json.loads(done.stdout)
    version = fleet.repository.built.version.replace(".", "_")
    for group in ("hostmesh_agents", "namespace_shop", f"version_{version}", "health_ok"):
        assert set(found[group]["hosts"]) == names(fleet), found
    # Its groups choose, and its addresses are where the hosts are.
    ssh = ("-u", OPERATOR, "--private-key", str(fleet.key))
    known = f"-o UserKnownHostsFile={fleet.directory}/known_hosts"
    words = (
        "ansible",
        "-i",
        str(inventory),
        *ssh,
        f"--ssh-common-args={known}",
        "health_ok",
        "-m",
        "ansible.builtin.ping",
    )
    done, _ = fleet.control(*words)
    assert done.stdout.count("SUCCESS") == 3, done.stdout + done.stderr


def test_a_removal_goes_on_past_a_host_that_cannot_be_reached_which_is_forgotten_if_that_is_said(fleet: Fleet) -> None:
    *others, last = fleet.agents

    def known() -> list[str]:
        return [each["name"] for each in json.loads(fleet.hostmesh("host", "list", "-o", "json"))]

    with deaf(last):
        done = fleet.play("remove")
        assert done.code != 0
        assert known() == [last.name]
        assert {name: each["failed"] for name, each in done.hosts.items()} == {each.name: 0 for each in others} | {
            last.name: 1
        }
        done = fleet.play("remove", "--limit", last.name, remove_forget_unreachable=True)
        assert done.code == 0, done.said
        assert known() == []
    for each in others:
        assert fleet.left(each) == [], each.name


def test_a_removal_leaves_nothing(fleet: Fleet, record_property: Tell) -> None:
    # The last host is there still, and the controller has forgotten it.
    done = fleet.play("remove")
    assert done.code == 0, done.said
    record_property("seen", f"{done.took_s:.0f} s")
    for each in fleet.agents:
        assert fleet.left(each) == [], each.name
    assert json.loads(fleet.hostmesh("host", "list", "-o", "json")) == []
    again = fleet.play("remove")
    assert again.code == 0, again.said
    assert again.count("changed") == 0, again.said
