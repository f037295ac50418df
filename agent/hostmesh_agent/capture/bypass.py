"""The rules by which what came past Envoy to a port that takes mutual TLS alone is refused. Pure.

The rules of capture lead connections by changing their destination, and the kernel lets one program do that with a
connection: a chain of somebody else that comes before ours can lead a STRICT port's callers to its program, or another
port's callers there, or keep connections from being tracked, so that nothing is changed at all. What arrives is seen
here, behind all that. What was captured goes to Envoy's port by now, and Envoy's own leg to the program comes over
loopback, like the calls of the host's own programs: so who comes from outside to such a port was not led by us.

A transparent proxy (TPROXY) takes what is for others: it keeps the port that was called, and no program of this host's
is called there. That is left alone.

Only what opens a connection is looked at. One that stands when the rules come is never cut.
"""

from collections.abc import Iterable
from typing import Final

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.rules import Chain, Hook, Rule

NAME: Final = "bypassed"
PORTS: Final = "strict_ports"
"""Set: the captured ports that take mutual TLS alone."""
_PROXY: Final = "for others, to a transparent proxy"
BEHIND_OTHERS: Final = 150
"""Firewalls are at 0 and 10: what they take away silently stays so. IPVS is at 98 and 99, and lastly translation of
sources at 100: what is for another server is gone by then, and what IPVS leads to a program of this host has its port.
"""


def chain(passes: Iterable[Rule], *, knows_sockets: bool = False) -> Chain:
    """Return the chain.

    Args:
        passes: the rules for what the owner of the host excludes.
        knows_sockets: the kernel can tell a transparent proxy's socket from others.
    """
    refused = (*words.tcp_port_in(PORTS), *words.opening(), *words.RESET)
    to_proxy = Rule((*words.to_others(), *words.socket_in_place_of_others(), *words.RETURN), _PROXY)
    rules = (
        Rule((*words.from_loopback(), *words.RETURN)),
        *passes,
        *([to_proxy] if knows_sockets else []),
        Rule(refused, "mutual TLS alone, and it came past Envoy"),
    )
    return Chain(NAME, "filter", Hook.INPUT, BEHIND_OTHERS, rules)
