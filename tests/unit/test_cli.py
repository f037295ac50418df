"""The `hostmesh` command as a process, against a controller that is one too."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostmesh_api.joinstring import JoinString
from hostmesh_controller.cli.output import age, seconds_of, span
from running_controller import (
    START_S,
    Process,
    free_ports,
    run_cli,
    running_process,
    start_controller,
    write_config,
)

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  ports: [{port: 80, name: http}]
  selector: {app: NAME}
"""


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running_process(tmp_path_factory.mktemp("controller")) as process:
        yield process


def service(directory: Path, name: str) -> str:
    path = directory / f"{name}.yaml"
    path.write_text(SERVICE.replace("NAME", name))
    return str(path)


def test_an_object_is_applied_shown_compared_and_deleted(controller: Process, tmp_path: Path) -> None:
    path = service(tmp_path, "web")
    applied = controller.cli("apply", "-f", path)
    assert applied.stdout.splitlines() == ["service/default/web created", "applied; no host is connected"]
    assert applied.returncode == 0
    assert controller.cli("apply", "-f", path).stdout.startswith("service/default/web unchanged\n")
    for kind in ("Service", "services", "SVC", "svc"):
        shown = controller.cli("get", kind)
        assert [line.split()[:3] for line in shown.stdout.splitlines()] == [
            ["NAME", "PORTS", "SELECTOR"],
            ["web", "80/http", "app=web"],
        ]
    assert json.loads(controller.cli("get", "svc", "web", "-o", "json").stdout)["spec"]["selector"] == {"app": "web"}
    Path(path).write_text(SERVICE.replace("NAME", "web").replace("80", "81"))
    difference = controller.cli("diff", "-f", path).stdout
    assert "-    port: 80\n+    port: 81\n" in difference
    gone = controller.cli("delete", "svc", "web")
    assert (gone.stdout, gone.returncode) == ("service/default/web deleted\n", 0)
    missing = controller.cli("delete", "svc", "web")
    assert (missing.stderr, missing.returncode) == ("error: not found: Service default/web\n", 1)


def test_what_get_prints_can_be_applied_again(controller: Process, tmp_path: Path) -> None:
    service(tmp_path, "one")
    service(tmp_path, "two")
    assert controller.cli("apply", "-f", str(tmp_path), "-n", "again").returncode == 0
    printed = controller.cli("get", "svc", "-n", "again", "-o", "yaml").stdout
    again = controller.cli("apply", "-f", "-", "--no-wait", stdin=printed)
    assert again.stdout == "service/again/one unchanged\nservice/again/two unchanged\n"
    deleted = controller.cli("delete", "-f", str(tmp_path), "-n", "again", "-o", "json")
    assert [each["action"] for each in json.loads(deleted.stdout)["objects"]] == ["deleted", "deleted"]


def test_a_refusal_names_file_line_field_and_the_likely_meaning(controller: Process, tmp_path: Path) -> None:
    path = Path(service(tmp_path, "web"))
    path.write_text(path.read_text().replace("selector", "selctor"))
    for verb in ("apply", "diff"):
        refused = controller.cli(verb, "-f", str(path))
        assert refused.returncode == 1
        assert f"{path}:7:3: spec.selctor: unknown field 'selctor'; did you mean 'selector'?" in refused.stderr
        assert refused.stdout == ""


def test_what_is_no_text_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"apiVersion: v1\nkind: \xff\n")
    assert run_cli("validate", "-f", str(path)).stderr == f"error: {path}:2: not UTF-8: byte 0xff\n"
    command = [sys.executable, "-c", "from hostmesh_controller.cli import main; main()", "validate", "-f", "-"]
    piped = subprocess.run(command, input=path.read_bytes(), capture_output=True, timeout=START_S)
    assert (piped.returncode, piped.stderr) == (1, b"error: <stdin>:2: not UTF-8: byte 0xff\n")


