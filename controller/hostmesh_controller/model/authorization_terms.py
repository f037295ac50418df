"""What the fields of an AuthorizationPolicy may hold: Istio's rules, and what Envoy would refuse beyond them."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Final

from pydantic import AfterValidator

from hostmesh_controller.model.patterns import check_one_line
from hostmesh_controller.model.schema import as_fault, fault

MATCH_ONE: Final = "{*}"
MATCH_ANY: Final = "{**}"
_SEGMENT: Final = re.compile(r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+")
"""RFC 3986's pchar without '*': Envoy refuses a listener that has another between the stars of a template."""
_BRACKETS: Final = re.compile(r"\[.+\]", re.DOTALL)
_NUMBER: Final = re.compile(r"[0-9]+")
ACCOUNTS_MAX: Final = 16
_ACCOUNT_MAX: Final = 320
_PORT_MAX: Final = 65535


def has_template(path: str) -> bool:
    """Tell whether a path has `{*}` or `{**}`; else its star, if any, is that of a prefix or suffix."""
    return MATCH_ONE in path or MATCH_ANY in path


def parse_block(value: str) -> tuple[IPv4Address | IPv6Address, int]:
    """Return the address and the length of its prefix; of an address without a length, all of it.

    Raises:
        ValueError: it is neither an address nor a block.
    """
    text, slash, length = value.partition("/")
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(_no_block(value)) from None
    if "%" in text:
        raise ValueError(_no_block(value))
    if not slash:
        return address, address.max_prefixlen
    # As in Go: no netmasks, no leading zeros.
    if not _NUMBER.fullmatch(length) or str(int(length)) != length or int(length) > address.max_prefixlen:
        raise ValueError(_no_block(value))
    return address, int(length)


def _no_block(value: str) -> str:
    return f"{value!r} is not an IP address or CIDR block, such as 10.1.2.3 or 10.1.0.0/16"


def _value(value: str) -> str:
    if not value:
        raise fault("empty", "must not be empty: leave the entry out, or write '*' for any value")
    with as_fault("value"):
        return check_one_line(value)


def _block(value: str) -> str:
    with as_fault("address"):
        parse_block(value)
    return value


def _port(value: str) -> str:
    if not _NUMBER.fullmatch(value) or int(value) > _PORT_MAX:
        raise fault("port", f"{value!r} is not a port: write a number such as '8080', in quotes")
    return value


def _path(value: str) -> str:
    with as_fault("path"):
        _check_path(value)
    return value


def _check_path(value: str) -> None:
    template = has_template(value)
    if template and not value.startswith("/"):
        raise ValueError(f"{value!r}: a path with {MATCH_ONE} or {MATCH_ANY} starts with '/'")
    ended = False
    for segment in value.strip("/").split("/"):
        if segment in {MATCH_ONE, MATCH_ANY}:
            if ended:
                raise ValueError(f"{value!r}: {MATCH_ANY} must be the last operator of a path")
            ended = segment == MATCH_ANY
            continue
        if "{" in segment or "}" in segment:
            raise ValueError(f"{value!r}: '{{' and '}}' are only for {MATCH_ONE} and {MATCH_ANY}, as whole segments")
        if template and not _SEGMENT.fullmatch(segment):
            raise ValueError(f"{value!r}: the segment {segment!r} is not plain text, which beside templates it must be")


def _account(value: str) -> str:
    with as_fault("service-account"):
        check_account(value)
    return value


def check_account(value: str) -> None:
    """Check the name of a service account, with its namespace or without.

    Raises:
        ValueError: it is neither SERVICEACCOUNT nor NAMESPACE/SERVICEACCOUNT.
    """
    if "*" in value:
        raise ValueError(f"{value!r}: a service account takes no '*'; use namespaces or principals")
    if len(value) > _ACCOUNT_MAX:
        raise ValueError(f"a service account may have {_ACCOUNT_MAX} characters at most")
    parts = value.split("/")
    if len(parts) > 2 or not all(parts):
        raise ValueError(f"{value!r} is not a service account: write NAME or NAMESPACE/NAME")


