"""Looks at how this host finds names: who is asked, and who answers."""

import secrets
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from hostmesh_agent import resolved
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.dns import Resolver
from hostmesh_agent.name_findings import NameFacts
from hostmesh_api import wire

ANSWERS_WITHIN_S: Final = 2.0
MAX_RESOLVERS: Final = 8
_DNS: Final = 53
_QUESTION: Final = b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01"
"""Who serves the root? (RFC 1035, behind the number of the question.) Every resolver has an answer."""


def look(config: AgentConfig, status: Mapping[str, Any]) -> tuple[NameFacts, list[str]]:
    """Return the facts, and the resolvers of resolv.conf that gave no answer."""
    resolver = Resolver(config.dns.resolv_conf, config.state_dir)
    said = status.get("dns")
    # An agent that runs follows the link by itself.
    changed_behind = "" if said else resolver.changed_behind()
    in_place = bool(said["in_place"]) if said else bool(changed_behind) or resolver.check().in_place
    wanted = in_place or bool(said and said["detail"] and config.dns.enabled and status["capture"]["state"] == "on")
    text = _text(config.dns.resolv_conf)
    facts = NameFacts(
        wanted=wanted,
        in_place=in_place,
        detail=said["detail"] if said else "",
        envoy_answers=not wanted or asked(wire.DNS_ADDRESS),
        front_answers=not wanted or _takes_tcp(wire.DNS_ADDRESS),
        resolv_conf=text,
        names_resolved=resolver.names_resolved(),
        nsswitch=_text(Path("/etc/nsswitch.conf")),
        resolved=resolved.runs(),
        changed_behind=changed_behind,
    )
    return facts, silent(text or "")


def silent(resolv_conf: str) -> list[str]:
    """Return the resolvers that the file names, without ours, of those that give no answer; all are asked at once."""
    words = [line.split() for line in resolv_conf.splitlines()]
    named = [each[1] for each in words if len(each) > 1 and each[0] == "nameserver" and each[1] != wire.DNS_ADDRESS]
    named = named[:MAX_RESOLVERS]
    if not named:
        return []
    with ThreadPoolExecutor(len(named)) as pool:
        return [name for name, answers in zip(named, pool.map(asked, named), strict=True) if not answers]


def asked(address: str, port: int = _DNS) -> bool:
    """Ask a resolver over UDP; return whether anything came back to this very question."""
    number = secrets.token_bytes(2)
    with suppress(OSError), socket.socket(_family(address), socket.SOCK_DGRAM) as asking:
        asking.settimeout(ANSWERS_WITHIN_S)
        asking.connect((address, port))
        asking.send(number + _QUESTION)
        return asking.recv(512)[:2] == number
    return False


def _takes_tcp(address: str) -> bool:
    try:
        socket.create_connection((address, _DNS), ANSWERS_WITHIN_S).close()
    except OSError:
        return False
    return True


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