def test_a_host_is_registered_with_its_workload(controller: Process) -> None:
    made = controller.cli(
        *("register", "web-1", "--address", "10.9.0.1", "--address", "fd00::9", "-n", "shop"),
        *("--service-account", "web", "--label", "app=web", "--port", "http=8080", "--port", "9090", "-o", "json"),
    )
    assert made.returncode == 0, made.stderr
    join = JoinString.decode(json.loads(made.stdout)["join_string"])
    assert join.endpoints == (f"127.0.0.1:{controller.ports[1]}",)
    entry = json.loads(controller.cli("get", "we", "web-1", "-n", "shop", "-o", "json").stdout)
    assert entry["spec"]["ports"] == {"http": 8080, "tcp-9090": 9090}
    listed = controller.cli("host", "list").stdout.splitlines()
    assert listed[1].split() == ["web-1", "10.9.0.1,fd00::9", "registered", "no", "unknown", "0/1", "1/1", "-", "-"]
    assert "shop/web-1" in controller.cli("host", "show", "web-1").stdout
    assert controller.cli("proxy", "status").stdout.splitlines()[1].split()[:2] == ["web-1", "no"]
    plain = controller.cli(
        "register",
        "web-1",
        "--address",
        "10.9.0.1",
        "--address",
        "fd00::9",
        "-n",
        "shop",
        "--service-account",
        "web",
        "--label",
        "app=web",
        "--port",
        "http=8080",
        "--port",
        "9090",
    )
    assert plain.stdout.startswith("hostmesh-agent join hm1.")
    assert "host/web-1 unchanged" in plain.stderr
    removed = controller.cli("host", "remove", "web-1", "--workloads")
    assert removed.stdout == "host/web-1 deleted\nworkloadentry/shop/web-1 deleted\n"
    assert controller.cli("host", "show", "web-1").returncode == 1


def test_what_is_known_of_a_host_is_told_anew_without_a_token(controller: Process) -> None:
    controller.cli(
        "register", "moved", "--address", "10.9.0.5", "-n", "shop", "--port", "http=80", "--label", "app=web"
    )
    tokens = controller.cli("token", "list", "-o", "json").stdout
    words = ("register", "moved", "--address", "10.9.0.6", "-n", "shop", "--port", "http=81", "--no-token")
    actions = {"Host": "configured", "WorkloadEntry": "configured"}
    looked = json.loads(controller.cli(*words, "--dry-run", "-o", "json").stdout)
    assert {each["kind"]: each["action"] for each in looked["objects"]} == actions
    assert "host/moved configured (dry run)" in controller.cli(*words, "--dry-run").stderr
    done = json.loads(controller.cli(*words, "-o", "json").stdout)
    assert {each["kind"]: each["action"] for each in done["objects"]} == actions
    assert "join_string" not in looked | done
    entry = json.loads(controller.cli("get", "we", "moved", "-n", "shop", "-o", "json").stdout)["spec"]
    assert entry == {
        "address": "10.9.0.6",
        "labels": {"app": "web"},
        "ports": {"http": 81},
        "serviceAccount": "default",
    }
    again = controller.cli(*words)
    assert (again.returncode, again.stdout) == (0, "")
    assert "workloadentry/shop/moved unchanged" in again.stderr
    assert controller.cli("token", "list", "-o", "json").stdout == tokens
    refused = controller.cli("register", "moved", "--ssh", "admin@10.9.0.6", "--no-token")
    assert "goes with neither --ssh nor -f" in " ".join(refused.stderr.split())
    controller.cli("host", "remove", "moved", "--workloads")


def test_tokens_are_made_listed_and_revoked(controller: Process) -> None:
    controller.cli("register", "tok", "--address", "10.9.0.2")
    made = json.loads(controller.cli("token", "create", "tok", "--ttl", "1m", "-o", "json").stdout)
    assert made["join_string"].startswith("hm1.")
    assert controller.cli("token", "revoke", made["id"]).returncode == 0
    listed = json.loads(controller.cli("token", "list", "-o", "json").stdout)
    assert {each["id"]: each["state"] for each in listed}[made["id"]] == "revoked"
    refused = controller.cli("token", "create", "nobody")
    assert "is not registered; do so with: hostmesh register nobody" in refused.stderr
    controller.cli("host", "remove", "tok")


