"""Traffic capture: which connections of the host meet Envoy, and how the kernel is told.

In the order of the data:

    plan         a request and the host's floor in, the whole ruleset out: sets, chains, rules, refusals (pure)
    callers      which rules tell Envoy, and programs with an identity of their own, from all others (pure)
    bypass       what is refused because it came past Envoy to a port that takes mutual TLS alone (pure)
    doors        which rules lead to what the second of two Envoys listens on (pure)
    expressions  the words that rules are made of (pure)
    rules        the rules as data, equal for equal rules, with a hash
    encode       from the kernel's table to the wanted one, as messages of one batch (pure)
    decode       the kernel's table as the same data (pure)
    attributes   what messages and expressions are made of, for both (pure); codec: such layouts as bytes (pure)
    nft          the edge: one batch changes the table, dumps read it back
    owner        the edge: the socket to which the table belongs
    routes       the edge: routes and addresses without which rules have no effect
    capture      all of it together: apply, state, clear
    foreign      what other programs' chains take before ours see it (pure)
    led          what they lead to ports where ours refuse it (pure)
    text         the rules for human eyes
    floor        what the host itself insists on: its SSH ports, whether it has IPv6

What is in the table `inet hostmesh` is ours; nothing outside it is touched but the routes and addresses that `routes`
marks. Needs Linux 5.10 with nf_tables. Where the kernel can (6.9), the table belongs to the agent (`owner`): another
program's flush leaves it, and only the agent changes it. Elsewhere it is watched and put back.

Where the kernel has no nf_tables, iptables and ipset hold the same plan:

    kernel       the edge: whichever part of the kernel holds the rules
    xtables      what iptables makes of a ruleset, as a table again (pure)
    xt_words     a rule in iptables' words, and back (pure)
    xt_text      what iptables-restore and ipset are given, what they print (pure)
    iptables     the edge: the programs are run

There the chains and sets HOSTMESH_* are ours, and the jumps to those chains. Nobody tells of a change: it is looked
for. Answers to questions for names cannot be changed, so the resolver is left alone.
"""

from hostmesh_agent.capture.callers import Caller
from hostmesh_agent.capture.capture import Capture, CaptureState, apply, clear, clear_but_doors, show, verify
from hostmesh_agent.capture.errors import CaptureError
from hostmesh_agent.capture.owner import Owner
from hostmesh_agent.capture.plan import OWN_PORTS, CaptureRequest, HostFloor, PlanError, Scope, plan
from hostmesh_agent.capture.rules import Refusal, Ruleset, Table

__all__ = [
    "OWN_PORTS",
    "Caller",
    "Capture",
    "CaptureError",
    "CaptureRequest",
    "CaptureState",
    "HostFloor",
    "Owner",
    "PlanError",
    "Refusal",
    "Ruleset",
    "Scope",
    "Table",
    "apply",
    "clear",
    "clear_but_doors",
    "plan",
    "show",
    "verify",
]
