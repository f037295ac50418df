"""Whether the rules of an RBAC filter hold for an attempt, and what is in the way if they do not: as Envoy judges."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.rbac.v3.rbac_pb2 import RBAC, Permission, Policy, Principal
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.extensions.path.match.uri_template.v3.uri_template_match_pb2 import UriTemplateMatchConfig
from envoy.type.matcher.v3.metadata_pb2 import MetadataMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from envoy.type.matcher.v3.value_pb2 import ValueMatcher

from hostmesh_controller.explain.attempt import Attempt
from hostmesh_controller.explain.routing import text_holds

_NAMES: Final = {":authority": "host", ":method": "method", ":path": "path"}
_ONE: Final = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]+"
_MANY: Final = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=/]*"
"""What Envoy's URI templates take for `*` and `**`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether something holds: what was found, and what was asked for."""

    holds: bool
    found: str
    wanted: str

    @property
    def text(self) -> str:
        return f"{self.found}; asked for: {self.wanted}"


@dataclass(frozen=True, slots=True)
class Judged:
    """One policy of a filter, by Envoy's name of it; `why` tells what is in its way."""

    policy: str
    holds: bool
    why: str = ""


def judge(rules: RBAC, attempt: Attempt) -> tuple[Judged, ...]:
    """Return what becomes of each policy, in the order in which Envoy looks; the first that holds decides."""
    return tuple(_policy(name, rules.policies[name], attempt) for name in sorted(rules.policies, key=str.encode))


def _policy(name: str, policy: Policy, attempt: Attempt) -> Judged:
    asked = [permission(each, attempt) for each in policy.permissions]
    callers = [principal(each, attempt) for each in policy.principals]
    for group in (asked, callers):
        if not any(each.holds for each in group):
            return Judged(name, holds=False, why=" | ".join(dict.fromkeys(each.text for each in group)))
    return Judged(name, holds=True)


def permission(wanted: Permission, attempt: Attempt) -> Finding:
    """Return whether what is asked for is what a rule means."""
    match wanted.WhichOneof("rule"):
        case "and_rules":
            return _all(permission(each, attempt) for each in wanted.and_rules.rules)
        case "or_rules":
            return _any([permission(each, attempt) for each in wanted.or_rules.rules])
        case "not_rule":
            return _not(permission(wanted.not_rule, attempt))
        case "header":
            return _header(wanted.header, attempt)
        case "url_path":
            return _path(wanted.url_path.path, attempt)
        case "uri_template":
            return _template(wanted.uri_template, attempt)
        case "destination_ip":
            return _address("destination address", attempt.address, wanted.destination_ip)
        case "destination_port":
            holds = attempt.port == wanted.destination_port
            return Finding(holds, f"port is {attempt.port}", str(wanted.destination_port))
        case "requested_server_name":
            return _text("server name", attempt.server_name, wanted.requested_server_name)
        case "metadata":
            return _metadata(wanted.metadata, attempt)
        case "any":
            return _anything()
    return _unknown(wanted.WhichOneof("rule"))


def principal(wanted: Principal, attempt: Attempt) -> Finding:
    """Return whether the caller is one whom a rule means."""
    match wanted.WhichOneof("identifier"):
        case "and_ids":
            return _all(principal(each, attempt) for each in wanted.and_ids.ids)
        case "or_ids":
            return _any([principal(each, attempt) for each in wanted.or_ids.ids])
        case "not_id":
            return _not(principal(wanted.not_id, attempt))
        case "authenticated":
            return _identity(wanted.authenticated, attempt)
        case "direct_remote_ip":
            return _address("source address", attempt.source, wanted.direct_remote_ip)
        case "remote_ip":
            return _address("remote address", attempt.remote or attempt.source, wanted.remote_ip)
        case "header":
            return _header(wanted.header, attempt)
        case "metadata":
            return _metadata(wanted.metadata, attempt)
        case "any":
            return _anything()
    return _unknown(wanted.WhichOneof("identifier"))


def _anything() -> Finding:
    return Finding(True, "anything", "anything")


def _unknown(kind: str | None) -> Finding:
    # An EnvoyFilter may have put it there; it is not said to hold.
    return Finding(False, "this cannot be judged here", kind or "nothing")


def _all(findings: Iterable[Finding]) -> Finding:
    result = _anything()
    for each in findings:
        if not each.holds:
            return each
        result = each if result.found == "anything" else result
    return result


