"""Other programs' chains before ours: told by name where they take what we capture, and never touched."""

import shutil
from dataclasses import replace

import pytest

from hostmesh_agent import capture, foreign
from hostmesh_agent.capture import CaptureRequest, HostFloor, plan
from netns.conftest import HOST, PEER
from netns.space import Servers, Space, ask, nft, run

REQUEST = CaptureRequest(
    inbound_ports=frozenset({8080}), mesh_prefixes=frozenset({f"{PEER[0]}/32", f"{PEER[1]}/128"}), dns=False
)
NFT = "table {family} other {{ chain theirs {{ type {kind} hook {hook} priority {priority};\n{rule}\n}}\n}}\n"


@pytest.fixture
def captured(peer: Space, servers: Servers) -> None:
    servers.tcp("outbound", 15001)
    servers.tcp("inbound", 15006)
    servers.tcp("theirs", 9999)
    with peer():
        servers.tcp("peer", 443)
    capture.apply(plan(REQUEST, HostFloor(envoy_uid=900)))


def arrives(peer: Space) -> str:
    with peer():
        return ask(HOST[0], 8080).split(" ")[0]


@pytest.mark.parametrize(
    ("family", "kind", "hook", "priority", "rule", "told"),
    [
        ("ip", "nat", "prerouting", -150, "tcp dport 8080 redirect to :9999", "redirects"),
        ("inet", "nat", "output", -120, f"ip daddr {PEER[0]} tcp dport 443 redirect to :9999", "redirects"),
        ("ip", "filter", "prerouting", -300, "tcp dport 8080 notrack", "keeps from being tracked"),
        ("ip", "filter", "output", -150, "meta l4proto tcp notrack", "keeps from being tracked"),
        ("ip", "filter", "prerouting", -150, "tcp dport 8080 drop", "drops"),
        ("ip", "filter", "prerouting", -150, "tcp dport 8080 reject with tcp reset", "refuses"),
        ("ip", "nat", "prerouting", -150, "ip saddr 10.9.0.0/16 tcp dport 8080 redirect to :9999", "perhaps redirects"),
        ("ip", "filter", "prerouting", -150, "tcp dport 8080 tproxy to :9999", "hands to a transparent proxy"),
    ],
)
def test_what_takes_connections_before_ours_is_told_by_name(
    captured: None, family: str, kind: str, hook: str, priority: int, rule: str, told: str
) -> None:
    assert foreign.look() == ()
    nft(NFT.format(family=family, kind=kind, hook=hook, priority=priority, rule=rule))
    before = run("nft", "list", "table", family, "other")
    (found,) = foreign.look()
    name = f"chain theirs of table {family} other ({hook}, {priority})"
    assert str(found) == f"{name} {told} connections before capture sees them (rule 1)"
    assert run("nft", "list", "table", family, "other") == before


@pytest.mark.parametrize(
    ("kind", "hook", "priority", "rule"),
    [
        ("nat", "prerouting", -150, "tcp dport 8080 accept"),
        ("nat", "prerouting", -150, "tcp dport 8081 redirect to :9999"),
        ("nat", "prerouting", -100, "tcp dport 8080 redirect to :9999"),
        ("nat", "prerouting", -150, "udp dport 8080 redirect to :9999"),
        ("filter", "prerouting", -150, "ct state invalid drop"),
        ("nat", "output", -150, "ip daddr 192.0.2.0/24 meta l4proto tcp redirect to :9999"),
        ("filter", "prerouting", -150, "tcp dport 8080 accept"),
    ],
)
def test_what_lets_them_come_to_ours_is_not_told(
    captured: None, peer: Space, kind: str, hook: str, priority: int, rule: str
) -> None:
    nft(NFT.format(family="ip", kind=kind, hook=hook, priority=priority, rule=rule))
    assert foreign.look() == ()
    assert arrives(peer) == "inbound"
    assert ask(PEER[0], 443).startswith("outbound")


