from dataclasses import replace
from pathlib import Path

import pytest

from hostmesh_agent.capture.floor import never_outbound
from hostmesh_agent.capture.who import Match
from hostmesh_agent.config import AgentConfig, ColdSettings, FloorSettings, WorkloadApiSettings, in_need, load, parse
from hostmesh_agent.config_table import ConfigError
from hostmesh_agent.entitlements import WorkloadAccess


def test_an_empty_file_gives_the_defaults() -> None:
    config = parse("", "agent.toml")
    assert config == AgentConfig()
    assert config.state_dir == Path("/var/lib/hostmesh")
    assert config.xds_socket == Path("/run/hostmesh/xds.sock")
    assert config.envoy.user == "hostmesh-envoy"
    assert config.envoy.binary is None


def test_every_key_is_read() -> None:
    config = parse(
        """
        state_dir = "/srv/mesh"
        run_dir = "/run/mesh"
        [envoy]
        user = "nobody"
        binary = "/opt/envoy"
        sha256 = "8AA137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80"
        supervisor = "builtin"
        concurrency = 3
        log_level = "info"
        [capture]
        enabled = false
        exclude_inbound_ports = [9100, 22, 22]
        exclude_outbound_ports = [5432]
        exclude_outbound_cidrs = ["10.0.0.0/8"]
        exclude_users = ["backup", "1002"]
        exclude_units = ["node-exporter", "docker.socket"]
        exclude_interfaces = ["wg0"]
        max_scope = "mesh"
        [dns]
        enabled = false
        resolv_conf = "/etc/other.conf"
        [workload_api]
        enabled = true
        [workload_api.workloads."shop/reviews"]
        users = ["reviews"]
        uids = [1002]
        units = ["reviews", "reviews.socket"]
        [workloads."shop/ratings"]
        uids = [1003]
        [floor]
        min_mtls = "strict"
        listen_ports = [8443]
        never_listen_ports = [2222]
        unix_sockets = ["/run/app/", "/run/other.sock"]
        files = ["/var/log/envoy/"]
        refused_extensions = ["envoy.extensions.filters.http.lua.v3"]
        [cold]
        enabled = false
        max_mb = 5
        [shrink]
        accept_after_s = 0
        [log]
        level = "debug"
        """,
        "agent.toml",
    )
    assert config.state_dir == Path("/srv/mesh")
    assert config.cold == ColdSettings(enabled=False, max_mb=5)
    assert config.shrink.accept_after_s == 0
    assert config.envoy.binary == Path("/opt/envoy")
    assert config.envoy.sha256 == "8aa137a7d00994ce43f613556f5a120709229f63bedb86eedde5ccbc402c2b80"
    assert config.envoy.workers(cpus=64) == 3
    assert config.capture.exclude_inbound_ports == (22, 9100)
    assert never_outbound(config.capture) == (
        Match(ports=frozenset({5432})),
        Match(cidrs=frozenset({"10.0.0.0/8"})),
        Match(users=frozenset({"backup", "1002"})),
        Match(units=frozenset({"node-exporter.service", "docker.socket"})),
    )
    assert (config.capture.exclude_interfaces, config.capture.max_scope) == (("wg0",), "mesh")
    assert never_outbound(AgentConfig().capture) == ()
    assert not config.capture.enabled
    assert not config.dns.enabled
    assert config.log.level == "debug"
    units = frozenset({"reviews.service", "reviews.socket"})
    access = WorkloadAccess("shop", "reviews", ("reviews",), frozenset({1002}), units)
    both = (access, WorkloadAccess("shop", "ratings", (), frozenset({1003})))
    assert config.workloads == both
    assert config.workload_api == WorkloadApiSettings(enabled=True, workloads=both)
    assert config.floor == FloorSettings(
        min_mtls="strict",
        listen_ports=(8443,),
        never_listen_ports=(2222,),
        unix_sockets=("/run/app/", "/run/other.sock"),
        files=("/var/log/envoy/",),
        refused_extensions=("envoy.extensions.filters.http.lua.v3",),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stat_dir = "/x"', "f: stat_dir: unknown key; did you mean 'state_dir'?"),
        ("[envoy]\nuzer = 'x'", "f: envoy.uzer: unknown key; did you mean 'user'?"),
        ("[log]\nzzz = 1", "f: log.zzz: unknown key; known keys: level"),
        ("[capture]\nmax_scope = 'host'", "f: capture.max_scope: must be one of mesh, all; is 'host'"),
        (
            "[capture]\nexclude_users = ['4294967295']",
            "f: capture.exclude_users: 4294967295 is not the number of a user",
        ),
        (
            "[capture]\nexclude_interfaces = ['a-name-too-long.']",
            "f: capture.exclude_interfaces: 'a-name-too-long.' is",
        ),
        ("[capture]\nexclude_outbound_cidrs = ['10.0.0.1/8']", "f: capture.exclude_outbound_cidrs: is not a list of"),
        (
            "[capture]\nexclude_interfaces = ['wg0']\n[floor]\nmtls_ports = [80]",
            "f: floor.mtls_ports: on capture.exclude_interfaces they would be open",
        ),
        ("[envoy]\nsupervisor = 'runit'", "f: envoy.supervisor: "),
        (
            "[workload_api.workloads.reviews]\n",
            'f: workload_api.workloads."reviews": must be NAMESPACE/SERVICE-ACCOUNT',
        ),
        (
            "[workload_api.workloads.'Shop/x']\n",
            'f: workload_api.workloads."Shop/x": must be NAMESPACE/SERVICE-ACCOUNT: namespace',
        ),
        (
            "[workloads.'a/b']\nuids = [1]\n[workload_api.workloads.'a/b']\nuids = [2]",
            "f: workloads: a/b: is in workload_api.workloads too",
        ),
        ("[workload_api.workloads.'a/b']\nuser = 1", "f: workload_api.workloads.a/b.user: unknown key; did you mean"),
        (
            "[workload_api.workloads.'a/b']\nuids = [-1]",
            "f: workload_api.workloads.a/b.uids: must be a list of whole numbers",
        ),
        (
            "[workload_api.workloads.'a/b']\nuids = [65534]",
            "f: workload_api.workloads.a/b.users: 'nobody' is whom unrelated programs share",
        ),
        (
            "[workload_api.workloads.'a/b']\nusers = ['nobody']",
            "f: workload_api.workloads.a/b.users: 'nobody' is whom unrelated programs share",
        ),
        ("[floor]\nmin_mtls = 'STRICT'", "f: floor.min_mtls: must be one of strict, permissive, none"),
        ("[floor]\nfiles = ['etc']", "f: floor.files: must be a list of absolute paths, has 'etc'"),
        ("[floor]\nfiles = ['/a/../etc/']", "f: floor.files: must be a list of absolute paths"),
        ("[envoy]\nuser = 'root'", "f: envoy.user: Envoy does not run as root"),
        ("[envoy]\nsha256 = 'abc'", "f: envoy.sha256: must be 64 hexadecimal digits"),
        ("[envoy]\nconcurrency = true", "f: envoy.concurrency: must be a whole number"),
        ("[envoy]\nlog_level = 'loud'", "f: envoy.log_level: must be one of trace"),
        ("envoy = 3", "f: envoy: must be a table, written [envoy]"),
        ("[capture]\nenabled = 'yes'", "f: capture.enabled: must be true or false"),
        ("[capture]\nexclude_inbound_ports = [0]", "f: capture.exclude_inbound_ports: must be a list of ports"),
        ("state_dir = 'x'", "f: state_dir: must be an absolute path"),
        ("state_dir = 3", "f: state_dir: must be a string"),
        ("[[[", "f: not valid TOML"),
        (f"state_dir = '/{'x' * 100}'", "f: state_dir: too long"),
    ],
)
def test_a_mistake_is_named_with_its_file_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert str(caught.value).startswith(message)


