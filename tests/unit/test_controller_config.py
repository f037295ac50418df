"""controller.toml: what it may say, and what is said where it is wrong."""

from pathlib import Path

import pytest

from hostmesh_controller.config import called_at, load_config, parse_config
from hostmesh_controller.config_ca import Ca
from hostmesh_controller.config_reader import ConfigError, Endpoint
from hostmesh_controller.leases import PanicLimits


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.toml", ("here",))
    return caught.value.problems


def test_an_empty_file_takes_every_default() -> None:
    config = parse_config("", "c.toml", ("here", "10.0.0.1"))
    assert config.state_dir == Path("/var/lib/hostmesh-controller")
    assert (config.trust_domain, config.domain) == ("cluster.local", "cluster.local")
    assert config.addresses == ("here", "10.0.0.1")
    assert str(config.listen.agents) == "[::]:15012"
    assert str(config.listen.join) == "[::]:15013"
    assert str(config.listen.admin) == "127.0.0.1:15014"
    assert config.listen.admin_socket == Path("/var/lib/hostmesh-controller/admin.sock")
    assert config.certificates.leaf_hours == 72
    assert config.log.level == "info"


def test_what_the_file_says_holds() -> None:
    config = parse_config(
        """
        state_dir = "/srv/mesh"
        trust_domain = "mesh.example.org"
        addresses = ["2001:db8::1", "mesh.example.org"]
        [listen]
        agents = "[::]:1"
        [certificates]
        leaf_hours = 24
        [log]
        level = "debug"
        """,
        "c.toml",
        (),
    )
    assert config.listen.admin_socket == Path("/srv/mesh/admin.sock")
    assert config.listen.agents == Endpoint("::", 1)
    assert str(config.listen.agents) == "[::]:1"
    assert config.trust_domain == "mesh.example.org"
    assert config.certificates.leaf_hours == 24


def test_a_misspelt_setting_is_refused_with_its_line_and_the_nearest_name() -> None:
    assert problems('\nstate_dri = "/x"') == (
        "c.toml:2: state_dri: unknown setting 'state_dri'; did you mean 'state_dir'?",
    )
    assert problems('[listen]\nagent = "1.2.3.4:5"') == (
        "c.toml:2: listen.agent: unknown setting 'agent'; did you mean 'agents'?",
    )
    assert problems("[lisen]\n") == ("c.toml:1: lisen: unknown setting 'lisen'; did you mean 'listen'?",)