def _any(findings: Sequence[Finding]) -> Finding:
    for each in findings:
        if each.holds:
            return each
    found = " and ".join(dict.fromkeys(each.found for each in findings))
    return Finding(False, found, " or ".join(dict.fromkeys(each.wanted for each in findings)))


def _not(inner: Finding) -> Finding:
    return Finding(not inner.holds, inner.found, f"anything but {inner.wanted}")


def _text(what: str, value: str | None, matcher: StringMatcher) -> Finding:
    holds = value is not None and text_holds(matcher, value)
    return Finding(holds, f"{what} is {value!r}" if value is not None else f"there is no {what}", _pattern(matcher))


def _pattern(matcher: StringMatcher) -> str:
    match matcher.WhichOneof("match_pattern"):
        case "prefix":
            return f"{matcher.prefix}*"
        case "suffix":
            return f"*{matcher.suffix}"
        case "safe_regex":
            return "any" if matcher.safe_regex.regex == ".+" else f"~{matcher.safe_regex.regex}"
    return repr(matcher.exact)


def _identity(wanted: Principal.Authenticated, attempt: Attempt) -> Finding:
    pattern = _pattern(wanted.principal_name)
    if attempt.identity is None:
        return Finding(False, "the caller shows no certificate", pattern)
    return _text("principal", attempt.identity, wanted.principal_name)


def _header(matcher: HeaderMatcher, attempt: Attempt) -> Finding:
    value = attempt.request.header(matcher.name) if attempt.request is not None else None
    what = _NAMES.get(matcher.name, f"header {matcher.name}")
    if matcher.WhichOneof("header_match_specifier") == "present_match":
        found = f"{what} is {value!r}" if value is not None else f"there is no {what}"
        return Finding((value is not None) == matcher.present_match, found, "any")
    return _text(what, value, matcher.string_match)


def _path(matcher: StringMatcher, attempt: Attempt) -> Finding:
    return _text("path", _plain_path(attempt), matcher)


def _plain_path(attempt: Attempt) -> str | None:
    return None if attempt.request is None else re.split("[?#]", attempt.request.path, maxsplit=1)[0]


def _template(wanted: TypedExtensionConfig, attempt: Attempt) -> Finding:
    config, path = UriTemplateMatchConfig(), _plain_path(attempt)
    if not wanted.typed_config.Unpack(config):
        return _unknown(wanted.name)
    holds = path is not None and re.fullmatch(_expression(config.path_template), path) is not None
    found = f"path is {path!r}" if path is not None else "there is no path"
    return Finding(holds, found, config.path_template)


def _expression(template: str) -> str:
    parts = {"*": _ONE, "**": _MANY}
    return "/".join(parts.get(each, re.escape(each)) for each in template.split("/"))


def _address(what: str, value: str, wanted: CidrRange) -> Finding:
    block = ip_network(f"{wanted.address_prefix}/{wanted.prefix_len.value}", strict=False)
    if not value:
        return Finding(False, f"the {what} is not known", str(block))
    return Finding(ip_address(value) in block, f"{what} is {value}", str(block))


def _metadata(matcher: MetadataMatcher, attempt: Attempt) -> Finding:
    value: Any = attempt.metadata.get(matcher.filter)
    for step in matcher.path:
        value = value.get(step.key) if isinstance(value, Mapping) else None
    name = ".".join(step.key for step in matcher.path)
    found = f"{name} is {value!r}" if value is not None else f"there is no {name} of a verified token"
    return Finding(_value(matcher.value, value), found, _value_pattern(matcher.value))


def _value(matcher: ValueMatcher, value: Any) -> bool:
    match matcher.WhichOneof("match_pattern"):
        case "string_match":
            return isinstance(value, str) and text_holds(matcher.string_match, value)
        case "list_match":
            return isinstance(value, list) and any(_value(matcher.list_match.one_of, each) for each in value)
        case "or_match":
            return any(_value(each, value) for each in matcher.or_match.value_matchers)
    return False


def _value_pattern(matcher: ValueMatcher) -> str:
    match matcher.WhichOneof("match_pattern"):
        case "string_match":
            return _pattern(matcher.string_match)
        case "list_match":
            return _value_pattern(matcher.list_match.one_of)
        case "or_match":
            return " or ".join(dict.fromkeys(_value_pattern(each) for each in matcher.or_match.value_matchers))
    return "something else"
