"""`hostmesh register --ssh` against real sshd, sudo, apt and dpkg, and a real controller."""

import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hostmesh_controller.cli.connection import Connection
from hostmesh_controller.cli.ssh import joining, steps
from hostmesh_controller.cli.ssh.fleet import run_all
from hostmesh_controller.cli.ssh.host_keys import HostKeys
from hostmesh_controller.cli.ssh.joining import Joining, Wanted
from hostmesh_controller.cli.ssh.leaving import Leaving
from hostmesh_controller.cli.ssh.packages import Source, unpacked
from hostmesh_controller.cli.ssh.place import Place
from hostmesh_controller.cli.ssh.secrets import Secrets
from hostmesh_controller.cli.ssh.session import Access
from hostmesh_controller.cli.ssh.steps import HostResult
from hostmesh_controller.cli.ssh.verifying import NOTHING_TO_CALL
from running_controller import Process
from ssh.ssh_host import PASSWORD, SshHost, key_pair, package

JOINED = HostResult("web-1", "joined", request=NOTHING_TO_CALL)
CLI = "from hostmesh_controller.cli import main; main()"
ALL_STEPS = (steps.CHECK, steps.INSTALL, steps.REGISTER, steps.JOIN, steps.START, steps.WAIT, steps.VERIFY)


class Told:
    """The real controller, which is told besides that the agents of joined hosts are connected: none runs here."""

    def __init__(self, process: Process) -> None:
        self.real = Connection(process.address)
        self.strings: list[str] = []

    def get(self, path: str, params: Any = None) -> dict[str, Any]:
        if path.startswith("/v1/proxies/"):
            return {"settled": True}
        answer = self.real.get(path, params)
        return {**answer, "connected": True} if path.startswith("/v1/hosts/") else answer

    def post(self, path: str, body: Any) -> dict[str, Any]:
        answer = self.real.post(path, body)
        self.strings += [answer["join_string"]] if "join_string" in answer else []
        return answer

    def delete(self, path: str) -> dict[str, Any]:
        return self.real.delete(path)

    def request(self, *arguments: Any, **more: Any) -> dict[str, Any]:
        return self.real.request(*arguments, **more)


@dataclass
class Setting:
    host: SshHost
    told: Any
    key: Path
    deb: Path

    def wanted(self, name: str = "web-1", user: str = "root", **more: Any) -> Wanted:
        secrets = more.pop("secrets", Secrets({}, terminal=False))
        keys = more.pop("keys", HostKeys((self.host.fingerprint,)))
        access = Access(Place(user, "127.0.0.1", self.host.port), keys, secrets, self.key, user != "root")
        body = {"addresses": ["192.0.2.7"], "ports": [{"name": "http", "number": 8080}], "workload": name}
        wanted = Wanted(name, access, body, Source(files=(self.deb,)))
        return replace(wanted, **more)

    def join(self, tell: Callable[[str], None] = lambda _: None, dry_run: bool = False, **more: Any) -> HostResult:
        result = Joining(self.wanted(**more), self.told, tell, dry_run=dry_run).run()
        print(result)
        return result

    def mesh(self) -> list[str]:
        objects = self.told.real.get("/v1/objects")["items"]
        tokens = self.told.real.get("/v1/tokens")["items"]
        return [f"{each['kind']}/{each['name']}" for each in objects] + [
            each["id"] for each in tokens if each["state"] == "open"
        ]


