"""The program of root's that exchanges packages: whoever asks, it does what the host's owner wants, and no more."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from shipping.parts import AGENT as AGENT_PART

from hostmesh_agent.upgrader import packages, program, record, request, witness
from hostmesh_agent.upgrader.packages import PackageError, Packages
from hostmesh_agent.upgrader.program import Host, carry_out, recover
from hostmesh_agent.upgrader.record import Memory, Result
from hostmesh_agent.upgrader.request import Request, Verb
from hostmesh_agent.upgrader.witness import Look
from hostmesh_api.manifest import AGENT
from hostmesh_controller.cli import signing
from unit.test_units import service

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"
NAME, ENVOY = "hostmesh-agent", "hostmesh-envoy"
OLD, NEW, NEWER = "0.1.0", "0.2.0", "0.3.0"
TOKEN = "0123456789abcdef"


def package(version: str, name: str = NAME, more: str = "") -> bytes:
    """A package as the fake package manager has it."""
    return f"{name} {version}\n{more}".encode()


@dataclass
class FakePackages:
    """dpkg or rpm: what is installed is what the last file said, and each installation is noted."""

    kind: str = "deb"
    there: dict[str, str] = field(default_factory=lambda: {NAME: OLD, ENVOY: OLD})
    repository: dict[str, bytes] = field(default_factory=lambda: {f"{NAME} {OLD}": package(OLD)})
    installed_files: list[tuple[str, bytes]] = field(default_factory=list)
    breaks_on: str = ""
    looked: Callable[[], None] = lambda: None

    def installed(self, package: str) -> str:
        return self.there.get(package, "")

    def is_of(self, path: Path) -> tuple[str, str]:
        self.looked()
        name, version = path.read_text().splitlines()[0].split()
        return name, version

    def fetch(self, package: str, version: str, into: Path) -> Path:
        found = self.repository.get(f"{package} {version}")
        if found is None:
            raise PackageError("E: Version was not found")
        path = into / f"{package}_{version}_amd64.deb"
        path.write_bytes(found)
        return path

    def install(self, path: Path) -> None:
        name, version = path.read_text().splitlines()[0].split()
        self.installed_files.append((str(path), path.read_bytes()))
        if version == self.breaks_on:
            self.there[name] = ""
            raise PackageError("dpkg: error processing archive")
        self.there[name] = version

    def put_back(self, path: Path) -> None:
        self.install(path)


@dataclass
class World:
    """A host whose owner takes agents that their key has signed."""

    top: Path
    packages: FakePackages = field(default_factory=FakePackages)
    bad: set[str] = field(default_factory=set)
    """Versions whose agent does not come up."""
    restarts: int = 0
    key: str = ""

    def __post_init__(self) -> None:
        self.state.mkdir()
        self.spool.mkdir()
        self.config.parent.mkdir()
        self.key = signing.new_key(self.top / "key.pem")
        self.owner_says(f'controller = ["agent"]\nkeys = ["{self.key}"]')

    @property
    def state(self) -> Path:
        return self.top / "state"

    @property
    def spool(self) -> Path:
        return self.state / "updates"

    @property
    def config(self) -> Path:
        return self.top / "etc" / "agent.toml"

    @property
    def memory(self) -> Memory:
        return Memory(self.top / "hostmesh-upgrade")

    def owner_says(self, updates: str) -> None:
        self.config.write_text(f'state_dir = "{self.state}"\nrun_dir = "{self.top}"\n[updates]\n{updates}\n')
        self.config.chmod(0o644)

    def sign(
        self,
        version: str = NEW,
        data: bytes | None = None,
        key: str = "key.pem",
        machine: str = "x86_64",
        least: str = "",
    ) -> None:
        """Put into the agent's directory what a controller offers."""
        file = self.top / f"{NAME}_{version}_amd64.deb"
        file.write_bytes(package(version) if data is None else data)
        place = signing.put(
            [file], self.top / key, self.top / "mirror", component=AGENT, version=version, machine=machine, least=least
        )
        (self.spool / request.PACKAGE).unlink(missing_ok=True)
        for source, name in (
            ("artifact.deb", request.PACKAGE),
            ("manifest.json", request.MANIFEST),
            ("manifest.sig", request.SIGNATURE),
        ):
            shutil.copy(place / source, self.spool / name)

    @property
    def host(self) -> Host:
        def watch(version: str, control: Path, *, connected: bool, before: str = "") -> str:
            return "it ended 3 times" if self.packages.there[NAME] in self.bad else ""

        def restart() -> None:
            self.restarts += 1

        def manager(name: str) -> Packages | None:
            return self.packages if self.packages.installed(name) else None

        return Host(
            self.config,
            self.memory,
            "x86_64",
            manager,
            lambda _: Look(True, "one", OLD, connected=True),
            restart,
            watch,
            lambda: 1000.0,
        )

    def do(self, verb: Verb = Verb.MIRROR, version: str = NEW, name: str = NAME) -> Result:
        asked = Request(name, version, verb, TOKEN)
        result = carry_out(asked, self.host)
        assert record.told(asked, self.memory.directory) == result
        return result

    @property
    def changed(self) -> bool:
        return self.packages.installed_files != []


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


