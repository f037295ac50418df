"""What the operator writes for SSH: places, lists of hosts, secrets, facts."""

import re
from pathlib import Path

import pytest

from hostmesh_agent import enrol, own_unit
from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.ssh import facts, joining
from hostmesh_controller.cli.ssh.hosts_file import read_hosts
from hostmesh_controller.cli.ssh.packages import read_key
from hostmesh_controller.cli.ssh.place import Place, read_place
from hostmesh_controller.cli.ssh.secrets import read_secret
from hostmesh_controller.cli.ssh.steps import StepError
from running_controller import run_cli

UNIT = Path(__file__).parents[2] / "packaging/systemd/hostmesh-agent.service"
GOOD = """defaults: {sudo: true, labels: {tier: web}, hostLabels: {rack: "1"}}
hosts:
- name: web-1
  ssh: admin@10.0.0.7:2222
  ports: {http: 8080}
- name: web-2
  ssh: root@web-2.example
  addresses: [10.0.0.8]
  sudo: false
  labels: {tier: api}
  hostLabels: {wave: first}
"""


def test_a_place_is_read_with_both_families_of_addresses() -> None:
    assert read_place("root@10.0.0.7") == Place("root", "10.0.0.7")
    assert read_place("admin@[fd00::7]:2222") == Place("admin", "fd00::7", 2222)
    assert read_place("admin@fd00::7").known_as == "fd00::7"
    for wrong in ("10.0.0.7", "@a", "a@", "a@b:0", "a@b:x", "a@-oProxyCommand=x", "a@b c", "a@[::1]x", "-l@b"):
        with pytest.raises(ValueError, match="user@address"):
            read_place(wrong)


def test_a_list_of_hosts_is_read_with_its_defaults() -> None:
    first, second = read_hosts("hosts.yaml", GOOD)
    # Where it names none, a new host has the address of ssh, and one that is registered keeps its own.
    assert (first.place, first.addresses, first.sudo) == (Place("admin", "10.0.0.7", 2222), [], True)
    assert (second.sudo, second.labels, second.addresses) == (False, {"tier": "api"}, ["10.0.0.8"])
    assert [each.body()["host_labels"] for each in (first, second)] == [{"rack": "1"}, {"rack": "1", "wave": "first"}]
    # A controller that has not heard of them is not told of none.
    assert "host_labels" not in read_hosts("hosts.yaml", GOOD.replace(', hostLabels: {rack: "1"}', ""))[0].body()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("  ports: {http: 8080}", "  prots: {http: 8080}", "hosts.yaml:5:"),
        ("http: 8080", "http: 80800", "hosts.yaml:5:"),
        ("admin@10.0.0.7:2222", "10.0.0.7", "hosts.yaml:4:"),
        ("name: web-2", "name: web-1", "hosts.yaml:6:"),
        ("  addresses: [10.0.0.8]\n", "", "hosts.yaml:7:"),
        ("hosts:", "hosts: [", "hosts.yaml:"),
    ],
)
def test_a_mistake_in_the_list_is_told_with_file_and_line(before: str, after: str, said: str) -> None:
    with pytest.raises(CliError, match="list of hosts is wrong") as caught:
        read_hosts("hosts.yaml", GOOD.replace(before, after))
    assert said in str(caught.value)


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("hidden\n")
    file.chmod(0o640)
    with pytest.raises(CliError, match="chmod 600") as caught:
        read_secret(str(file))
    assert "hidden" not in str(caught.value)
    file.chmod(0o600)
    assert read_secret(str(file)) == "hidden"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("machine=riscv64", "no packages for riscv64"),
        ("systemd=no", "does not run systemd"),
        ("manager=", "neither apt nor dnf"),
        ("free_kib=1024", "1 MiB are free"),
        ("uid=1000", "not root"),
    ],
)
def test_a_host_that_is_not_fit_is_told_why(change: str, said: str) -> None:
    fit = "os=Debian\nmachine=x86_64\nuid=0\nfree_kib=9999999\nsystemd=yes\nmanager=apt\n"
    facts.check(facts.read_facts(fit), sudo=False, installed=False)
    with pytest.raises(StepError, match=said):
        facts.check(facts.read_facts(f"{fit}{change}\n"), sudo=False, installed=False)


ARMORED = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQGN\n-----END PGP PUBLIC KEY BLOCK-----\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x99\x01\x8d\x04binary", "no public key as text: give hostmesh.asc"),
        (b"deb https://packages.example.com stable main\n", "no public key as text"),
        (ARMORED.replace("PUBLIC", "PRIVATE").encode(), "holds a private key, which no host is to see"),
        (None, "No such file"),
    ],
    ids=["binary", "another text", "private", "missing"],
)
def test_a_repository_key_that_no_host_can_use_is_refused_before_anything_is_done(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    good, wrong = tmp_path / "hostmesh.asc", tmp_path / "wrong"
    good.write_text(ARMORED)
    if content is not None:
        wrong.write_bytes(content)
    words = ("register", "web-1", "--ssh", "root@192.0.2.7", "--repository", "https://packages.example.com")
    done = run_cli(*words, "--repository-key", str(wrong))
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert "bug of hostmesh" not in done.stderr
    assert read_key(good) == ARMORED


def test_a_step_over_ssh_is_given_the_time_that_the_agent_takes_for_it() -> None:
    (limit,) = re.findall(r"^TimeoutStartSec=(\d+)min$", UNIT.read_text(), re.MULTILINE)
    assert joining.START_S > own_unit.STARTS_WITHIN_S > 60 * int(limit)
    assert joining.JOIN_S > 4 * enrol.JOIN_ROUNDS * enrol.CALL_TIMEOUT_S
