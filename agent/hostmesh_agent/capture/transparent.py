"""The rules with which a program sees the address of who calls, and not that of Envoy (Istio's TPROXY). Pure.

    client ──▶ Envoy's inbound port          as ever: the destination changes, the source stays
    Envoy  ──▶ the program                   from the client's address, with a mark (Envoy's `original_src`)
    program ─▶ "the client"                  must come back to Envoy, and not leave the host

Three chains, and beside them a routing rule for the mark (`marked`):

    client_calls     gives Envoy's connection a zone of its own in connection tracking, in its own direction. To the
                     kernel it comes from the client and goes to the program, as the client's does: with the same port
                     by chance it would be taken for that one. The mark goes: the way to the program is the usual one.
    client_answers   marks what a program of this host answers, which is routed anew by that
    client_returns   the same of a program that is behind this host (a container with an address of its own)

Why not the kernel's `tproxy` for the first step: Envoy's socket would have the very addresses and ports that the
program's has, and where a port is the same by chance one of the two connections could not be. As it is none can clash.
"""

from typing import Final

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.rules import Chain, Hook, Rule
from hostmesh_api.wire import CLIENT_MARK

BEFORE_TRACKING: Final = -300  # "raw"; connection tracking is at -200
BEHIND_TRACKING: Final = -150  # "mangle"
OF_CLIENTS: Final[words.Words] = words.in_zone(CLIENT_MARK)
"""Envoy's connections that bear a client's address, in both directions."""


def chains() -> tuple[Chain, ...]:
    calls = Rule((*words.marked(CLIENT_MARK), *words.set_zone(CLIENT_MARK), *words.set_mark(0)), "Envoy, for a client")
    answers = Rule(
        (*words.answers(), *OF_CLIENTS, *words.set_mark(CLIENT_MARK)), "to Envoy, which has the client's address"
    )
    return (
        Chain("client_calls", "filter", Hook.OUTPUT, BEFORE_TRACKING, (calls,)),
        Chain("client_answers", "route", Hook.OUTPUT, BEHIND_TRACKING, (answers,)),
        Chain("client_returns", "filter", Hook.PREROUTING, BEHIND_TRACKING, (answers,)),
    )