def test_over_https_the_root_and_a_token_are_needed(controller: Process, tmp_path: Path) -> None:
    address = f"https://127.0.0.1:{controller.ports[2]}"
    ca = str(controller.directory / "state" / "ca" / "root.pem")
    editor = controller.cli("api-token", "create", "eve", "--role", "editor").stdout.strip()
    path = service(tmp_path, "remote")

    def remote(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        return run_cli(*arguments, HOSTMESH_ADDRESS=address, **env)

    assert remote("apply", "-f", path, HOSTMESH_CA=ca, HOSTMESH_TOKEN=editor).returncode == 0
    assert "HOSTMESH_CA" in remote("get", "svc", HOSTMESH_TOKEN=editor).stderr
    assert "HOSTMESH_TOKEN" in remote("get", "svc", HOSTMESH_CA=ca).stderr
    forbidden = remote("host", "remove", "x", HOSTMESH_CA=ca, HOSTMESH_TOKEN=editor)
    assert (forbidden.stderr, forbidden.returncode) == ("error: eve has the role editor; this needs admin\n", 1)
    audit = json.loads(controller.cli("audit", "-o", "json").stdout)
    assert [each["actor"] for each in audit if each["object"] == "service/default/remote"] == ["eve"]


def test_the_socket_the_state_and_its_files_are_the_owners_alone(controller: Process) -> None:
    state = controller.directory / "state"
    assert state.stat().st_mode & 0o777 == 0o700
    for path in state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_agents_without_a_certificate_get_no_connection(controller: Process) -> None:
    context = ssl.create_default_context(cafile=str(controller.directory / "state" / "ca" / "root.pem"))
    context.set_alpn_protocols(["h2"])

    def greeting(port: int) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=START_S) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            try:
                return tls.recv(1)
            except (ssl.SSLError, ConnectionError):
                return b""

    assert greeting(controller.ports[1]) != b""
    assert greeting(controller.ports[0]) == b""


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("get", "nonsense"), "unknown kind 'nonsense'"),
        (("get", "virtualservce"), "did you mean 'VirtualService'?"),
        (("delete",), "give KIND and NAME, or -f FILE"),
        (("delete", "svc"), "give KIND and NAME, or -f FILE"),
        (("apply",), "Missing option"),
        (("apply", "-f", "-", "--wait", "soon"), "is not a length of time"),
        (("register", "h", "--address", "10.0.0.1", "--port", "http"), "is not NUMBER or NAME=NUMBER"),
        (("register", "h", "--address", "10.0.0.1", "--label", "x"), "is not KEY=VALUE"),
        (("nonsense",), "No such command"),
    ],
)
def test_a_wrong_call_ends_with_2_and_says_what_is_right(arguments: tuple[str, ...], part: str) -> None:
    result = run_cli(*arguments)
    assert result.returncode == 2
    assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("unix:///nonexistent/admin.sock", "unix:///nonexistent/admin.sock cannot be reached"),
        ("https://127.0.0.1:1", "https://127.0.0.1:1 cannot be reached"),
        ("http://127.0.0.1:1", "is neither unix:///PATH nor https://HOST:PORT"),
        ("nonsense", "is neither unix:///PATH nor https://HOST:PORT"),
    ],
)
def test_a_controller_that_cannot_be_reached_is_named_with_the_cure(address: str, part: str) -> None:
    result = run_cli("get", "svc", HOSTMESH_ADDRESS=address)
    assert result.returncode == 1
    assert part in result.stderr
    assert "HOSTMESH_ADDRESS" in result.stderr
    assert "Traceback" not in result.stderr


