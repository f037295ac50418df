"""What is wrong with name resolution on a host, from facts that somebody else has gathered. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from hostmesh_api import wire

_ASKED_BY_GLIBC: Final = 3  # MAXNS in glibc's resolv.h


class NameFinding(NamedTuple):
    """One thing that is wrong, or that an operator should know: a code that stays the same, what, and what to do."""

    code: str
    what: str
    cure: str


@dataclass(frozen=True, slots=True)
class NameFacts:
    """What is true of name resolution.

    Attributes:
        wanted: mesh names are to be answered on this host now (capture is on, dns.enabled).
        in_place: the agent's own word for it; `detail` is why not, or what it knows beside.
        detail: see `in_place`; "" where there is nothing to say.
        envoy_answers: Envoy's DNS listener is active.
        front_answers: the agent's port for questions over TCP is open.
        resolv_conf: text of the resolver's file; None: there is none.
        names_resolved: the file, or what it links to, names systemd-resolved (`Resolver.names_resolved`).
        nsswitch: text of /etc/nsswitch.conf; None: there is none.
        resolved: systemd-resolved runs.
        changed_behind: where the link led in whose place the agent's file is, if other resolvers are there now and no
            agent runs that would follow them; else "".
    """

    wanted: bool
    in_place: bool
    detail: str
    envoy_answers: bool
    front_answers: bool
    resolv_conf: str | None
    names_resolved: bool
    nsswitch: str | None
    resolved: bool
    changed_behind: str = ""


def findings(facts: NameFacts) -> tuple[NameFinding, ...]:
    """Return what is wrong, the worst first; nothing where all is well or nothing is wanted."""
    return tuple(_findings(facts)) if facts.wanted else ()


def _findings(facts: NameFacts) -> Iterator[NameFinding]:
    if not facts.in_place:
        yield NameFinding(
            "names-not-in-place",
            f"programs do not ask the mesh for its names: {facts.detail or 'the reason is not known'}",
            "see the agent's log; hostmesh-agent status tells when it is put right",
        )
    if not facts.envoy_answers:
        yield NameFinding(
            "names-not-answered",
            "Envoy does not answer questions about names; names outside the mesh are found as before",
            "see hostmesh-agent status: is Envoy live, and the listener 'dns' among its listeners?",
        )
    if facts.in_place and facts.detail:
        yield NameFinding("names-partly", facts.detail, 'agent.toml: [dns] domains = ["DOMAIN"]')
    if not facts.front_answers:
        yield NameFinding(
            "names-not-over-tcp",
            f"questions over TCP are not answered: port {wire.DNS_TCP_PORT} is closed or another program's",
            f"find out who has it: ss -ltnp 'sport = {wire.DNS_TCP_PORT}'",
        )
    text = facts.resolv_conf or ""
    servers = re.findall(r"^nameserver[ \t]+([^\s;#]+)", text, re.MULTILINE)
    if wire.DNS_ADDRESS in servers[:1] and len(servers) > _ASKED_BY_GLIBC:
        yield NameFinding(
            "resolvers-out-of-reach",
            f"glibc asks {_ASKED_BY_GLIBC} resolvers; with the mesh's first it no longer reaches "
            + ", ".join(servers[_ASKED_BY_GLIBC:]),
            "put the resolvers that matter first",
        )
    if wire.DNS_ADDRESS in servers[1:]:
        yield NameFinding(
            "mesh-not-first",
            f"{servers[0]} is asked before the mesh, and says that the mesh's names do not exist",
            "stop the program that writes resolv.conf from putting its resolver first; the agent puts it right again",
        )
    if facts.changed_behind:
        yield NameFinding(
            "resolvers-changed",
            f"resolv.conf lists what it listed before: {facts.changed_behind}, to which it was a link, has others now",
            "start the agent, which follows it; or hostmesh-agent capture clear, which makes it a link again",
        )
    if facts.names_resolved and not facts.resolved:
        yield NameFinding(
            "resolved-absent",
            "resolv.conf names systemd-resolved, which does not run",
            "systemctl start systemd-resolved, or name other resolvers",
        )
    if _asks_resolved_alone(facts.nsswitch or "") and not facts.resolved:
        yield NameFinding(
            "nss-resolve-without-resolved",
            "nsswitch.conf has 'resolve' before 'dns', and systemd-resolved does not run",
            "fine where [!UNAVAIL=return] follows it; else start systemd-resolved",
        )


def _asks_resolved_alone(nsswitch: str) -> bool:
    hosts = re.search(r"^hosts:(.*)$", nsswitch, re.MULTILINE)
    words = hosts.group(1).split() if hosts else []
    return "resolve" in words and "[!UNAVAIL=return]" not in words
