import os
import socket
import subprocess
import sys

from hostmesh_agent import host
from hostmesh_agent.services import Services
from hostmesh_agent.sock_diag import listeners


def test_a_listening_program_is_found_with_its_pid_and_its_connections_are_not() -> None:
    services = Services()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            for found in (services.look(), services.look()):
                (mine,) = [each for each in found if each.port == port]
                assert (mine.address, mine.protocol, mine.pid, mine.uid) == (
                    "127.0.0.1",
                    "tcp",
                    os.getpid(),
                    os.getuid(),
                )
                assert mine.program
    assert port not in {each.port for each in services.look()}


def test_ipv6_listeners_are_found_too() -> None:
    if not socket.has_dualstack_ipv6():
        return
    with socket.create_server(("::", 0), family=socket.AF_INET6) as server:
        assert ("::", server.getsockname()[1]) in {(each.address, each.port) for each in listeners()}


def test_facts_name_the_machine_and_leave_out_addresses_that_nobody_else_can_reach() -> None:
    facts = host.facts(host.fixed_facts(), "1.40.0")
    assert facts.hostname == socket.gethostname()
    assert facts.cpus == len(os.sched_getaffinity(0))
    assert facts.memory_bytes > 1 << 20
    assert facts.boot_id
    assert not {"127.0.0.1", "::1"} & set(facts.addresses)
    assert not [each for each in facts.addresses if each.startswith(("fe80:", "240.240."))]


def test_the_load_is_sampled() -> None:
    assert host.Load().sample().memory_available_bytes > 0


def test_secrets_are_hidden_in_logs_that_are_json_lines_on_stderr() -> None:
    code = (
        "from hostmesh_agent import log; import structlog; log.configure('info'); "
        "structlog.get_logger().info('joined', join_string='hm1.abc', host='h1'); structlog.get_logger().debug('no')"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(each for each in sys.path if each)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20, env=environment
    )
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert '"join_string": "***"' in line
    assert '"host": "h1"' in line


def test_a_log_that_nobody_reads_ends_nothing() -> None:
    code = (
        "import os, sys; from hostmesh_agent import log; import structlog; log.configure('info'); "
        "structlog.get_logger().info('one'); os.close(2); structlog.get_logger().error('two'); "
        "sys.stderr = None; structlog.get_logger().error('three'); print('goes on')"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(each for each in sys.path if each)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, env=environment)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