def test_documents_are_validated_without_a_controller(tmp_path: Path) -> None:
    path = Path(service(tmp_path, "web"))
    good = run_cli("validate", "-f", str(path))
    assert (good.returncode, good.stdout) == (0, "1 object(s) in 1 file(s) are valid\n")
    path.write_text(path.read_text().replace("80", "70000"))
    bad = run_cli("validate", "-f", str(path))
    assert bad.returncode == 1
    assert f"{path}:6:12: spec.ports[0].port: " in bad.stderr
    as_json = run_cli("validate", "-f", str(path), "-o", "json")
    assert (as_json.returncode, json.loads(as_json.stdout)["valid"]) == (1, False)


@pytest.mark.parametrize("name", ["missing.yaml", "empty"])
def test_a_path_without_documents_is_said_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    result = run_cli("validate", "-f", str(tmp_path / name))
    assert result.returncode == 1
    assert str(tmp_path / name) in result.stderr


HEAVY = ("alembic", "cryptography", "fastapi", "grpc", "httpx", "rich", "ruamel.yaml", "sqlalchemy", "uvicorn")
LOADED = f"""
import sys
from hostmesh_controller.cli import main
try:
    main()
except SystemExit:
    print("loaded:", [name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("argument", ["--help", "version", "--version"])
def test_help_and_version_load_nothing_that_takes_long(argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, argument], capture_output=True, text=True, timeout=START_S, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_help_names_every_command_and_what_it_is_for() -> None:
    text = run_cli("--help").stdout
    for command in (
        *("apply", "validate", "diff", "get", "delete", "register", "token", "api-token"),
        *("host", "proxy", "translate", "audit", "version", "lab"),
    ):
        assert f"\n  {command} " in text


def test_completion_knows_commands() -> None:
    env = {"_HOSTMESH_COMPLETE": "complete_bash", "COMP_WORDS": "hostmesh val", "COMP_CWORD": "1"}
    assert run_cli(**env).stdout.split() == ["validate"]


def test_lengths_of_time_are_read_and_written() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "15m", "2h", "7d", "0")] == [90, 90, 900, 7200, 604800, 0]
    assert [span(number) for number in (0, 119, 120, 7200, 9000, 86400, 172800)] == [
        *("0s", "119s", "2m", "2h", "2h30m", "24h", "2d"),
    ]
    assert age(None) == "-"


def test_names_cannot_drive_the_readers_terminal() -> None:
    from hostmesh_controller.cli.output import cell_text

    assert cell_text("\x1b[31mred\x07") == " [31mred "


def test_a_second_controller_on_the_state_or_the_ports_says_who_is_in_the_way(
    controller: Process, tmp_path: Path
) -> None:
    same_state = write_config(controller.directory, free_ports())
    same_ports = write_config(tmp_path, controller.ports)
    for config, part in (
        (same_state, f"is in use by another hostmesh-controller (pid {controller.process.pid})"),
        (same_ports, "another program has it"),
    ):
        log = tmp_path / "second.log"
        assert start_controller(config, log).wait(START_S) == 1
        text = log.read_text()
        assert part in text
        assert "Traceback" not in text
    assert controller.cli("version", "--server").returncode == 0


def test_the_controller_stops_in_order_and_starts_where_it_was(tmp_path: Path) -> None:
    with running_process(tmp_path) as first:
        assert first.cli("apply", "-f", service(tmp_path, "kept")).returncode == 0
        assert first.stop() == 0
        assert not (tmp_path / "state" / "admin.sock").exists()
        log = [json.loads(line) for line in first.log.read_text().splitlines()]
        assert [each["event"] for each in log if each["level"] != "warning"] == ["ready", "stopping", "stopped"]
    with running_process(tmp_path) as second:
        assert "kept" in second.cli("get", "svc").stdout
        second.process.send_signal(signal.SIGKILL)
        second.process.wait(START_S)
    with running_process(tmp_path) as third:
        assert "kept" in third.cli("get", "svc").stdout


def test_the_configuration_is_checked_by_a_verb(tmp_path: Path) -> None:
    config = write_config(tmp_path, (1, 2, 3), extra='trust_domian = "x"')
    command = [sys.executable, "-c", "from hostmesh_controller.serve import main; main()", "config", "check"]
    env = {**os.environ, "HOSTMESH_CONTROLLER_CONFIG": str(config)}
    bad = subprocess.run(command, capture_output=True, text=True, env=env, timeout=START_S)
    assert bad.returncode == 1
    assert "trust_domian: unknown setting 'trust_domian'; did you mean 'trust_domain'?" in bad.stderr
    write_config(tmp_path, (1, 2, 3))
    good = subprocess.run(command, capture_output=True, text=True, env=env, timeout=START_S)
    assert good.returncode == 0
    assert "listen.agents = 127.0.0.1:1" in good.stdout


POLICY = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: authz-1}
spec: {addresses: [10.77.0.1]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: guarded}
spec: {address: 10.77.0.1, labels: {app: guarded}, ports: {http: 8080}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded}
spec:
  selector: {matchLabels: {app: guarded}}
  rules: [{to: [{operation: {paths: ["/open/*"], methods: [GET]}}]}]
"""


