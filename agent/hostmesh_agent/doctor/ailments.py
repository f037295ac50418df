"""Every finding that `hostmesh-agent doctor` can have. Pure data: a code never changes its meaning.

The letter says where to look: A agent, C certificate, T time, D names, R rules, P ports, N network, E Envoy, K kernel,
H host, M mesh, X a look that failed.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """An error or a warning makes the exit code 1; a note is good to know."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Ailment:
    """One kind of finding. `title` says what is wrong on any host, `cure` what its owner does."""

    code: str
    severity: Severity
    title: str
    cure: str


@dataclass(frozen=True, slots=True)
class Finding:
    """An ailment that this host has. `what` is one sentence about this host; `cure` "" is the ailment's own."""

    code: str
    what: str
    special_cure: str = ""

    @property
    def severity(self) -> Severity:
        return BY_CODE[self.code].severity

    @property
    def cure(self) -> str:
        return self.special_cure or BY_CODE[self.code].cure


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE
_LOG: Final = "read the agent's log (journalctl -u hostmesh-agent), and hostmesh-agent bugreport if it does not help"
_AGENT: Final = "start the agent (its service, or hostmesh-agent run)"
_REJOIN: Final = "join again with a new join string (hostmesh-agent join --force)"
_SYNC: Final = "let chrony, systemd-timesyncd or ntpd set the clock (timedatectl)"

