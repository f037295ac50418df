"""Which addresses may be dialled because a configuration names a URL, and which may not.

Whoever may write a URL into a configuration must not thereby speak to what answers this machine alone: its own
services, the metadata service of its cloud. Names say nothing, so addresses are judged, after names were looked up.
Everything is a list of blocks, so that a process without our code can be told it too.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_REFUSED: Final = {
    "0.0.0.0/8": "this machine",
    "::/128": "this machine",
    "127.0.0.0/8": "loopback",
    "::1/128": "loopback",
    "169.254.0.0/16": "link-local",
    "fe80::/10": "link-local",
    "224.0.0.0/4": "multicast",
    "ff00::/8": "multicast",
    "255.255.255.255/32": "broadcast",
    # Metadata services of clouds that are not link-local: AWS, Google, Alibaba, Azure, Oracle.
    "fd00:ec2::254/128": "the metadata service of a cloud",
    "fd20:ce::254/128": "the metadata service of a cloud",
    "100.100.100.200/32": "the metadata service of a cloud",
    "168.63.129.16/32": "the metadata service of a cloud",
    "192.0.0.192/32": "the metadata service of a cloud",
}
_EMBEDDINGS: Final = (("::", 96), ("::ffff:0:0", 96), ("64:ff9b::", 96), ("2002::", 16))
"""Where an IPv4 address is written inside of an IPv6 one (the start, and after how many bits it begins): compatible,
mapped, NAT64, 6to4. Which of them leads there depends on the machine; none is a way round."""


def _spellings(block: Network) -> Iterator[Network]:
    """Yield a block, and the IPv6 blocks through which an IPv4 one may be reached."""
    yield block
    if isinstance(block, IPv4Network):
        for start, before in _EMBEDDINGS:
            value = int(IPv6Address(start)) | int(block.network_address) << (128 - before - 32)
            yield IPv6Network((value, before + block.prefixlen))


def parse_blocks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Read blocks such as 127.0.0.0/8; an address alone is a block of one.

    Raises:
        ValueError: one is none, or has host bits set.
    """
    return tuple(ip_network(text) for text in texts)


@dataclass(frozen=True, slots=True)
class DialPolicy:
    """What may be dialled: everything but what is refused, unless an operator allows a block of it."""

    allowed: tuple[Network, ...] = ()

    def refusal(self, address: str) -> str:
        """Return what is wrong with dialling an address (without zone), "" if nothing is."""
        found = ip_address(address)
        if any(found in block for each in self.allowed for block in _spellings(each)):
            return ""
        for text, what in _REFUSED.items():
            if any(found in block for block in _spellings(ip_network(text))):
                return what
        return ""

    def as_arguments(self) -> tuple[str, str]:
        """Return the allowed and the refused blocks, each list joined by commas."""
        refused = [block for text in _REFUSED for block in _spellings(ip_network(text))]
        allowed = [block for each in self.allowed for block in _spellings(each)]
        return ",".join(map(str, allowed)), ",".join(map(str, refused))