@pytest.fixture
def setting(host: SshHost, controller: Process, key: Path, deb: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    monkeypatch.setattr(joining, "_VERIFY_S", 1)
    made = Setting(host, Told(controller), key, deb)
    for each in made.told.real.get("/v1/hosts")["items"]:
        made.told.real.request("DELETE", f"/v1/hosts/{each['name']}", params={"workloads": "true"})
    for each in made.told.real.get("/v1/objects")["items"]:
        made.told.real.delete(f"/v1/objects/{each['kind']}/{each['namespace'] or '-'}/{each['name']}")
    return made


def packages(state: str) -> list[str]:
    return [line for line in state.splitlines() if line.startswith("installed ")]


def without_workloads(told: Any) -> None:
    """Nobody vouches for ports here."""
    get = told.get

    def ready(path: str, params: Any = None) -> dict[str, Any]:
        answer = get(path, params)
        return {**answer, "ready": answer["workloads"]} if path.startswith("/v1/hosts/") else answer

    told.get = ready


def test_a_host_is_joined_and_a_repetition_changes_nothing(setting: Setting) -> None:
    without_workloads(setting.told)
    seen: list[str] = []
    assert setting.join(seen.append) == JOINED
    assert seen == [steps.CONNECT, *ALL_STEPS]
    before, mesh = setting.host.state(), setting.mesh()
    assert packages(before) == ["installed hostmesh-agent"]
    assert "/var/tmp/hostmesh" not in before
    assert "Host/web-1" in mesh
    revision = setting.told.real.get("/v1/objects")
    assert setting.join() == replace(JOINED, outcome="unchanged")
    assert setting.host.state() == before
    assert setting.mesh() == mesh
    assert setting.told.real.get("/v1/objects") == revision
    assert len(setting.told.strings) == 1


WRITTEN = (
    {
        "apiVersion": "hostmesh.io/v1",
        "kind": "Host",
        "metadata": {"name": "web-1", "labels": {"rack": "12"}},
        "spec": {"addresses": ["192.0.2.9"], "workloadNamespaces": ["shop"]},
    },
    {
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "web-1", "namespace": "default", "annotations": {"hostmesh.io/capacity": "cores"}},
        "spec": {"address": "192.0.2.9", "ports": {"http": 80}, "labels": {"app": "web"}, "serviceAccount": "web"},
    },
)
"""What an operator has written of the host before it is joined."""


def documents(setting: Setting) -> list[dict[str, Any]]:
    return [each["document"] for each in setting.told.real.get("/v1/objects")["items"]]


def write(setting: Setting) -> None:
    for each in WRITTEN:
        where = f"{each['kind']}/{each['metadata'].get('namespace', '-')}/web-1"  # type: ignore[attr-defined]
        setting.told.real.request("PUT", f"/v1/objects/{where}", body=each)


def test_what_an_operator_wrote_stays_and_what_is_named_is_set(setting: Setting) -> None:
    without_workloads(setting.told)
    write(setting)
    assert setting.join(body={"ports": [{"name": "http", "number": 8080}]}).outcome == "joined"
    host, entry = documents(setting)
    assert host == WRITTEN[0]
    assert entry == {**WRITTEN[1], "spec": {**WRITTEN[1]["spec"], "ports": {"http": 8080}}}  # type: ignore[dict-item]
    # A host that has joined is told anew, without another token.
    result = setting.join(body={"labels": {"app": "api"}})
    assert (result.outcome, len(setting.told.strings)) == ("updated", 1)
    assert documents(setting)[1]["spec"] == {**entry["spec"], "labels": {"app": "api"}}
    assert setting.join(body={"labels": {"app": "api"}}).outcome == "unchanged"


@pytest.mark.parametrize("has_joined", [False, True], ids=["that joins", "that had joined"])
def test_objects_of_a_host_are_put_back_when_it_fails(setting: Setting, has_joined: bool) -> None:
    without_workloads(setting.told)
    write(setting)
    if has_joined:
        assert setting.join(body={}).outcome == "joined"
    before, packaged = documents(setting), packages(setting.host.state())
    body = {"addresses": ["192.0.2.7"], "labels": {"app": "other"}, "ports": [{"name": "http", "number": 9}]}
    result = setting.join(body=body, verify="http://nobody.invalid/")
    assert (result.step, result.left_behind) == (steps.VERIFY, ())
    assert documents(setting) == before
    assert packages(setting.host.state()) == packaged