AILMENTS: Final = tuple(
    Ailment(*each)
    for each in (
        ("HM-A101", _E, "this host has not joined", "join it: hostmesh-agent join STRING"),
        ("HM-A102", _E, "no agent runs", _AGENT),
        ("HM-A103", _E, "the agent does not answer", "restart it: traffic is not touched by that"),
        ("HM-A104", _W, "the agent names a problem", _LOG),
        ("HM-A105", _W, "the agent or Envoy is near its limit of open files", "raise LimitNOFILE in its unit"),
        (
            "HM-A106",
            _N,
            "nothing is captured, by the will of the host's owner",
            "hostmesh-agent capture resume; or take enabled = false out of agent.toml and restart the agent",
        ),
        (
            "HM-A107",
            _E,
            "agent.toml is refused: the agent does not start with it",
            "mend it (agent.toml(5)), then: systemctl restart hostmesh-agent",
        ),
        ("HM-C101", _E, "the host's certificate has ended", f"see the controller's findings; else {_REJOIN}"),
        ("HM-C102", _W, "the host's certificate ends soon and was not renewed", _LOG),
        ("HM-C103", _E, "the host's key, certificate or roots are damaged", _REJOIN),
        ("HM-C104", _E, "the host's certificate is not of a root that the host trusts", _REJOIN),
        ("HM-C105", _E, "a workload has no certificate", _LOG),
        (
            "HM-C106",
            _E,
            "a secret file is open to others, or not the agent's",
            f"chmod 600 it; if it was read, {_REJOIN}",
        ),
        ("HM-C107", _E, "a certificate of this host has ended", _LOG),
        ("HM-T101", _N, "nothing keeps the clock right", _SYNC),
        ("HM-T102", _E, "the clock is behind: a certificate is not valid yet", _SYNC),
        ("HM-T103", _E, "the clock and the controller's differ: its certificate is not valid now", _SYNC),
        ("HM-D101", _E, "programs do not ask the mesh for its names", _LOG),
        ("HM-D102", _E, "questions about mesh names get no answer", "see the findings about Envoy"),
        ("HM-D103", _W, "some mesh names are asked of others", 'agent.toml: [dns] domains = ["DOMAIN"]'),
        ("HM-D104", _W, "questions about names over TCP get no answer", "see the findings about ports"),
        ("HM-D105", _W, "glibc does not reach the last resolvers", "put the resolvers that matter first"),
        ("HM-D106", _E, "another resolver is asked before the mesh", "stop the program that writes resolv.conf"),
        ("HM-D107", _E, "resolv.conf names systemd-resolved, which does not run", "systemctl start systemd-resolved"),
        ("HM-D108", _W, "nsswitch.conf asks systemd-resolved alone, which does not run", "start systemd-resolved"),
        (
            "HM-D109",
            _W,
            "a resolver of this host does not answer",
            "see resolv.conf; names outside take longer, or fail",
        ),
        (
            "HM-D110",
            _W,
            "resolv.conf lists resolvers of another time",
            "start the agent, which follows the link that it was; or hostmesh-agent capture clear",
        ),
        ("HM-R101", _E, "the capture rules are not what they should be", _LOG),
        ("HM-R102", _W, "capture waits", "it captures by itself when what it waits for is there"),
        (
            "HM-R103",
            _W,
            "another program's rules redirect connections before ours",
            "see nft list ruleset: whose are they?",
        ),
        (
            "HM-R104",
            _E,
            "rules or routes of capture were left without an agent",
            "hostmesh-agent capture clear, or leave",
        ),
        ("HM-R105", _E, "a change of capture was undone", "see its reason; then hostmesh-agent capture resume"),
        (
            "HM-R106",
            _N,
            "another program has changed the capture rules",
            "find out which (nft monitor); the agent puts them back",
        ),
        (
            "HM-R107",
            _W,
            "another program's rules lead callers to a port that takes mutual TLS alone",
            "let them call that port through the mesh, or let it take plaintext (PeerAuthentication: PERMISSIVE)",
        ),
        ("HM-P101", _E, "a port of hostmesh is another program's", "stop that program, or give it another port"),
        ("HM-N101", _E, "no TCP connection to a controller", "is it there, and do firewalls let it pass?"),
        (
            "HM-N102",
            _E,
            "a controller takes no TLS connection",
            "see the certificate's findings; is something between?",
        ),
        (
            "HM-N103",
            _E,
            "TCP connects, and TLS gets no answer",
            "large packets may be lost: look at the MTU (ip link; ping -M do -s 1472)",
        ),
        (
            "HM-N104",
            _N,
            "nobody answers at one of the controller's addresses; at another the controller does",
            "is it meant to be there? If not, take it out of `addresses` in controller.toml: hosts follow",
        ),
        ("HM-E101", _E, "Envoy does not run", "see its last words; hostmesh-agent status"),
        ("HM-E102", _E, "Envoy runs and does not answer", "restart it: end its process, the agent starts another"),
        ("HM-E103", _E, "Envoy's binary is not the pinned one", "stop the agent, remove envoy-bin, start the agent"),
        ("HM-E104", _E, "Envoy ends again and again", "see its last words, and EnvoyFilters that were applied last"),
        ("HM-E105", _W, "Envoy needs a restart for its settings", "hostmesh-agent envoy upgrade"),
        ("HM-E106", _E, "Envoy lacks listeners that it should have", _LOG),
        ("HM-E107", _N, "Envoy is held down", "remove the file `hold` in its directory"),
        ("HM-E108", _E, "Envoy does not serve", "see its last words; hostmesh-agent status"),
        ("HM-E109", _W, "a new Envoy was not good and was put back", "see its reason; then change what was wanted"),
        ("HM-K101", _E, "the table of connections is nearly full", "raise net.netfilter.nf_conntrack_max"),
        ("HM-K102", _W, "the kernel has dropped connections from its table", "raise net.netfilter.nf_conntrack_max"),
        (
            "HM-K103",
            _E,
            "the kernel has no nf_tables",
            "load nf_tables, nft_chain_nat, nft_redir; or use another kernel",
        ),
        (
            "HM-K104",
            _N,
            "rules cannot belong to the agent: another program's flush removes them for a moment",
            "Linux 6.9",
        ),
        (
            "HM-K105",
            _N,
            "there is no cgroup v2 to know Envoy and units by",
            "mount cgroup2 (systemd.unified_cgroup_hierarchy=1)",
        ),
        ("HM-H101", _E, "the disk of the state directory is full or nearly so", "make room"),
        ("HM-H102", _E, "the disk of the state directory has hardly any inodes left", "make room: many small files"),
        ("HM-H103", _E, "the state directory cannot be written", "remount it writable; look at dmesg for its disk"),
        ("HM-H104", _E, "a directory of the agent can be written by others", "chown root and chmod go-w it"),
        ("HM-M101", _E, "the controller is not connected", "see the findings about network, certificate and clock"),
        ("HM-M102", _W, "reports are not delivered", _LOG),
        (
            "HM-M103",
            _W,
            "a workload of this host is not ready",
            "see hostmesh-agent status: its probe, certificate and port",
        ),
        (
            "HM-M104",
            _W,
            "the copy for cold starts is not whole",
            "make room: cold.max_mb in agent.toml, or on the disk",
        ),
        (
            "HM-M105",
            _W,
            "the configuration on disk was lost",
            "it comes again from the controller: see that it is connected",
        ),
        ("HM-X101", _N, "something could not be looked at", "call doctor as root; else see what it says"),
    )
)
BY_CODE: Final = {each.code: each for each in AILMENTS}