# What is done


def test_what_the_owners_key_has_signed_is_installed(world: World) -> None:
    world.sign()
    assert world.do() == Result("done")
    assert (world.packages.there[NAME], world.restarts) == (NEW, 1)
    assert [path for path, _ in world.packages.installed_files] == [str(world.memory.kept / f"{NAME}_{NEW}.deb")]
    assert sorted(each.name for each in world.memory.kept.iterdir()) == [f"{NAME}_{OLD}.deb", f"{NAME}_{NEW}.deb"]
    assert world.memory.read().former == {NAME: OLD}
    assert world.memory.pending() is None
    assert list(world.memory.back.iterdir()) == list(world.memory.directory.glob("incoming*")) == []
    result = world.memory.results / f"{TOKEN}.json"
    assert result.stat().st_mode & 0o777 == 0o644  # the agent, who is not root, reads it


def test_the_hosts_own_package_manager_has_it_too_where_the_owner_trusts_that(world: World) -> None:
    world.packages.repository[f"{NAME} {NEW}"] = package(NEW)
    refused = world.do(Verb.PACKAGES)
    assert (refused.state, 'sources = ["packages"]' in refused.reason, world.changed) == ("refused", True, False)
    world.owner_says('controller = ["agent", "envoy"]\nsources = ["packages"]')
    assert world.do(Verb.PACKAGES) == Result("done")
    assert world.packages.there[NAME] == NEW
    missing = world.do(Verb.PACKAGES, NEWER)
    assert (missing.state, "not found" in missing.reason) == ("failed", True)
    world.packages.repository |= {f"{ENVOY} {each}": package(each, ENVOY) for each in (OLD, NEW)}
    restarts = world.restarts
    assert world.do(Verb.PACKAGES, NEW, ENVOY) == Result("done")
    # Which Envoy runs is the agent's to change.
    assert (world.packages.there[ENVOY], world.restarts) == (NEW, restarts)


def test_what_is_installed_is_not_installed_again(world: World) -> None:
    world.sign(OLD)
    assert world.do(version=OLD).state == "done"
    assert not world.changed


# What is not


def test_without_the_owners_word_nothing_is_done(world: World) -> None:
    world.sign()
    for text in (f'keys = ["{world.key}"]', f'controller = ["envoy"]\nkeys = ["{world.key}"]'):
        world.owner_says(text)
        result = world.do()
        assert (result.state, "lets no controller bring versions of agent" in result.reason) == ("refused", True)
    world.memory.write(record.Record(former={NAME: NEW}))
    result = world.do(Verb.BACK)
    assert (result.state, "lets no controller" in result.reason) == ("refused", True)
    world.config.unlink()
    assert world.do().state == "refused"
    world.config.write_text("[updates]\ncontroller = 7")
    assert world.do().state == "refused"
    assert not world.changed


