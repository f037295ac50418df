"""Which host names Istio takes: names, short and full, and wildcards."""

import re
from ipaddress import ip_address, ip_network
from typing import Final

_LABEL: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_LABEL_MAX: Final = 63
_NAME_MAX: Final = 255
WILDCARD: Final = "*"


def is_label(value: str) -> bool:
    """Whether `value` is one part of a DNS name, in any case of letters."""
    return _LABEL.fullmatch(value) is not None


def check_domain(value: str) -> str:
    """Return `value` if it is a DNS name, short or full, perhaps with its final dot.

    Raises:
        ValueError: it is not.
    """
    parts = value.removesuffix(".").split(".")
    if not value or len(value) > _NAME_MAX or not all(is_label(part) for part in parts):
        raise ValueError(f"{value!r} is not a host name")
    if len(parts) > 1 and parts[-1].isdigit():
        raise ValueError(f"{value!r} is not a host name: its last part is only digits")
    return value


def check_wildcard_domain(value: str) -> str:
    """Return `value` if it is a DNS name, `*`, or a wildcard such as `*.example.com` or `*-api.example.com`.

    Raises:
        ValueError: it is none of them.
    """
    if value == WILDCARD:
        return value
    try:
        check_domain(value.removeprefix("*.") if value.startswith("*.") else value.removeprefix("*").removeprefix("-"))
        if value.startswith("-") or len(value.partition(".")[0]) > _LABEL_MAX:
            raise ValueError(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a host name (or a wildcard such as '*.example.com')") from None
    return value


def is_partial_wildcard(value: str) -> bool:
    """Whether a wildcard stands for a part of a label too, as in `*-api.example.com`."""
    return value.startswith(WILDCARD) and value != WILDCARD and not value.startswith("*.")


def is_ip(value: str) -> bool:
    """Whether `value` is an IPv4 or IPv6 address."""
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def check_subnet(value: str) -> str:
    """Return `value` if it is an IP address or a CIDR block; bits after the prefix may be set, as in 10.1.2.3/8.

    Raises:
        ValueError: it is neither.
    """
    try:
        ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"{value!r} is not an IP address or a CIDR block") from None
    if "/" in value and not value.rpartition("/")[2].isdigit():
        raise ValueError(f"{value!r} is not a CIDR block: write the length of the prefix, as in 10.0.0.0/8")
    return value
