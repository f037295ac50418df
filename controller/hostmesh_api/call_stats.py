"""How Envoy counts who calls the host's workloads: the counter's name, its labels and their values.

The controller configures the counter and the agent reads it, so both take its shape from here. All labels but the
caller have a fixed set of values, whatever a caller sends; of callers there are as many as may be told apart.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SCOPE: Final = "hostmesh"
COUNTER: Final = "calls"
NAMES: Final = f"^{SCOPE}.{COUNTER}.chain"
"""Regular expression of the counters' names, without anything that a URL would have to quote."""

CHAIN: Final = "chain"
"""Label: the filter chain that took the call, which tells port and security: see `Chain`."""
CALLER: Final = "caller"
"""Label: SPIFFE ID of a caller with mutual TLS, address of one without."""
METHOD: Final = "method"
DENIED: Final = "denied"
AT: Final = "at"
"""Label: what Envoy told of, in its own words: the end of a request or connection, or that it still lasts."""

METHODS: Final = ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
OTHER: Final = "OTHER"
"""Any other method."""
NO_METHOD: Final = "-"
"""Of a connection that is not HTTP."""
YES: Final = "yes"
NO: Final = "no"
ENDS: Final = frozenset({"DownstreamEnd", "TcpConnectionEnd"})
"""What counts as a call. Anything else tells of one that has begun or lasts."""
LASTING_S: Final = 60
"""How often Envoy tells of a request or connection that lasts, which would else be unseen until its end."""

MAX_IDENTIFIED: Final = 4096
"""Counters of one filter chain with mutual TLS: callers are identities of the mesh, and nobody can make them up."""
MAX_ADDRESSES: Final = 1024
"""Counters of one without: whoever owns a block of addresses can call from each of them. 0.7 MB of Envoy's memory."""


class Security(StrEnum):
    """How a call came: with the mesh's mutual TLS, without any, or with TLS that the program itself answers for."""

    MUTUAL_TLS = "mutual-tls"
    PLAINTEXT = "plaintext"
    OWN_TLS = "own-tls"


_SECURITY: Final = {
    "mtls": Security.MUTUAL_TLS,
    "mtls-http": Security.MUTUAL_TLS,
    "plaintext": Security.PLAINTEXT,
    "plaintext-http": Security.PLAINTEXT,
    "own-tls": Security.OWN_TLS,
    "tls": Security.OWN_TLS,
}
"""By the kind that a chain's name ends in."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A filter chain of an inbound listener. `port` is "ADDRESS_NUMBER", 0.0.0.0 where only one workload has it."""

    port: str
    security: Security


def chain_of(name: str) -> Chain | None:
    """Return what a filter chain's name says, or None if no workload is behind it."""
    port, bar, kind = name.partition("|")
    security = _SECURITY.get(kind)
    return Chain(port, security) if bar and security is not None else None


def port_of(address: str, number: int, *, shared: bool) -> str:
    """Return how chains name a port. `shared`: another workload of the host has this number on another address."""
    return f"{address if shared else '0.0.0.0'}_{number}"  # noqa: S104 - a name


@dataclass(frozen=True, slots=True)
class CallCounter:
    """What one counter counts. `ended`: calls; else that some last."""

    chain: str
    caller: str
    method: str
    denied: bool
    ended: bool


_NAME: Final = re.compile(
    rf"{SCOPE}\.{COUNTER}\.{CHAIN}\.(?P<chain>[^|]{{1,64}}\|[a-z-]{{1,32}})\.{CALLER}\.(?P<caller>.{{1,2048}})"
    rf"\.{METHOD}\.(?P<method>{'|'.join(METHODS)}|{OTHER}|{NO_METHOD})\.{DENIED}\.(?P<denied>{YES}|{NO})"
    rf"\.{AT}\.(?P<at>\w{{1,64}})",
    re.ASCII,
)


def parse_counter(name: str) -> CallCounter | None:
    """Return what the counter of this name counts, or None if it is another's."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return CallCounter(
        found["chain"], found["caller"], found["method"], denied=found["denied"] == YES, ended=found["at"] in ENDS
    )