def test_a_permission_is_explained_and_told_by_the_exit_code(controller: Process, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    assert controller.cli("apply", "-f", str(path)).returncode == 0
    shown = controller.cli("get", "ap").stdout.splitlines()[1]
    assert shown.split()[:4] == ["guarded", "ALLOW", "1", "app=guarded"]
    asked = ("authz", "explain", "--from", "10.1.2.3", "--to", "default/guarded")
    allowed = controller.cli(*asked, "--path", "/open/x", "-H", "x-a=b")
    assert allowed.returncode == 0, allowed.stderr
    assert allowed.stdout.startswith("ALLOWED  workload default/guarded (10.77.0.1:8080, host authz-1): allowed by")
    denied = controller.cli(*asked, "--path", "/open/x", "-X", "PUT")
    assert denied.returncode == 1
    assert "does not hold: method is 'PUT'; asked for: 'GET'" in denied.stdout
    found = json.loads(controller.cli(*asked, "-o", "json").stdout)
    assert (found["allowed"], found["answers"][0]["chain"]) == (False, "0.0.0.0_8080|plaintext")
    assert controller.cli(*asked, "--claims", "x").returncode == 2
    assert controller.cli(*asked, "--to", "nobody").returncode == 1


def test_on_a_terminal_it_is_asked_whether_most_of_a_mesh_is_meant_to_go(tmp_path: Path) -> None:
    for number in range(9):
        service(tmp_path, f"s{number}")
    (tmp_path / "controller").mkdir()
    with running_process(tmp_path / "controller") as process:
        files = [each for number in range(9) for each in ("-f", str(tmp_path / f"s{number}.yaml"))]
        process.cli("apply", *files, "--no-wait")
        refused = on_a_terminal(process, "n", "delete", *files)
        assert refused.returncode == 1
        assert "9 of 9 services would go" in refused.stdout + refused.stderr
        assert len(json.loads(process.cli("get", "svc", "-o", "json").stdout)) == 9
        assert on_a_terminal(process, "y", "delete", *files).stdout.count(" deleted\n") == 9
        process.cli("apply", *files, "--no-wait")
        assert on_a_terminal(process, "", "delete", "--yes", *files).stdout.count(" deleted\n") == 9
        process.cli("apply", *files, "--no-wait")
        done = process.cli("delete", *files)
        assert (done.returncode, done.stdout.count(" deleted\n")) == (0, 9)


def on_a_terminal(process: Process, answer: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command where somebody sits who answers what it asks."""
    keyboard, terminal = os.openpty()
    try:
        os.write(keyboard, f"{answer}\n".encode())
        return subprocess.run(
            [sys.executable, "-c", "from hostmesh_controller.cli import main; main()", *arguments],
            stdin=terminal,
            capture_output=True,
            text=True,
            env=os.environ | {"HOSTMESH_ADDRESS": process.address},
            timeout=START_S * 2,
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
