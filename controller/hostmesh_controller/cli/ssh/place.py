"""Where a host is reached by SSH."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}\$?")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Place:
    """`user@address:port`."""

    user: str
    address: str
    port: int = 22

    def __str__(self) -> str:
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.user}@{address}" + (f":{self.port}" if self.port != 22 else "")

    @property
    def known_as(self) -> str:
        """Its name in a known_hosts file."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    @property
    def ip(self) -> str | None:
        """Its address, where it was given as one."""
        try:
            return str(ipaddress.ip_address(self.address))
        except ValueError:
            return None


def read_place(text: str) -> Place:
    """Read `user@address[:port]`; an IPv6 address with a port is written in brackets.

    Raises:
        ValueError: it is none.
    """
    user, at, rest = text.rpartition("@")
    if not at or not _USER.fullmatch(user):
        raise ValueError(f"'{text}' is not user@address[:port], such as root@10.0.0.7 or admin@[fd00::7]:2222")
    if rest.startswith("["):
        address, _, after = rest[1:].partition("]")
        port = after.removeprefix(":") if after else "22"
    elif rest.count(":") > 1:
        address, port = rest, "22"
    else:
        address, colon, port = rest.partition(":")
        port = port if colon else "22"
    is_address = _HOST.fullmatch(address) or (":" in address and _is_ip(address))
    if not is_address or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise ValueError(f"'{text}' is not user@address[:port], such as root@10.0.0.7 or admin@[fd00::7]:2222")
    return Place(user, address, int(port))


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