def test_a_named_file_must_exist_and_the_flag_wins_over_the_environment(tmp_path: Path) -> None:
    named = tmp_path / "agent.toml"
    with pytest.raises(ConfigError, match="no such file"):
        load(named, {})
    with pytest.raises(ConfigError, match="no such file"):
        load(None, {"HOSTMESH_AGENT_CONFIG": str(named)})
    named.write_text("[log]\nlevel = 'error'\n")
    assert load(named, {"HOSTMESH_AGENT_CONFIG": "/nowhere"}).log.level == "error"
    assert load(None, {"HOSTMESH_AGENT_CONFIG": str(named)}).log.level == "error"


def test_workers_follow_the_cores_up_to_four() -> None:
    envoy = AgentConfig().envoy
    assert [envoy.workers(cpus) for cpus in (0, 1, 3, 4, 96)] == [1, 1, 3, 4, 4]


def test_the_mesh_s_word_on_workers_is_bounded_by_the_cores_and_the_hosts_own_is_not() -> None:
    envoy = AgentConfig().envoy
    assert [envoy.workers(4, wanted) for wanted in (0, 3, 32, 33, 2**31 - 1)] == [4, 3, 32, 32, 32]
    assert replace(envoy, concurrency=100).workers(4, 2) == 100


def test_ports_that_are_kept_by_capture_need_it() -> None:
    assert parse("[floor]\nmtls_ports = [9080]", "f").floor.mtls_ports == (9080,)
    with pytest.raises(ConfigError, match=r"is kept by capture, which capture\.enabled = false turns off"):
        parse("[floor]\nmtls_ports = [9080]\n[capture]\nenabled = false", "f")
    with pytest.raises(ConfigError, match=r"capture.exclude_inbound_ports has \[9080\] too"):
        parse("[floor]\nmtls_ports = [9080]\n[capture]\nexclude_inbound_ports = [9080]", "f")


def test_in_need_each_part_that_is_right_counts_and_what_is_wrong_is_as_by_default(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('state_dir = "/srv/mesh"\n[floor]\nmtls_ports = [8443]\n[envoy]\nuser = "root"\n[envoi]\n')
    found = in_need(path)
    assert (found.state_dir, found.floor.mtls_ports) == (Path("/srv/mesh"), (8443,))
    assert found.envoy == AgentConfig().envoy
    path.write_text("this is no TOML")
    assert in_need(path) == AgentConfig()
    assert in_need(tmp_path / "nowhere") == AgentConfig()