def test_what_somebody_else_wrote_meanwhile_is_not_put_back_but_told(setting: Setting) -> None:
    without_workloads(setting.told)
    write(setting)
    theirs = {**WRITTEN[1], "spec": {**WRITTEN[1]["spec"], "weight": 7}}  # type: ignore[dict-item]

    def tell(line: str) -> None:
        if line == steps.VERIFY:
            setting.told.real.request("PUT", "/v1/objects/WorkloadEntry/default/web-1", body=theirs)

    result = setting.join(tell, body={"labels": {"app": "other"}}, verify="http://nobody.invalid/")
    assert result.left_behind == ("WorkloadEntry web-1: somebody else has changed it since",)
    assert documents(setting) == [WRITTEN[0], theirs]


def seen_as(setting: Setting, **said: Any) -> None:
    """Until there is another token, the controller says this of the host that has joined."""
    get, tokens = setting.told.get, len(setting.told.strings)

    def told(path: str, params: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = get(path, params)
        is_seen = path.startswith("/v1/hosts/") and len(setting.told.strings) == tokens
        return {**answer, **said} if is_seen else answer

    setting.told.get = told


@pytest.mark.parametrize("dry_run", [True, False], ids=["a dry run", "a real run"])
def test_a_machine_is_not_given_the_name_of_another_that_has_joined(
    setting: Setting, tmp_path: Path, key: Path, dry_run: bool
) -> None:
    without_workloads(setting.told)
    assert setting.join() == JOINED
    mesh, real = setting.mesh(), setting.told.real
    before, certificates = setting.host.state(), real.get("/v1/hosts/web-1")["certificates"]
    first, setting.host = setting.host, SshHost(tmp_path / "other", key)
    setting.host.start()
    try:
        untouched = setting.host.state()
        result = setting.join(dry_run=dry_run)
        assert setting.host.state() == untouched
    finally:
        setting.host.stop()
    assert (result.step, result.left_behind) == (steps.CHECK, ())
    assert "another machine has joined as web-1 and is connected (192.0.2.7)" in result.message
    assert "choose another name" in result.cure
    assert "hostmesh host remove web-1" in result.cure
    assert (first.state(), setting.mesh(), len(setting.told.strings)) == (before, mesh, 1)
    assert real.get("/v1/hosts/web-1")["certificates"] == certificates


@pytest.mark.parametrize(
    ("said", "is_refused"),
    [
        ({"lease": "alive"}, True),
        ({"lease": "agent-away"}, True),
        ({"lease": "held"}, True),
        ({"lease": "agent-away", "addresses": ["127.0.0.1"]}, False),
        ({"lease": "withdrawn"}, False),
        ({"state": "left", "lease": "unknown"}, False),
        ({"state": "expelled", "lease": "unknown"}, True),
    ],
    ids=str,
)
def test_a_host_that_was_made_anew_joins_again_under_its_name(
    setting: Setting, said: dict[str, Any], is_refused: bool
) -> None:
    without_workloads(setting.told)
    assert setting.join() == JOINED
    setting.host.run("rm -rf /var/lib/hostmesh /run/unit-active")
    seen_as(setting, connected=False, **said)
    result = setting.join()
    assert (result.step if is_refused else result.outcome) == (steps.CHECK if is_refused else "joined"), result


def test_a_host_is_removed_and_the_removal_can_be_repeated(setting: Setting) -> None:
    without_workloads(setting.told)
    untouched = packages(setting.host.state())
    setting.join()
    for _ in range(2):
        result = Leaving("web-1", setting.wanted().access, setting.told, lambda _: None, workloads=True).run()
        assert result == HostResult("web-1", "removed")
        state = setting.host.state()
        assert packages(state) == untouched
        assert "/var/lib/hostmesh" not in state
        assert setting.mesh() == []


@pytest.mark.parametrize("state", ["none", "damaged"])
def test_a_machine_that_is_not_the_host_is_left_alone_while_the_host_is_connected(setting: Setting, state: str) -> None:
    without_workloads(setting.told)
    assert setting.join() == JOINED
    setting.host.run("rm -rf /var/lib/hostmesh/*")
    if state == "damaged":
        setting.host.run("echo '{' >/var/lib/hostmesh/host.json")
    before, mesh = setting.host.state(), setting.mesh()
    leaving = Leaving("web-1", setting.wanted().access, setting.told, lambda _: None, workloads=True)
    result = leaving.run()
    assert (result.step, "check --ssh" in result.cure) == (steps.CHECK, True)
    assert "web-1 is connected (192.0.2.7)" in result.message
    assert (setting.host.state(), setting.mesh()) == (before, mesh)
    seen_as(setting, connected=False)
    assert replace(leaving, _step=steps.CONNECT).run() == HostResult("web-1", "removed")
    assert (packages(setting.host.state()), setting.mesh()) == ([], [])


@pytest.mark.parametrize("user", ["guest", "admin"], ids=["sudo without a password", "sudo with a password"])
def test_an_ordinary_user_joins_by_sudo_and_secrets_are_seen_nowhere(
    setting: Setting, user: str, tmp_path: Path
) -> None:
    without_workloads(setting.told)
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    file.chmod(0o600)
    assert setting.join(user=user, secrets=Secrets({"sudo": str(file)}, terminal=False)).outcome == "joined"
    (string,) = setting.told.strings
    processes = setting.host.run("cat /run/seen-at-join")
    # What starts the agent is a step of its own: a start may take longer than any join.
    assert "hostmesh-agent join - --no-start" in processes
    for secret in (string, PASSWORD):
        assert secret not in processes
        assert setting.host.holds(secret) == ""
        assert secret not in setting.host.log.read_text(errors="replace")


def test_a_wrong_sudo_password_ends_before_anything_is_done(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    file.chmod(0o600)
    before = setting.host.state()
    result = setting.join(user="admin", secrets=Secrets({"sudo": str(file)}, terminal=False))
    assert (result.step, setting.mesh(), setting.host.state()) == (steps.CONNECT, [], before)
    assert "sudo does not work" in result.message
    assert "sudoers" in result.cure


def test_a_wrong_login_password_and_a_wrong_key_are_told(setting: Setting, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("wrong\n")
    file.chmod(0o600)
    wanted = setting.wanted(user="admin", secrets=Secrets({"login": str(file)}, terminal=False))
    without = replace(wanted, access=replace(wanted.access, identity=None))
    other = replace(wanted, access=replace(setting.wanted().access, identity=key_pair(tmp_path / "other")))
    for each in (without, other):
        result = Joining(each, setting.told, lambda _: None).run()
        assert (result.step, "does not let us in" in result.message) == (steps.CONNECT, True)


def test_an_unknown_key_is_refused_before_anything_of_ours_is_sent(setting: Setting) -> None:
    result = setting.join(keys=HostKeys())
    assert (result.step, setting.mesh()) == (steps.CONNECT, [])
    assert setting.host.fingerprint in result.message
    assert f"--host-key {setting.host.fingerprint}" in result.cure
    log = setting.host.log.read_text(errors="replace")
    assert "Connection from" in log
    assert not any(word in log for word in ("Accepted", "Failed", "Postponed", "user root", "user=root"))


def test_a_changed_key_is_refused_with_both_fingerprints_and_the_cure(setting: Setting, tmp_path: Path) -> None:
    other = key_pair(tmp_path / "other").with_suffix(".pub").read_text().split()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{setting.host.port} {other[0]} {other[1]}\n")
    result = setting.join(keys=HostKeys(files=(known,)))
    assert result.step == steps.CONNECT
    assert "HAS CHANGED" in result.message
    assert result.message.count("SHA256:") == 2
    assert setting.host.fingerprint in result.message
    assert f"ssh-keygen -R '[127.0.0.1]:{setting.host.port}' -f {known}" in result.cure
    assert "Accepted" not in setting.host.log.read_text(errors="replace")


def test_a_wrong_pin_is_refused_and_each_of_the_hosts_keys_can_be_pinned(setting: Setting) -> None:
    result = setting.join(keys=HostKeys((f"SHA256:{'A' * 43}",)))
    assert "NOT THE HOST THAT WAS MEANT" in result.message
    assert "Accepted" not in setting.host.log.read_text(errors="replace")
    for kind in ("rsa", "ed25519"):
        keys = HostKeys((setting.host.fingerprint_of(kind),))
        assert setting.join(keys=keys, dry_run=True).outcome.startswith("dry run")
    # What was pinned once is known from then on.
    assert setting.join(dry_run=True, keys=HostKeys()).outcome.startswith("dry run")


def test_a_key_is_not_kept_before_the_host_has_let_us_in(setting: Setting, tmp_path: Path) -> None:
    other = key_pair(tmp_path / "other")
    wanted = setting.wanted()
    result = Joining(replace(wanted, access=replace(wanted.access, identity=other)), setting.told, print).run()
    assert "does not let us in" in result.message
    assert not HostKeys().store.exists()
    assert setting.join(dry_run=True).outcome.startswith("dry run")
    assert setting.host.fingerprint in [each.fingerprint for each in HostKeys().known(wanted.access.place)]


def test_a_password_is_read_from_a_descriptor(setting: Setting, controller: Process, tmp_path: Path) -> None:
    words = ("register", "web-1", "--ssh", f"admin@127.0.0.1:{setting.host.port}", "--sudo", "--dry-run")
    options = ("--identity", str(setting.key), "--host-key", setting.host.fingerprint)
    for password, code in ((PASSWORD, 0), ("wrong", 1)):
        readable, writable = os.pipe()
        os.write(writable, f"{password}\n".encode())
        os.close(writable)
        with os.fdopen(readable) as stream:
            source = f"fd:{stream.fileno()}"
            done = subprocess.run(
                [sys.executable, "-c", CLI, *words, *options, "--sudo-password-file", source],
                env={**os.environ, "HOSTMESH_ADDRESS": controller.address},
                pass_fds=[stream.fileno()],
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert done.returncode == code, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr


def test_of_a_bundle_the_packages_of_hosts_alone_are_installed(
    setting: Setting, controller: Process, tmp_path: Path
) -> None:
    def bundle(name: str, **members: Path) -> str:
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, path in members.items():
                tar.add(path, f"dist/{member.replace('__', '-').replace('_v', '_0.1.0_all')}.deb")
        return str(tmp_path / name)

    def register(file: str) -> "subprocess.CompletedProcess[str]":
        words = ("register", "web-1", "--ssh", f"root@127.0.0.1:{setting.host.port}", "--address", "192.0.2.7")
        options = ("--identity", str(setting.key), "--host-key", setting.host.fingerprint)
        return controller.cli(*words, *options, "--bundle", file)

    (tmp_path / "other").mkdir()
    other = package(tmp_path / "other", "hostmesh-controller")
    twice = register(bundle("twice.tar", hostmesh__agent_v=setting.deb, hostmesh__agent_v2=setting.deb))
    assert "leave one of them out" in twice.stderr
    assert "no package" in register(bundle("none.tar", hostmesh__controller_v=other)).stderr
    with unpacked(Path(bundle("both.tar", hostmesh__agent_v=setting.deb, hostmesh__controller_v=other))) as found:
        assert [each.name for each in found] == ["hostmesh-agent_0.1.0_all.deb"]
        without_workloads(setting.told)
        assert setting.join(source=Source(files=found)) == JOINED
    assert packages(setting.host.state()) == ["installed hostmesh-agent"]


def test_a_dry_run_changes_nothing(setting: Setting) -> None:
    before = setting.host.state()
    result = setting.join(dry_run=True, keys=HostKeys((setting.host.fingerprint,), remember=False))
    assert "would install hostmesh-agent by apt, " in result.outcome
    assert (setting.host.state(), setting.mesh(), setting.told.strings) == (before, [], [])
    assert not HostKeys().store.exists()


def repository(setting: Setting, file: str) -> None:
    """A repository that has the agent is made known to the host, and is not read yet."""
    setting.host.run(
        f"mkdir /var/repository; cp {setting.deb} /var/repository/agent.deb; cd /var/repository; "
        "{ dpkg-deb -f agent.deb; echo Filename: ./agent.deb; echo Size: $(stat -c %s agent.deb); "
        "echo SHA256: $(sha256sum agent.deb | cut -d' ' -f1); } >Packages; "
        f"echo 'deb [trusted=yes] file:/var/repository ./' >/etc/apt/sources.list.d/{file}"
    )


LOCKED = """
import fcntl, pathlib, time
with open("/var/lib/apt/lists/lock", "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    pathlib.Path("/run/locked").touch()
    while not pathlib.Path("/run/apt-ended").exists():
        time.sleep(0.05)
"""


def test_an_installation_waits_for_another_apt_that_reads_its_repositories(setting: Setting, tmp_path: Path) -> None:
    without_workloads(setting.told)
    repository(setting, "hostmesh.list")
    # Whoever holds the lock lets it go once apt has met it.
    (tmp_path / "apt-get").write_text('#!/bin/sh\n/usr/bin/apt-get "$@"\ncode=$?\n: >/run/apt-ended\nexit $code\n')
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "hold.py").write_text(LOCKED)
    setting.host.run(
        f"cp {tmp_path}/apt-get /usr/local/bin/; {sys.executable} {tmp_path}/hold.py >/dev/null 2>&1 & "
        "until [ -e /run/locked ]; do sleep 0.05; done"
    )
    assert setting.join(source=Source()) == JOINED
    assert setting.host.run("ls /run/apt-ended").strip()


def test_a_dry_run_says_that_the_host_knows_no_repository_of_ours(setting: Setting) -> None:
    assert "by apt (which has read of no repository" in setting.join(dry_run=True, source=Source()).outcome
    repository(setting, "ours.list")
    setting.host.run(
        "apt-get -qq update -o Dir::Etc::sourcelist=/etc/apt/sources.list.d/ours.list -o Dir::Etc::sourceparts=-"
    )
    assert "by apt, would join" in setting.join(dry_run=True, source=Source()).outcome


def test_a_dry_run_keeps_nothing_of_what_it_asks_apt(setting: Setting) -> None:
    look = "find /var/cache/apt /var/lib/apt -printf '%p %s %T@\\n' | sort"
    # As apt has it, whatever this machine's says.
    default = 'Dir::Cache { pkgcache "pkgcache.bin"; srcpkgcache "srcpkgcache.bin"; };'
    setting.host.run(f"rm -f /var/cache/apt/*.bin; echo '{default}' >/etc/apt/apt.conf.d/zz-default")
    before = setting.host.run(look)
    assert setting.join(dry_run=True, source=Source()).outcome.startswith("dry run")
    assert setting.host.run(look) == before


@pytest.mark.parametrize("dry_run", [True, False], ids=["a dry run", "a real run"])
@pytest.mark.parametrize("what", ["a name", "an address", "a repository"])
def test_what_must_be_refused_is_refused_before_anything_is_done(setting: Setting, what: str, dry_run: bool) -> None:
    taken = {**WRITTEN[0], "metadata": {"name": "web-9"}}
    setting.told.real.request("PUT", "/v1/objects/Host/-/web-9", body=taken)
    wanted = setting.wanted()
    if what == "a name":
        wanted, said = replace(wanted, name="Bad_Name"), "Bad_Name"
    elif what == "an address":
        wanted, said = replace(wanted, body={"addresses": taken["spec"]["addresses"]}), "web-9"  # type: ignore[index]
    else:
        setting.host.run("echo deb http://192.0.2.9/apt stable main >/etc/apt/sources.list.d/hostmesh.list")
        wanted, said = replace(wanted, source=Source("http://192.0.2.8", "key")), "another repository"
    before, objects = setting.host.state(), setting.told.real.get("/v1/objects")
    result = Joining(wanted, setting.told, lambda _: None, dry_run=dry_run).run()
    assert (result.step, said in result.message, result.left_behind) == (steps.CHECK, True, ()), result
    assert (setting.host.state(), setting.told.real.get("/v1/objects"), setting.told.strings) == (before, objects, [])


@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_connection_that_is_cut_at_any_step_leaves_nothing_behind(setting: Setting, step: str) -> None:
    without_workloads(setting.told)
    before = setting.host.state()
    broken = replace(setting.wanted(), verify="http://catalog/")

    def tell(line: str) -> None:
        if line == step:
            setting.host.cut()

    result = Joining(broken, setting.told, tell).run()
    assert result.failed
    assert result.left_behind == ()
    assert setting.mesh() == []
    after = setting.host.state()
    assert packages(after) == packages(before)
    assert "/var/lib/hostmesh" not in after
    assert "/var/tmp/hostmesh" not in after
    assert setting.join() == JOINED


def test_a_host_that_never_connects_is_taken_back(setting: Setting, controller: Process) -> None:
    setting.told = Told(controller)
    real = setting.told.real
    result = Joining(setting.wanted(), real, lambda _: None).run()
    assert result.step == steps.VERIFY
    assert "not connected" in result.message
    assert setting.mesh() == []
    assert packages(setting.host.state()) == []


def test_a_package_that_cannot_be_installed_is_taken_back(setting: Setting, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    setting.deb = package(tmp_path / "bad", before="echo there is no room >&2; exit 1")
    result = setting.join()
    assert (result.step, setting.mesh(), packages(setting.host.state())) == (steps.INSTALL, [], [])
    assert result.left_behind == ()
    assert setting.told.strings == []


@pytest.mark.parametrize("how", ["the package was removed", "the file came first"])
def test_what_the_owner_had_configured_is_there_after_a_join_that_failed(
    setting: Setting, tmp_path: Path, how: str
) -> None:
    (tmp_path / "configured").mkdir()
    setting.deb = package(tmp_path / "configured", config="# the package's\n")
    edited = "mkdir -p /etc/hostmesh; echo '# mine' >/etc/hostmesh/agent.toml; chmod 640 /etc/hostmesh/agent.toml"
    if how == "the package was removed":
        setting.host.run(f"dpkg -i {setting.deb}; {edited}; dpkg -r hostmesh-agent")
    else:
        setting.host.run(edited)

    def look() -> str:
        shown = "dpkg-query -W -f '${db:Status-Status}' hostmesh-agent 2>/dev/null"
        return setting.host.run(f"{shown}; cd /etc/hostmesh && stat -c '%n %a %U' * && cat *")

    before = look()
    assert before.endswith("agent.toml 640 root\n# mine\n")
    result = setting.join(verify="http://nobody.invalid/")
    assert (result.step, result.left_behind) == (steps.VERIFY, ())
    assert look() == before


def test_a_disk_that_is_full_is_found_before_a_token_is_made(setting: Setting, tmp_path: Path, key: Path) -> None:
    small = SshHost(tmp_path / "small", key, size="60m")
    small.start()
    try:
        setting.host = small
        result = setting.join()
    finally:
        small.stop()
    assert (result.step, setting.told.strings) == (steps.CHECK, [])
    assert "MiB are needed" in result.message


def test_several_are_joined_at_once_and_one_that_fails_stops_no_other(
    setting: Setting, tmp_path: Path, key: Path
) -> None:
    without_workloads(setting.told)
    second = SshHost(tmp_path / "second", key)
    second.start()
    try:
        first, other = setting.wanted("web-1"), setting.wanted("web-2")
        place = replace(other.access, place=Place("root", "127.0.0.1", second.port))
        good = replace(other, access=replace(place, keys=HostKeys((second.fingerprint,))))
        good = replace(good, body={"addresses": ["192.0.2.8"]})
        bad = replace(setting.wanted("web-3"), access=replace(place, keys=HostKeys((f"SHA256:{'B' * 43}",))))
        results = run_all([Joining(each, setting.told, lambda _: None) for each in (first, bad, good)])
    finally:
        second.stop()
    assert [(each.host, each.outcome, each.step) for each in results] == [
        ("web-1", "joined", ""),
        ("web-3", "failed", steps.CONNECT),
        ("web-2", "joined", ""),
    ]


@pytest.mark.parametrize("step", [steps.INSTALL, steps.JOIN, steps.WAIT])
def test_an_interruption_takes_back_what_was_done(setting: Setting, step: str) -> None:
    without_workloads(setting.told)
    work: list[Joining] = []

    def tell(line: str) -> None:
        if line == step:
            threading.Thread(target=work[0].halt).start()
            work[0].halted.wait(10)

    work.append(Joining(setting.wanted(), setting.told, tell))
    result = work[0].run()
    assert (result.message, result.step, result.left_behind) == ("interrupted", step, ())
    assert (setting.mesh(), packages(setting.host.state())) == ([], [])


@pytest.mark.parametrize("how", ["the connection is cut", "the operator interrupts"])
def test_an_installation_that_loses_its_operator_half_way_is_taken_back(
    setting: Setting, tmp_path: Path, how: str
) -> None:
    (tmp_path / "slow").mkdir()
    going = "touch /run/installing; until [ -e /run/go-on ]; do sleep 0.05; done"
    setting.deb = package(tmp_path / "slow", before=going)
    work = Joining(setting.wanted(), setting.told, lambda _: None)

    def end() -> None:
        eventually(lambda: setting.host.run("ls /run/installing").strip(), "apt is at it")
        if how == "the connection is cut":
            setting.host.cut()
        else:
            work.halt()
        setting.host.run("touch /run/go-on")

    ending = threading.Thread(target=end)
    ending.start()
    result = work.run()
    ending.join()
    assert (result.step, result.left_behind) == (steps.INSTALL, ())
    assert (setting.mesh(), packages(setting.host.state()), setting.told.strings) == ([], [], [])


@pytest.mark.parametrize("how", ["the connection is cut", "the operator interrupts"])
def test_what_is_taken_back_is_ended_by_nobody_and_goes_on_over_another_connection(
    setting: Setting, tmp_path: Path, how: str
) -> None:
    without_workloads(setting.told)
    before = setting.host.state()
    (tmp_path / "slow").mkdir()
    setting.deb = package(
        tmp_path / "slow", leaving="touch /run/removing; until [ -e /run/go-on ]; do sleep 0.05; done"
    )
    work = Joining(replace(setting.wanted(), verify="http://nobody.invalid/"), setting.told, lambda _: None)

    def end() -> None:
        eventually(lambda: setting.host.run("ls /run/removing").strip(), "apt is at it")
        if how == "the connection is cut":
            setting.host.cut()
        else:
            work.halt()
        setting.host.run("touch /run/go-on")

    ending = threading.Thread(target=end)
    ending.start()
    result = work.run()
    ending.join()
    assert (result.step, result.left_behind) == (steps.VERIFY, ())
    assert (setting.mesh(), packages(setting.host.state())) == ([], packages(before))


def test_the_command_reads_a_list_and_shows_a_table(setting: Setting, controller: Process, tmp_path: Path) -> None:
    file = tmp_path / "hosts.yaml"
    one = "- {{name: {name}, ssh: 'root@127.0.0.1:{port}', hostKey: '{pin}'}}\n"
    file.write_text(
        "hosts:\n"
        + one.format(name="web-1", port=setting.host.port, pin=setting.host.fingerprint)
        + one.format(name="web-2", port=setting.host.port, pin=f"SHA256:{'C' * 43}")
    )
    done = controller.cli("register", "-f", str(file), "--identity", str(setting.key), "--dry-run")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()[1:]
    assert first.startswith("web-1  dry run: ")
    assert "web-2  failed" in second
    assert "NOT THE HOST THAT WAS MEANT" in second
    assert "web-1: connect" in done.stderr


def eventually(condition: Callable[[], Any], what: str) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, what
        time.sleep(0.05)
