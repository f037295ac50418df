"""The contract of `hostmesh lab`, with hosts outside the mesh: what scripts rely on."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from e2e.driver import HOSTMESH, Lab, eventually, interfaces, lab_processes


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("l") / "lab")
    try:
        lab.verb("up", "--no-join", "web", "--no-join", "db")
        yield lab
    finally:
        lab.verb("down")


@pytest.mark.parametrize(
    ("command", "code"),
    [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137), (["no-such-thing"], 127)],
)
def test_exec_ends_with_the_commands_code(lab: Lab, command: list[str], code: int) -> None:
    assert lab.exec("web", *command, check=False).returncode == code


def test_exec_keeps_both_outputs_apart_and_hands_on_the_input(lab: Lab) -> None:
    done = lab.exec("web", "sh", "-c", "cat; echo oops >&2", text_in="a\nb\n")
    assert (done.stdout, done.stderr) == ("a\nb\n", "oops\n")


def test_exec_passes_arguments_as_they_are(lab: Lab) -> None:
    done = lab.exec("web", "printf", "%s|", "a b", "--dir", "-x", "", "$HOME")
    assert done.stdout == "a b|--dir|-x||$HOME|"


def test_exec_hands_signals_on_to_the_command(lab: Lab) -> None:
    command = [HOSTMESH, "lab", "exec", "web", "--dir", str(lab.root), "--"]
    script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done"
    with subprocess.Popen([*command, "sh", "-c", script], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(signal.SIGTERM)
        assert running.stdout.read() == "got it\n"
        assert running.wait(timeout=10) == 5


def test_a_command_ends_when_its_exec_is_killed(lab: Lab) -> None:
    command = [HOSTMESH, "lab", "exec", "web", "--dir", str(lab.root), "--user", "app", "--"]
    with subprocess.Popen([*command, "sh", "-c", "echo ready; sleep 4711"], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"ready\n"
        running.kill()
    eventually(lambda: lab.exec("web", "pgrep", "-f", "^sh -c echo ready", check=False).returncode == 1, "sh is gone")


def test_an_ordinary_user_of_the_host_is_one(lab: Lab) -> None:
    done = lab.exec("web", "sh", "-c", "id -un; id -Gn; echo $HOME; touch /etc/x; python3 -c 'print(1)'", user="app")
    assert done.stdout == "app\napp\n/var/lib/app\n1\n"
    assert "Permission denied" in done.stderr
    unknown = lab.exec("web", "id", user="nobody-such", check=False)
    assert (unknown.returncode, "no user 'nobody-such'" in unknown.stderr) == (126, True)


def test_a_host_has_its_own_name_files_and_programs(lab: Lab) -> None:
    script = "hostname; cat /etc/hostname; cat /etc/resolv.conf; which hostmesh-agent nft curl python3"
    lines = lab.exec("web", "sh", "-c", script).stdout.splitlines()
    assert lines[:2] == ["web", "web"]
    assert f"nameserver {lab.status()['bridge']['address']}" in lines
    assert len([line for line in lines if line.startswith("/")]) == 4
    lab.exec(
        "web", "sh", "-c", "echo mine > /etc/only-here; echo mine > /var/lib/only-here; echo mine > /run/only-here"
    )
    for name in ("/etc/only-here", "/var/lib/only-here", "/run/only-here"):
        assert not Path(name).exists()
        assert lab.exec("db", "test", "-e", name, check=False).returncode == 1


def test_a_name_that_nobody_knows_is_refused_at_once(lab: Lab) -> None:
    done = lab.exec("web", "sh", "-c", "date +%s%N; getent hosts no.such.example; date +%s%N")
    first, last = done.stdout.split()
    assert int(last) - int(first) < 2_000_000_000


def _answers(lab: Lab, url: str) -> bool:
    return lab.curl("web", url, "-g").status == 200


def test_hosts_and_roots_shell_reach_each_other_by_both_families(lab: Lab) -> None:
    lab.detach("db", "python3", "-m", "http.server", "--bind", "::", "8000", user="app")
    v4, v6 = lab.ip("db"), lab.verb("ip", "db", "--v6").stdout.strip()
    for url in (f"http://{v4}:8000/", f"http://[{v6}]:8000/"):
        eventually(partial(_answers, lab, url), f"web reaches {url}")
        subprocess.run(["curl", "-sSf", "-g", "-m", "5", "-o", "/dev/null", url], check=True)


def test_a_restarted_host_keeps_its_disk_and_its_address_and_nothing_else(lab: Lab) -> None:
    before = lab.status()["hosts"]["db"]
    lab.detach("db", "sleep", "4712")
    lab.exec(
        "db", "sh", "-c", "nft add table inet x; echo kept > /etc/kept; echo kept > /var/lib/kept; touch /run/lost"
    )
    boot = lab.exec("db", "cat", "/proc/sys/kernel/random/boot_id").stdout
    for verb in (("restart", "host/db"), ("kill", "host/db"), ("start", "host/db")):
        lab.verb(*verb)
    after = lab.status()["hosts"]["db"]
    assert {name: after[name] for name in ("ip", "ip6", "mac")} == {name: before[name] for name in ("ip", "ip6", "mac")}
    assert after["pid"] != before["pid"]
    assert lab.exec("db", "cat", "/etc/kept", "/var/lib/kept").stdout == "kept\nkept\n"
    assert lab.exec("db", "test", "-e", "/run/lost", check=False).returncode == 1
    assert lab.exec("db", "nft", "list", "ruleset").stdout == ""
    assert lab.exec("db", "pgrep", "sleep", check=False).returncode == 1
    assert lab.exec("db", "cat", "/proc/sys/kernel/random/boot_id").stdout != boot


def test_a_stopped_host_says_how_to_start_it(lab: Lab) -> None:
    lab.verb("stop", "host/db")
    refused = lab.exec("db", "true", check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        "hostmesh lab: host/db is not running; start it: hostmesh lab start host/db\n",
    )
    assert lab.status()["hosts"]["db"]["state"] == "stopped"
    lab.verb("start", "host/db")


def test_up_adds_hosts_and_refuses_a_name_twice(lab: Lab) -> None:
    lab.verb("up", "--no-join", "third")
    assert list(lab.status()["hosts"]) == ["web", "db", "third"]
    refused = lab.verb("up", "--no-join", "third", check=False)
    assert refused.returncode == 1
    assert "host third is in this lab already" in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ip", "nobody"], "no host 'nobody' in this lab; it has: web, db"),
        (["exec", "nobody", "--", "true"], "no host 'nobody'"),
        (["stop", "agent/web"], "host web has not joined the mesh"),
        (["kill", "everything"], "there are: controller, agent/HOST, envoy/HOST, host/HOST"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(lab: Lab, words: list[str], says: str) -> None:
    refused = lab.verb(*words, check=False)
    assert refused.returncode == 1
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr


def test_down_leaves_nothing_and_may_be_called_again(empty_lab: Lab) -> None:
    empty_lab.verb("up", "--no-join", "one")
    link = empty_lab.status()["bridge"]["link"]
    empty_lab.detach("one", "sleep", "4713")
    empty_lab.detach("one", "python3", "-m", "http.server", "8000")
    assert link in interfaces()
    assert lab_processes(empty_lab.root) != []
    empty_lab.verb("down")
    empty_lab.verb("down")
    assert not empty_lab.root.exists()
    assert link not in interfaces()
    assert lab_processes(empty_lab.root) == []


def test_down_works_after_the_world_was_killed(empty_lab: Lab) -> None:
    empty_lab.verb("up", "--no-join", "one")
    link = empty_lab.status()["bridge"]["link"]
    subprocess.run(["kill", "-9", str(empty_lab.status()["pid"])], check=True)
    eventually(lambda: empty_lab.status()["state"] == "ended", "the world has ended")
    assert "clear it: hostmesh lab down" in empty_lab.exec("one", "true", check=False).stderr
    empty_lab.verb("down")
    assert not empty_lab.root.exists()
    eventually(lambda: link not in interfaces(), "the link is gone")


def test_down_works_after_up_was_killed_half_way(empty_lab: Lab) -> None:
    words = [HOSTMESH, "lab", "up", "--dir", str(empty_lab.root), "one", "two", "--no-join", "three"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as running:
        eventually((empty_lab.root / "hosts/two/init.json").exists, "a host is up")
        running.kill()
    link = empty_lab.status()["bridge"]["link"]
    empty_lab.verb("down")
    assert not empty_lab.root.exists()
    eventually(lambda: link not in interfaces(), "the link is gone")
    assert lab_processes(empty_lab.root) == []


def test_a_directory_that_was_there_stays(empty_lab: Lab) -> None:
    empty_lab.root.mkdir(mode=0o700)
    empty_lab.verb("up", "--no-join", "one")
    empty_lab.verb("down")
    assert list(empty_lab.root.iterdir()) == []


def test_labs_started_at_the_same_time_do_not_meet(empty_lab: Lab) -> None:
    labs = [Lab(empty_lab.root.with_name(f"lab{number}")) for number in range(3)]
    threads = [threading.Thread(target=lab.verb, args=("up", "--no-join", "same")) for lab in labs]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        addresses = [lab.ip("same") for lab in labs]
        assert len(set(addresses)) == 3
        unreachable = labs[0].exec("same", "ping", "-c1", "-W1", addresses[1], check=False)
        assert unreachable.returncode != 0
    finally:
        for lab in labs:
            lab.verb("down")