STRICT = replace(REQUEST, strict_ports=frozenset({8080}))
BY_IPTABLES = "iptables-nft -t nat -A PREROUTING -p tcp --dport 80 -j"
LEADS_TO_STRICT = {
    "redirect": "nft add rule ip other theirs tcp dport 80 redirect to :8080",
    "port": "nft add rule ip other theirs tcp dport 80 dnat to :8080",
    "loopback": "nft add rule ip other theirs tcp dport 80 dnat to 127.0.0.1:8080",
    "own address": f"nft add rule ip other theirs tcp dport 80 dnat to {HOST[0]}:8080",
    "iptables redirect": f"{BY_IPTABLES} REDIRECT --to-ports 8080",
    "iptables address": f"{BY_IPTABLES} DNAT --to-destination {HOST[0]}:8080",
    "iptables6": f"ip6{BY_IPTABLES[2:]} REDIRECT --to-ports 8080",
    "iptables6 address": f"ip6{BY_IPTABLES[2:]} DNAT --to-destination [{HOST[1]}]:8080",
}


@pytest.mark.parametrize("way", LEADS_TO_STRICT)
def test_who_leads_callers_of_another_port_to_a_strict_one_is_told_that_they_are_refused(
    captured: None, peer: Space, servers: Servers, way: str
) -> None:
    """Behind ours, at -100, where everybody's translation is. What is told is so, and cured as is said."""
    servers.tcp("program", 8080)
    run("sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1")
    if "iptables" in way and not shutil.which("iptables-nft"):
        pytest.skip("needs iptables-nft")
    nft(NFT.format(family="ip", kind="nat", hook="prerouting", priority=-100, rule=""))
    run(*LEADS_TO_STRICT[way].split())
    six = "6" in way
    with peer():
        assert ask(HOST[six], 80).startswith("program")
    capture.apply(plan(STRICT, HostFloor(envoy_uid=900)))
    (found,) = foreign.look()
    chain = "chain PREROUTING of table ip" + ("6" if six else "") + " nat" if "iptables" in way else ""
    assert str(found).startswith(
        f"{chain or 'chain theirs of table ip other'} (prerouting, -100) leads callers of port 80 to port 8080, "
        "which takes mutual TLS alone: they are refused (rule 1); let them call port 8080"
    )
    with peer():
        assert ask(HOST[six], 80) == "refused"
    capture.apply(plan(REQUEST, HostFloor(envoy_uid=900)))
    assert foreign.look() == ()
    with peer():
        assert ask(HOST[six], 80).startswith("program")


@pytest.mark.parametrize(
    "rule",
    [
        "tcp dport 80 dnat to 172.17.0.2:8080",  # Docker's, to a container
        "tcp dport 80 redirect to :8081",
        "tcp dport 8080 redirect to :8080",  # captured before
        "udp dport 80 redirect to :8080",
    ],
)
def test_who_leads_them_elsewhere_is_not_told(captured: None, rule: str) -> None:
    capture.apply(plan(STRICT, HostFloor(envoy_uid=900)))
    nft(NFT.format(family="ip", kind="nat", hook="prerouting", priority=-100, rule=rule))
    assert foreign.look() == ()


def test_what_is_told_is_so_and_what_calls_another_chain_is_followed(captured: None, peer: Space) -> None:
    nft(
        "table ip other {\nchain deep {\ntcp dport 8080 redirect to :9999\n}\n"
        "chain theirs {\ntype nat hook prerouting priority -150;\nmeta l4proto tcp jump deep\n}\n}\n"
    )
    assert [" redirects " in str(each) for each in foreign.look()] == [True]
    assert arrives(peer) == "theirs"


@pytest.mark.skipif(not shutil.which("iptables-nft"), reason="needs iptables-nft")
def test_rules_of_iptables_are_read_too(captured: None, peer: Space) -> None:
    run(
        "iptables-nft",
        "-t",
        "nat",
        "-A",
        "PREROUTING",
        "-p",
        "tcp",
        "--dport",
        "8080",
        "-j",
        "REDIRECT",
        "--to",
        "9999",
    )
    assert foreign.look() == ()  # at -100, behind ours
    assert arrives(peer) == "inbound"
    run("iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "8080", "-j", "CT", "--notrack")
    (found,) = foreign.look()
    assert "chain PREROUTING of table ip raw (prerouting, -300)" in str(found)
    assert "keeps from being tracked" in str(found)
    assert arrives(peer) != "inbound"


def test_it_is_looked_at_again_only_when_somebody_changed_something(captured: None) -> None:
    watched = foreign.Foreign()
    assert watched.look() == ()
    nft(NFT.format(family="ip", kind="nat", hook="output", priority=-150, rule="meta l4proto tcp redirect to :9999"))
    assert watched.look() == ()
    watched._at -= foreign.PAUSE_S
    (found,) = watched.look()
    assert found.certain
    watched._at -= foreign.PAUSE_S
    assert watched.look()[0] is found
