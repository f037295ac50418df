"""Addresses of a lab: 10.201.N.0/24 and fd10:201:N::/64, the world at .1, root's shell at .254, hosts between."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

GATEWAY: Final = 1
SHELL: Final = 254
FIRST_HOST: Final = 2
LAST_HOST: Final = 253
_COUNT: Final = 256


@dataclass(frozen=True, slots=True)
class Subnet:
    """Lab number N's addresses; `index` is the last part of an address."""

    number: int

    @property
    def v4(self) -> IPv4Network:
        return IPv4Network(f"10.201.{self.number}.0/24")

    @property
    def v6(self) -> IPv6Network:
        # Read, not computed: the digits people see are those of the IPv4 network.
        return IPv6Network(f"fd10:201:{self.number}::/64")

    def address(self, index: int) -> str:
        return str(self.v4[index])

    def address6(self, index: int) -> str:
        return f"fd10:201:{self.number}::{index}"

    def mac(self, index: int) -> str:
        """A locally administered address that a host keeps over its restarts."""
        return f"02:c9:0a:c9:{self.number:02x}:{index:02x}"


def free_numbers(routes: Iterable[str]) -> list[int]:
    """Numbers whose networks overlap none of the machine's routes (CIDR blocks), lowest first."""
    taken = [ip_network(route, strict=False) for route in routes]
    return [
        number
        for number in range(1, _COUNT)
        if not any(
            network.overlaps(route)
            for network in (Subnet(number).v4, Subnet(number).v6)
            for route in taken
            if route.version == network.version and route.prefixlen > 0
        )
    ]