def test_an_agent_toml_that_others_may_write_is_nobodys_word(world: World) -> None:
    world.sign()
    world.config.chmod(0o666)
    assert "others than root may write into it" in world.do().reason
    world.config.chmod(0o644)
    world.config.parent.chmod(0o777)
    assert "others than root may write into" in world.do().reason
    world.config.parent.chmod(0o755)
    real = world.config.rename(world.top / "real.toml")
    world.config.symlink_to(real)
    assert world.do().state == "failed"
    os.chown(real, 65534, 65534)
    world.config.unlink()
    real.rename(world.config)
    assert "others than root may write into it" in world.do().reason
    assert not world.changed


def test_what_the_key_did_not_sign_is_not_installed(world: World) -> None:
    signing.new_key(world.top / "thief.pem")
    world.sign(key="thief.pem")
    assert "signed by no key" in world.do().reason
    world.sign()
    good = (world.spool / request.MANIFEST).read_bytes()
    (world.spool / request.MANIFEST).write_bytes(good.replace(b"x86_64", b"x86_32"))
    assert "signed by no key" in world.do().reason
    (world.spool / request.SIGNATURE).write_bytes(b"")
    assert "signed by no key" in world.do().reason
    world.sign(NEWER)
    assert f"is of agent {NEWER}, and not of agent {NEW}" in world.do().reason
    world.sign(machine="aarch64")
    assert "is for aarch64" in world.do().reason
    assert not world.changed


def test_a_signed_manifest_of_an_envoy_is_none_of_an_agent(world: World) -> None:
    world.owner_says(f'controller = ["agent", "envoy"]\nkeys = ["{world.key}"]')
    (world.top / "envoy").write_bytes(b"envoy")
    place = signing.put(
        [world.top / "envoy"], world.top / "key.pem", world.top / "m", component="envoy", version=NEW, machine="x86_64"
    )
    shutil.copy(place / "manifest.json", world.spool / request.MANIFEST)
    shutil.copy(place / "manifest.sig", world.spool / request.SIGNATURE)
    shutil.copy(place / "artifact", world.spool / request.PACKAGE)
    assert "is of envoy" in world.do().reason
    assert not world.changed


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "its sha256 is"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "does not have the"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "does not have the"),
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "no plain file"),
        (a_pipe, "no plain file"),
        (lambda path: (path.rename(path.with_name("x")), path.symlink_to(path.with_name("x"))), "symbolic links"),
    ],
    ids=["another", "truncated", "longer", "gone", "directory", "pipe", "link"],
)
def test_bytes_that_were_not_signed_are_not_installed(world: World, spoil: Callable[[Path], Any], why: str) -> None:
    world.sign()
    spoil(world.spool / request.PACKAGE)
    result = world.do()
    assert (result.state, why in result.reason) == ("refused", True), result
    assert not world.changed


@pytest.mark.parametrize("name", [request.MANIFEST, request.SIGNATURE])
def test_a_manifest_that_is_none_is_refused(world: World, name: str) -> None:
    world.sign()
    (world.spool / name).unlink()
    os.mkfifo(world.spool / name)
    assert "no plain file" in world.do().reason
    (world.spool / name).unlink()
    (world.spool / name).write_bytes(b"x" * 5000)
    assert "has more than" in world.do().reason
    assert not world.changed


def test_what_is_exchanged_after_the_look_is_not_what_is_installed(world: World) -> None:
    world.sign()

    def exchange() -> None:
        for name in (request.PACKAGE, request.MANIFEST, request.SIGNATURE):
            (world.spool / name).write_bytes(b"evil 6.6.6\n")

    world.packages.looked = exchange
    assert world.do().state == "done"
    assert [data for _, data in world.packages.installed_files] == [package(NEW)]


def test_a_package_is_what_it_says_and_not_what_it_is_called(world: World) -> None:
    for data in (package("0.0.1"), package(NEW, "openssh-server")):
        world.sign(data=data)
        result = world.do()
        assert (result.state, "what came is" in result.reason) == ("refused", True)
    assert not world.changed


def test_a_manifest_without_this_hosts_kind_of_package_is_refused(world: World) -> None:
    world.sign()
    world.packages.kind = "rpm"
    assert "names no .rpm" in world.do().reason


