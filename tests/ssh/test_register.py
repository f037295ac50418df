"""`hostmesh register --ssh` against real sshd, sudo, apt and dpkg, and a real controller."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_controller.cli.output import Format
from hostmesh_controller.cli.ssh import steps
from hostmesh_controller.cli.ssh.fleet import run_all, show
from hostmesh_controller.cli.ssh.host_keys import HostKeys
from hostmesh_controller.cli.ssh.joining import Joining
from hostmesh_controller.cli.ssh.leaving import Leaving
from hostmesh_controller.cli.ssh.packages import Source, unpacked
from hostmesh_controller.cli.ssh.place import Place
from hostmesh_controller.cli.ssh.secrets import Secrets
from hostmesh_controller.cli.ssh.steps import HostResult
from running_controller import Process
from ssh.setting import (
    ALL_STEPS,
    CLI,
    JOINED,
    WRITTEN,
    Setting,
    documents,
    packages,
    without_workloads,
    write,
)
from ssh.ssh_host import PASSWORD, SshHost, key_pair, package


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


def test_the_table_says_where_no_request_was_made_or_none_was_answered(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown() -> tuple[str, object]:
        result = setting.join()
        capsys.readouterr()
        show([result], Format.TABLE)
        table = capsys.readouterr().out.splitlines()[1]
        show([result], Format.JSON)
        return table, json.loads(capsys.readouterr().out)[0]["answered"]

    without_workloads(setting.told)
    assert shown() == ("web-1  joined; no request was made", False)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "nobody", "namespace": "default"}}
    spec = {"ports": [{"port": 80, "name": "http"}]}
    setting.told.real.request("PUT", "/v1/objects/Service/default/nobody", body={**service, "spec": spec})
    post = setting.told.post
    # There is no Envoy here to call by; the controller is taken to find a way.
    reached = {"reached": True, "steps": [{"stage": "endpoint"}]}
    setting.told.post = lambda path, body: reached if path == "/v1/explain" else post(path, body)
    assert shown() == ("web-1  unchanged; no request was answered", False)