def test_all_problems_are_told_at_once() -> None:
    found = problems('trust_domain = "UPPER"\naddresses = []\n[log]\nlevel = "loud"\n[certificates]\nleaf_hours = 0')
    assert [each.split(": ")[1] for each in found] == [
        "trust_domain",
        "addresses",
        "certificates.leaf_hours",
        "log.level",
    ]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("state_dir = 5", "must be a string"),
        ('state_dir = "relative"', "must be an absolute path"),
        ("listen = 5", "must be a table: write [listen]"),
        ('[listen]\nadmin = "localhost:1"', "is not IP:PORT"),
        ('[listen]\nadmin = "127.0.0.1:0"', "is not IP:PORT"),
        ('[listen]\nadmin = "127.0.0.1:70000"', "is not IP:PORT"),
        ("[certificates]\nleaf_hours = true", "must be a whole number from 1 to 720"),
        ("[certificates]\nleaf_hours = 1000", "must be from 1 to 720"),
        ('addresses = ["0.0.0.0"]', "is not an address that agents can call"),
        ('addresses = ["no spaces"]', "is neither an IP address nor a DNS name"),
        ("addresses = [5]", "is neither an IP address nor a DNS name"),
        (f'state_dir = "/{"x" * 120}"', "longer than the kernel's 107 bytes"),
        ("state_dir = ", "not valid TOML"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_right(text: str, part: str) -> None:
    assert any(part in each for each in problems(text))


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml", lambda: ())


def test_agents_are_told_only_addresses_of_a_family_that_is_listened_on() -> None:
    addresses = ("mesh.example.org", "10.0.0.1", "2001:db8::1")
    assert called_at(Endpoint("0.0.0.0", 7), addresses) == ("mesh.example.org:7", "10.0.0.1:7")
    assert called_at(Endpoint("::", 7), addresses) == ("mesh.example.org:7", "10.0.0.1:7", "[2001:db8::1]:7")


def test_by_default_agents_are_told_addresses_of_both_families() -> None:
    config = parse_config("", "c.toml", ("here", "10.0.0.1", "2001:db8::1"))
    assert config.agents_endpoints == ("here:15012", "10.0.0.1:15012", "[2001:db8::1]:15012")
    assert config.join_endpoints == ("here:15013", "10.0.0.1:15013", "[2001:db8::1]:15013")


def test_a_clone_is_put_under_quarantine_unless_the_file_says_otherwise() -> None:
    assert parse_config("", "c.toml", ("here",)).clones.action == "quarantine"
    assert parse_config('[clones]\naction = "warn"', "c.toml", ("here",)).clones.action == "warn"
    assert problems('[clones]\naction = "wran"') == (
        "c.toml:2: clones.action: 'wran' is not one of quarantine, warn; did you mean 'warn'?",
    )


def test_the_limits_of_the_panic_guard_are_settings() -> None:
    assert parse_config("", "c.toml", ("here",)).leases == PanicLimits(percent=30, hosts=3)
    text = "[leases]\npanic_percent = 50\npanic_hosts = 10\n"
    assert parse_config(text, "c.toml", ("here",)).leases == PanicLimits(percent=50, hosts=10)
    assert problems("[leases]\npanic_percent = 0") == ("c.toml:2: leases.panic_percent: must be from 1 to 100, not 0",)


def test_the_root_is_our_own_unless_the_file_names_another_provider() -> None:
    assert parse_config("", "c.toml", ["h"]).ca == Ca(provider="self-signed")
    files = parse_config('[ca]\nprovider = "files"\ndir = "/etc/cacerts"\n', "c.toml", ["h"]).ca
    assert (files.provider, files.dir) == ("files", Path("/etc/cacerts"))
    text = '[ca]\nprovider = "vault"\nurl = "https://vault:8200"\ntoken_file = "/run/token"\nmount = "pki/mesh"\n'
    vault = parse_config(text, "c.toml", ["h"]).ca
    assert (vault.url, vault.token_file, vault.mount) == ("https://vault:8200", Path("/run/token"), "pki/mesh")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('provider = "file"', "'file' is not one of self-signed, files, vault; did you mean 'files'?"),
        ('provider = "files"', "c.toml:2: ca.provider: 'files' needs the setting ca.dir"),
        ('provider = "vault"\nurl = "https://v"', "'vault' needs the setting ca.token_file"),
        ('provider = "vault"\nurl = "http://v"\ntoken_file = "/t"', "'http://v' is not https://HOST"),
        ('provider = "vault"\nurl = "https://a@v"\ntoken_file = "/t"', "is not https://HOST"),
        ('provider = "vault"\nurl = "https://v"\ntoken_file = "/t"\nmount = "../sys"', "is not the path of a mount"),
        ('provider = "vault"\nurl = "https://v"\ntoken_file = "/t"\nttl_hours = 1', "must be from 24 to 87600"),
        ('dir = "/etc/cacerts"', "ca.dir: is not for the provider 'self-signed'"),
        ('provider = "files"\ndir = "cacerts"', "must be an absolute path"),
        ('provider = "files"\ndir = "/c"\ntoken = "s.x"', "unknown setting 'token'"),
    ],
)
def test_a_provider_that_lacks_what_it_needs_is_refused(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(f"[ca]\n{text}\n", "c.toml", ["h"])
    assert part in str(raised.value)


def test_limits_audit_and_clients_are_settings_with_ranges() -> None:
    config = parse_config(
        """
        [admin]
        client_ca = "/etc/hostmesh/admins.pem"
        [[admin.client]]
        cn = "ann*"
        grants = ["admin"]
        [[admin.client]]
        uri = "spiffe://example.org/ci/*"
        name = "ci"
        grants = ["editor:shop:VirtualService", "viewer"]
        [audit]
        keep_days = 30
        [limits]
        header_s = 5
        """,
        "c.toml",
        ("here",),
    )
    assert (config.audit.keep_days, config.audit.keep_records) == (30, 1_000_000)
    assert (config.limits.header_s, config.limits.handshake_s) == (5, 10)
    ann, ci = config.admin.clients
    assert (ann.wanted, ann.name, list(map(str, ann.grants))) == ((("cn", "ann*"),), "", ["admin"])
    assert list(map(str, ci.grants)) == ["editor:shop:VirtualService", "viewer"]
    assert ann.match([("cn", "ann-1")]) == "ann-1"
    assert ann.match([("cn", "ann"), ("cn", "root")]) is None
    assert ann.match([("cn", "ann\nroot")]) is None
    assert ann.match([("cn", "joann")]) is None
    assert ci.match([("uri", "spiffe://example.org/ci/1"), ("uri", "spiffe://x")]) is not None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[limits]\nheader_s = 0", "limits.header_s: must be from 1 to 120"),
        ("[limits]\nheaders_s = 1", "did you mean 'header_s'?"),
        ('[admin]\nclient_ca = "/x.pem"', "client certificates need [[admin.client]]"),
        ('[[admin.client]]\ncn = "a"\ngrants = ["admin"]', "client certificates need client_ca"),
        ('[admin]\nclient_ca = "/x"\n[[admin.client]]\ngrants = ["admin"]', "client 1: say which certificates"),
        ('[admin]\nclient_ca = "/x"\n[[admin.client]]\ncn = "*"\ngrants = ["admin"]', "every certificate of the CA"),
        ('[admin]\nclient_ca = "/x"\n[[admin.client]]\ncn = "a"\ngrants = []', "grants must be a list"),
        ('[admin]\nclient_ca = "/x"\n[[admin.client]]\ncn = "a"\ngrants = ["king"]', "is no grant"),
        ('[admin]\nclient_ca = "/x"\n[[admin.client]]\ncn = "a"\nrole = "admin"', "unknown setting 'role'"),
        ("[admin]\nclient = 5", "admin.client: must be tables"),
        ("[audit]\nkeep_days = 0", "audit.keep_days: must be from 1"),
    ],
)
def test_a_wrong_setting_of_access_is_refused(text: str, part: str) -> None:
    assert any(part in each for each in problems(text)), problems(text)