def test_below_the_floor_nothing_is_installed(world: World) -> None:
    world.owner_says(f'controller = ["agent"]\nkeys = ["{world.key}"]\nmin_package = "{NEWER}"')
    world.sign()
    assert "min_package of agent.toml" in world.do().reason
    world.owner_says(f'controller = ["agent"]\nsources = ["packages"]\nmin_package = "{NEWER}"')
    world.packages.repository[f"{NAME} {NEW}"] = package(NEW)
    assert "min_package of agent.toml" in world.do(Verb.PACKAGES).reason
    assert not world.changed


def test_a_floor_that_was_rolled_out_holds_for_every_way(world: World) -> None:
    world.owner_says(f'controller = ["agent"]\nkeys = ["{world.key}"]\nsources = ["mirror", "packages"]')
    world.sign(NEWER, least=NEWER)
    assert world.do(version=NEWER).state == "done"
    assert world.do(Verb.SETTLE, NEWER).state == "done"
    world.sign(NEW)
    world.packages.repository[f"{NAME} {NEW}"] = package(NEW)
    for verb, version in ((Verb.MIRROR, NEW), (Verb.PACKAGES, NEW), (Verb.BACK, OLD)):
        result = world.do(verb, version)
        assert (result.state, "the floor of this host" in result.reason) == ("refused", True)
    assert world.packages.there[NAME] == NEWER


def test_a_floor_is_raised_by_what_was_signed_alone(world: World) -> None:
    world.sign(NEWER, least=NEWER)
    assert world.do(Verb.SETTLE, NEW).state == "refused"
    (world.spool / request.SIGNATURE).write_bytes(b"x" * 64)
    assert world.do(Verb.SETTLE, NEWER).state == "refused"
    assert world.memory.read().floors == {}


def test_one_damaged_copy_of_the_floor_is_read_from_the_other_and_two_let_nothing_pass(world: World) -> None:
    world.sign(NEWER, least=NEWER)
    assert world.do(Verb.SETTLE, NEWER).state == "done"
    for name in ("record.json", "record.spare.json"):
        data = (world.memory.directory / name).read_bytes()
        (world.memory.directory / name).write_bytes(data.replace(b"0.3.0", b"0.0.3"))
        assert world.memory.read().floors == {NAME: NEWER}
        (world.memory.directory / name).write_bytes(data)
    for name in ("record.json", "record.spare.json"):
        (world.memory.directory / name).write_bytes(b"")
    world.sign(NEW)
    result = world.do()
    assert (result.state, "is damaged" in result.reason, world.changed) == ("refused", True, False)


def test_without_a_way_back_there_is_none_forth(world: World) -> None:
    world.packages.repository.clear()
    world.sign()
    result = world.do()
    assert (result.state, "no copy of hostmesh-agent 0.1.0 to go back to" in result.reason) == ("refused", True)
    assert not world.changed
    place = re.search(r"as (\S+)$", result.reason)
    assert place is not None
    Path(place[1]).write_bytes(package(OLD))
    assert world.do().state == "done"


def test_a_host_without_packages_says_so(world: World) -> None:
    world.packages.there = {}
    world.sign()
    assert "is not installed from a package on this host" in world.do().reason


