"""RateLimit: conditions and values as expressions (CEL) over Envoy's attributes.

Source: https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/advanced/attributes
"""

import json
import re
from collections.abc import Iterable
from typing import Final

from hostmesh_controller.model.rate_limit import LimitMatch, Per, PerValue
from hostmesh_controller.model.virtual_service import StringMatch

_IDENTITY: Final = "connection.uri_san_peer_certificate"
_VALUES: Final = {
    # Without mutual TLS all callers are one: else leaving it would be the way round the limit.
    "identity": f'(connection.mtls ? {_IDENTITY} : "anonymous")',
    "path": "request.url_path",
    "method": "request.method",
    "host": "request.host",
}
_NO_RESULT: Final = "1 / 0"
"""An expression that fails: Envoy then leaves the whole descriptor out, and the limit does not apply."""


def condition(rule: str, matches: Iterable[LimitMatch]) -> str:
    """Return the expression that is the rule's name where one of the matches holds, and fails elsewhere."""
    any_of = " || ".join(f"({_match(each)})" for each in matches)
    return f"({any_of}) ? {_text(rule)} : {_NO_RESULT}" if any_of else _text(rule)


def value(per: Per) -> str | None:
    """Return the expression of what has a bucket of its own; None for the source address, which has no expression.

    What a request does not have counts as "": leaving out the header is no way round the limit.
    """
    if isinstance(per, PerValue):
        if per.header is not None:
            name = _text(per.header.lower())
            return f'({name} in request.headers ? request.headers[{name}] : "")'
        return None
    return _VALUES.get(per)


def _match(match: LimitMatch) -> str:
    parts = [
        _any(_holds("request.url_path", each) for each in match.paths),
        f"request.method in {json.dumps(list(match.methods))}" if match.methods else "",
        _any(f"request.host.matches({_text(_host_pattern(each))})" for each in match.hosts),
        *(_header(name.lower(), wanted) for name, wanted in sorted(match.headers.items())),
        _any(f"connection.mtls && {_IDENTITY}.matches({_text(_identity_pattern(each))})" for each in match.identities),
    ]
    return " && ".join(f"({part})" for part in parts if part) or "true"


def _any(parts: Iterable[str]) -> str:
    return " || ".join(f"({part})" for part in parts)


def _header(name: str, wanted: StringMatch) -> str:
    there = f"{_text(name)} in request.headers"
    holds = _holds(f"request.headers[{_text(name)}]", wanted)
    return there if holds == "true" else f"{there} && {holds}"


def _holds(subject: str, wanted: StringMatch) -> str:
    if wanted.exact is not None:
        return f"{subject} == {_text(wanted.exact)}"
    if wanted.prefix is not None:
        return f"{subject}.startsWith({_text(wanted.prefix)})"
    if wanted.regex is not None:
        return f"{subject}.matches({_text(f'^(?:{wanted.regex})$')})"
    return "true"


def _host_pattern(host: str) -> str:
    """Return the pattern of a host header: in any case, with or without a port; `*` is any text."""
    return rf"(?i)^{re.escape(host).replace(re.escape('*'), '.*')}(:[0-9]+)?$"


def _identity_pattern(identity: str) -> str:
    full = identity if "://" in identity else "spiffe://*/ns/{}/sa/{}".format(*identity.split("/"))
    return f"^{re.escape(full).replace(re.escape('*'), '[^/]+')}$"


def _text(text: str) -> str:
    """Return a text as CEL writes it; JSON's escapes are CEL's too."""
    return json.dumps(text)