def _accounts(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(values) > ACCOUNTS_MAX:
        raise fault("too-long", f"at most {ACCOUNTS_MAX} allowed, found {len(values)}")
    return values


def check_trust_domain(value: str) -> None:
    """Check the pattern of a trust domain.

    Raises:
        ValueError: it has more than one star, or one in the middle.
    """
    if value.count("*") > 1 or ("*" in value and not value.startswith("*") and not value.endswith("*")):
        raise ValueError(f"{value!r}: a trust domain takes one '*', at its start or its end")


def _trust_domain(value: str) -> str:
    with as_fault("trust-domain"):
        check_trust_domain(value)
        if "/" in value:
            raise ValueError(f"{value!r}: a trust domain has no '/'")
    return value


Values = tuple[Annotated[str, AfterValidator(_value)], ...]
"""Each is exact, a prefix (`x*`), a suffix (`*x`), or any value (`*`)."""
Blocks = tuple[Annotated[str, AfterValidator(_value), AfterValidator(_block)], ...]
Ports = tuple[Annotated[str, AfterValidator(_value), AfterValidator(_port)], ...]
Paths = tuple[Annotated[str, AfterValidator(_value), AfterValidator(_path)], ...]
Accounts = Annotated[
    tuple[Annotated[str, AfterValidator(_value), AfterValidator(_account)], ...], AfterValidator(_accounts)
]
TrustDomains = tuple[Annotated[str, AfterValidator(_value), AfterValidator(_trust_domain)], ...]

REQUEST_HEADERS: Final = "request.headers"
CLAIMS: Final = "request.auth.claims"
FILTERS: Final = "experimental.envoy.filters."
_BRACKETED: Final = (REQUEST_HEADERS, CLAIMS, FILTERS)
PLAIN_KEYS: Final = (
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.serviceAccount",
    "source.trustDomain",
    "source.principal",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
)
"""Attributes of conditions that need no brackets."""
KEYS: Final = (*PLAIN_KEYS, REQUEST_HEADERS, CLAIMS, FILTERS)
_GONE: Final = {
    "destination.namespace": "the policy's own namespace says it",
    "destination.labels": "use the policy's selector",
    "destination.name": "use the policy's selector",
    "destination.user": "use the policy's selector",
}


def key_family(key: str) -> str | None:
    """Return which attribute a condition's key is: itself, or what stands before the brackets; None if it is none."""
    if key in PLAIN_KEYS:
        return key
    for family in _BRACKETED:
        rest = key.removeprefix(family)
        if key.startswith(family) and (family == FILTERS or rest.startswith("[")):
            opened = key.find("[")
            return family if opened > 0 and _BRACKETS.fullmatch(key[opened:]) else None
    return None


def key_fault(key: str) -> str:
    """Return what is wrong with the key of a condition that is of no attribute."""
    name = key.partition("[")[0]
    if name in _GONE:
        return f"{key!r} is no attribute any more: {_GONE[name]}"
    for family in _BRACKETED:
        if key.partition("[")[0] == family or (family == FILTERS and key.startswith(family)):
            return f"{key!r}: write {family.removesuffix('.')}{'.NAME' if family == FILTERS else ''}[KEY]"
    return ""


VALUE_CHECKS: Final[dict[str, Callable[[str], object]]] = {
    "source.ip": parse_block,
    "remote.ip": parse_block,
    "destination.ip": parse_block,
    "destination.port": _port,
    "source.serviceAccount": check_account,
    "source.trustDomain": check_trust_domain,
}
"""What the values of some attributes must be besides text."""


def claims_of(key: str) -> tuple[str, ...]:
    """Return the steps to a claim: `[a][b]` after the attribute are two, of anything else all inside is one name."""
    inside = key.removeprefix(CLAIMS)
    if re.fullmatch(r"(\[[^\[\]]*\])+", inside):
        return tuple(inside[1:-1].split("]["))
    return (inside[1:-1],)


def name_in_brackets(key: str, family: str) -> str:
    """Return the name of a header."""
    return key.removeprefix(family)[1:-1]


def filter_and_key(key: str) -> tuple[str, str]:
    """Return the filter and the key of the dynamic metadata that an experimental attribute means."""
    name, _, rest = key.removeprefix("experimental.").removesuffix("]").partition("[")
    return name, rest
