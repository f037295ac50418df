"""The rules for questions about names and for their answers. Pure.

Two addresses lead to the same table in Envoy, and differ in what "no such name" is to who asks:

    wire.DNS_ADDRESS        one of several resolvers in resolv.conf: "not mine, ask the next one" (REFUSED)
    wire.SPLIT_DNS_ADDRESS  the only one that systemd-resolved asks about the mesh's domain: the truth (NXDOMAIN)

Envoy's DNS filter can only say NXDOMAIN, and NOTIMP to types that it does not know; the kernel says the rest. Questions
over TCP go to the agent, which asks Envoy: see `dns_front`.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final

from hostmesh_agent.capture import expressions as words
from hostmesh_agent.capture.rules import Rule
from hostmesh_api import wire

UNANSWERED: Final = "unanswered_ports"
"""Set: 53 while questions of programs are not put to Envoy, or nothing."""
DNS_PORT: Final = 53
_DNS: Final = DNS_PORT
_ENVOY: Final = IPv4Address("127.0.0.1")
_AMONG_OTHERS: Final = IPv4Address(wire.DNS_ADDRESS)
_SPLIT: Final = IPv4Address(wire.SPLIT_DNS_ADDRESS)


def questions(dns_port: int) -> Iterator[Rule]:
    """Yield the rules of the output chain that lead questions to Envoy, which listens on `dns_port`, or to the agent.

    Nobody listens there: the port is closed, and the resolver hears it at once.
    """
    for address, comment in ((_AMONG_OTHERS, "mesh names"), (_SPLIT, "mesh names, from systemd-resolved")):
        to_us = (*words.family(4), *words.to_address(address))
        yield Rule((*to_us, *words.udp_port(_DNS), *words.redirect(dns_port)), comment)
        yield Rule((*to_us, *words.tcp_port(_DNS), *words.redirect(wire.DNS_TCP_PORT)), f"{comment}, over TCP")


def unanswered() -> Iterator[Rule]:
    """Yield the rules that fail questions of programs while there is no Envoy: then the set has the port.

    A closed port tells who asks, too, but once: a program that puts two questions from one socket (c-ares) gets the
    error of the first with the second, and waits 5 s for an answer to the first. What is taken away here fails each
    by itself, and needs no answer where an Envoy hangs. systemd-resolved, whose address is another one, goes on by
    itself.
    """
    yield Rule(
        (*words.family(4), *words.to_address(_AMONG_OTHERS), *words.udp_port_in(UNANSWERED), *words.DROP),
        "there is no Envoy: ask the next resolver",
    )


def answers(dns_port: int) -> Iterator[Rule]:
    """Yield the rules that say in Envoy's place what Envoy cannot say."""
    of_envoy = (*words.family(4), *words.from_address(_ENVOY), *words.udp_source_port(dns_port))
    yield Rule(
        (*of_envoy, *words.asked_of(_AMONG_OTHERS), *words.no_such_name_becomes_refused()),
        "not a mesh name: ask the next resolver",
    )
    yield Rule(
        (*of_envoy, *words.asked_of(_SPLIT), *words.unknown_type_becomes_no_data()),
        "there is nothing of this type",
    )
