"""The loopback address that stands for a workload whose programs call under their own identity.

The kernel sends a program's captured connection to Envoy's outbound port at the address of its workload; Envoy shows
the certificate that belongs to the address. It follows from the SPIFFE ID alone: were it given out, one that passes
from one identity to another could be read by rules and by Envoy in two ways for a moment.
"""

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

CALLERS_V4: Final = IPv4Network("127.128.0.0/10")
"""Always on the loopback interface; programs use 127.0.0.0/16 and the resolver's address is 127.240.240.53."""
CALLERS_V6: Final = IPv6Network("fd00:f0f1::/64")
"""Put on the loopback interface one by one by the agent."""


def caller_addresses(spiffe_id: str) -> tuple[IPv4Address, IPv6Address]:
    """Return the addresses that stand for an identity. Two have the same with a chance of one in four million."""
    digest = hashlib.sha256(spiffe_id.encode()).digest()
    # Neither first nor last address of the range, which some take for the network's own and everybody's.
    v4 = 1 + int.from_bytes(digest[:8], "big") % (CALLERS_V4.num_addresses - 2)
    return CALLERS_V4[v4], CALLERS_V6[1 + int.from_bytes(digest[8:15], "big")]


def distinct(spiffe_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return the identities, sorted, without those that share an address with another: neither may be the other's."""
    addresses: dict[object, list[str]] = {}
    for each in sorted(set(spiffe_ids)):
        for address in caller_addresses(each):
            addresses.setdefault(address, []).append(each)
    shared = {each for found in addresses.values() if len(found) > 1 for each in found}
    return tuple(each for each in sorted(set(spiffe_ids)) if each not in shared)