def test_one_works_at_a_time_and_the_others_wait(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.sign()
    monkeypatch.setattr(program, "TURN_WITHIN_S", 0.05)
    monkeypatch.setattr(program, "_TURN_PAUSE_S", 0.01)
    inner: list[Result] = []
    other = Request(NAME, NEW, Verb.MIRROR, "f" * 16)
    world.packages.looked = lambda: inner.append(carry_out(other, world.host)) if not inner else None
    assert world.do().state == "done"
    assert "another upgrade was under way" in inner[0].reason


def test_who_is_called_back_meanwhile_goes_back_after_it(world: World) -> None:
    """The call back comes while the new agent is watched: it waits, and undoes what it waited for."""
    world.sign()
    began, go_on = threading.Event(), threading.Event()
    host = world.host

    def watch(*_: object, **__: object) -> str:
        began.set()
        assert go_on.wait(20)
        return ""

    first = replace(host, watch=watch)
    with ThreadPoolExecutor() as pool:
        forth = pool.submit(carry_out, Request(NAME, NEW, Verb.MIRROR, TOKEN), first)
        assert began.wait(20)
        asked = Request(NAME, OLD, Verb.BACK, "f" * 16)
        back = pool.submit(carry_out, asked, host)
        while record.told(asked, world.memory.directory) is None:
            assert not back.done()
        go_on.set()
        assert (forth.result().state, back.result().state) == ("done", "done")
    assert world.packages.there[NAME] == OLD


def test_what_another_one_left_behind_is_ended_first(world: World) -> None:
    cut(world)
    world.bad = {NEW}
    assert world.do(Verb.BACK, OLD) == Result("done", "it is installed")
    assert (world.packages.there[NAME], world.memory.pending()) == (OLD, None)


# What goes wrong


def test_an_agent_that_does_not_come_up_is_put_back(world: World) -> None:
    world.bad = {NEW}
    world.sign()
    result = world.do()
    assert result.state == "failed"
    assert result.reason == f"the agent did not come up: it ended 3 times; {OLD} was put back"
    assert (world.packages.there[NAME], world.restarts) == (OLD, 2)
    assert [data for _, data in world.packages.installed_files] == [package(NEW), package(OLD)]
    assert world.memory.pending() is None
    # Nothing has changed, so there is nothing to go back to.
    assert world.do(Verb.BACK, OLD) == Result("done", "it is installed")
    assert "not known" in world.do(Verb.BACK, "0.0.9").reason


def test_a_package_that_cannot_be_installed_is_put_back(world: World) -> None:
    world.packages.breaks_on = NEW
    world.sign()
    result = world.do()
    assert (result.state, "it was not installed: dpkg" in result.reason) == ("failed", True)
    assert (world.packages.there[NAME], world.memory.pending()) == (OLD, None)


def test_a_host_goes_back_to_what_it_had_and_to_nothing_else(world: World) -> None:
    world.sign()
    assert world.do().state == "done"
    world.packages.repository.clear()  # the kept copy is enough
    assert "what was there before is 0.1.0" in world.do(Verb.BACK, "0.0.9").reason
    assert world.do(Verb.BACK, OLD) == Result("done")
    assert (world.packages.there[NAME], world.restarts) == (OLD, 2)
    assert "not known" in world.do(Verb.BACK, NEW).reason


def test_kept_packages_do_not_fill_the_disk(world: World) -> None:
    for number in range(2, 7):
        version = f"0.{number}.0"
        world.sign(version)
        assert world.do(version=version).state == "done"
    assert sorted(each.name for each in world.memory.kept.iterdir()) == [f"{NAME}_0.5.0.deb", f"{NAME}_0.6.0.deb"]


def cut(world: World) -> None:
    """The power fails while the new agent is watched."""
    world.sign()
    host = world.host
    asked = Request(NAME, NEW, Verb.MIRROR, TOKEN)

    class PowerCutError(BaseException):
        pass

    def watch(*_: object, **__: object) -> str:
        raise PowerCutError

    with pytest.raises(PowerCutError):
        carry_out(asked, Host(host.config, host.memory, "x86_64", host.packages, host.look, host.restart, watch))
    assert world.packages.there[NAME] == NEW
    assert world.memory.pending() is not None


def test_after_a_power_cut_an_agent_that_does_not_come_up_is_put_back(world: World) -> None:
    cut(world)
    world.bad = {NEW}
    recover(world.host)
    assert world.packages.there[NAME] == OLD
    told = record.told(Request(NAME, NEW, Verb.MIRROR, TOKEN), world.memory.directory)
    assert told is not None
    assert (told.state, f"{OLD} was put back" in told.reason) == ("failed", True)


def test_after_a_power_cut_an_agent_that_comes_up_stays_and_there_is_a_way_back(world: World) -> None:
    cut(world)
    recover(world.host)
    assert record.told(Request(NAME, NEW, Verb.MIRROR, TOKEN), world.memory.directory) == Result("done")
    assert world.packages.there[NAME] == NEW
    recover(world.host)  # there is nothing to do any more
    assert world.do(Verb.BACK, OLD).state == "done"


@pytest.mark.parametrize("unit", ["hostmesh-upgrade@.service", "hostmesh-upgrade-recover.service"])
@pytest.mark.parametrize(("kind", "command"), [("deb", "dpkg"), ("rpm", "rpm")])
def test_the_units_last_line_puts_back_without_the_program(
    world: World, unit: str, kind: str, command: str, tmp_path: Path
) -> None:
    found = re.search(r"^ExecStopPost=/bin/sh -c '(.*)'$", (UNITS / unit).read_text(), re.MULTILINE)
    assert found is not None
    # Two dollars are one to systemd.
    line = found[1].replace("$$", "$").replace("/var/lib/hostmesh-upgrade", str(world.memory.directory))
    tools = tmp_path / "bin"
    tools.mkdir()
    for each in ("dpkg", "rpm", "systemctl", "sleep"):
        busy = f"[ {each} = systemctl ] || [ {each} = sleep ] || [ ! -e {tmp_path}/busy ]"
        (tools / each).write_text(f'#!/bin/sh\necho {each} "$@" >> {tmp_path}/calls\n{busy}\n')
        (tools / each).chmod(0o755)
    environment = {"PATH": f"{tools}:/usr/bin:/bin"}
    subprocess.run(["sh", "-ec", line], env=environment, check=True)
    world.memory.prepare()
    subprocess.run(["sh", "-ec", line], env=environment, check=True)
    assert not (tmp_path / "calls").exists()
    (tmp_path / f"{NAME}_{OLD}.{kind}").write_bytes(b"")
    world.memory.begin(record.Pending(NAME, NEW, OLD, TOKEN, connected=True), tmp_path / f"{NAME}_{OLD}.{kind}")
    with (world.memory.directory / "lock").open("w") as lock:
        # Another one is at work, and looks after it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(["sh", "-ec", line], env=environment, check=True)
        assert not (tmp_path / "calls").exists()
    # Somebody else installs something all the while: the next boot tries again.
    (tmp_path / "busy").touch()
    subprocess.run(["sh", "-c", line], env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [each.split()[0] for each in calls] == [*([command, "sleep"] * 12), "systemctl"]
    assert world.memory.pending() is not None
    (tmp_path / "busy").unlink()
    (tmp_path / "calls").unlink()
    subprocess.run(["sh", "-ec", line], env=environment, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [each.split()[0] for each in calls] == [command, "systemctl"]
    assert f"back/{NAME}_{OLD}.{kind}" in calls[0]
    assert world.memory.pending() is None


@pytest.mark.parametrize("name", ["hostmesh-upgrade@.service", "hostmesh-upgrade-recover.service"])
def test_the_units_are_of_the_programs_own_numbers_and_places(name: str) -> None:
    unit = service(UNITS / name)
    assert unit["Type"] == "oneshot"
    assert int(unit["TimeoutStartSec"].removesuffix("min")) * 60 == program.DEADLINE_S
    assert unit["StateDirectory"] == record.STATE.name
    assert program.DEADLINE_S > witness.CONNECTED_WITHIN_S + packages.INSTALL_WITHIN_S + witness.STEADY_S
    # It lives on when the agent's own cgroup ends, and an agent that hangs after READY=1 is ended while it is watched.
    assert "Slice" not in unit
    assert float(service(UNITS / "hostmesh-agent.service")["WatchdogSec"].removesuffix("s")) < witness.STEADY_S
    assert unit["ExecStart"].startswith("/usr/lib/hostmesh-agent/hostmesh-upgrade ")
    assert ("hostmesh-upgrade", "hostmesh_agent.upgrader.program") in AGENT_PART.scripts


def test_what_became_of_a_request_is_believed_of_root_alone(world: World) -> None:
    world.sign()
    asked = Request(NAME, NEW, Verb.MIRROR, TOKEN)
    assert record.told(asked, world.memory.directory) is None
    world.do()
    path = world.memory.results / f"{TOKEN}.json"
    path.chmod(0o666)
    told = record.told(asked, world.memory.directory)
    assert told is not None
    assert (told.state, "cannot be read" in told.reason) == ("failed", True)
    path.chmod(0o644)
    assert json.loads(path.read_text())["state"] == "done"
