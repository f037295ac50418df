"""One rule of an AuthorizationPolicy as Envoy's RBAC policy, as Istio translates it.

What asks for HTTP has no meaning for bare connections. There an ALLOW rule that does is left out, so that it allows
nothing; of other rules the condition is left out, so that they hold for more.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, TypeVar

from envoy.config.core.v3.extension_pb2 import TypedExtensionConfig
from envoy.config.rbac.v3.rbac_pb2 import Permission, Policy, Principal
from envoy.extensions.path.match.uri_template.v3.uri_template_match_pb2 import UriTemplateMatchConfig
from envoy.type.matcher.v3.path_pb2 import PathMatcher

from hostmesh_controller.model.authorization_policy import Condition, Operation, Rule, Source
from hostmesh_controller.model.authorization_terms import (
    CLAIMS,
    FILTERS,
    MATCH_ANY,
    MATCH_ONE,
    REQUEST_HEADERS,
    claims_of,
    filter_and_key,
    has_template,
    key_family,
    name_in_brackets,
)
from hostmesh_controller.xds import rbac_matchers as matchers
from hostmesh_controller.xds.encoding import any_of
from hostmesh_controller.xds.trust_domains import TrustDomains

T = TypeVar("T", Permission, Principal)
Values = tuple[str, ...]
NEVER: Final = Policy(
    permissions=[Permission(not_rule=Permission(any=True))], principals=[Principal(not_id=Principal(any=True))]
)
"""The policy that no request matches."""


@dataclass(frozen=True, slots=True)
class _Term(Generic[T]):
    """What one field asks for: one of `values`, and none of `not_values`."""

    values: Values
    not_values: Values
    matcher: Callable[[Values], T]
    http_only: bool = False


def policy_of(rule: Rule, namespace: str, domains: TrustDomains, *, for_tcp: bool, is_allow: bool) -> Policy | None:
    """Return what a rule of a policy in `namespace` is to Envoy; None if the rule is left out."""
    conditions = list(_conditions(rule.when, namespace, domains))
    of_request = [term for term, _ in conditions if term is not None]
    of_caller = [term for _, term in conditions if term is not None]
    permissions = [[*_operation(each.operation), *of_request] for each in rule.to or ()] or [of_request]
    principals = [[*_source(each.source, namespace, domains), *of_caller] for each in rule.from_ or ()] or [of_caller]
    http_only = any(term.http_only for group in permissions for term in group)
    http_only |= any(term.http_only for group in principals for term in group)
    if for_tcp and is_allow and http_only:
        return None
    return Policy(
        permissions=[_all_permissions(group, for_tcp=for_tcp) for group in permissions],
        principals=[_all_principals(group, for_tcp=for_tcp) for group in principals],
    )


def _all_permissions(terms: Iterable[_Term[Permission]], *, for_tcp: bool) -> Permission:
    found = _matchers(terms, lambda each: Permission(not_rule=each), for_tcp=for_tcp)
    return Permission(and_rules=Permission.Set(rules=found or [Permission(any=True)]))


def _all_principals(terms: Iterable[_Term[Principal]], *, for_tcp: bool) -> Principal:
    found = _matchers(terms, lambda each: Principal(not_id=each), for_tcp=for_tcp)
    return Principal(and_ids=Principal.Set(ids=found or [Principal(any=True)]))


def _matchers(terms: Iterable[_Term[T]], negated: Callable[[T], T], *, for_tcp: bool) -> list[T]:
    """Return what must all hold."""
    found: list[T] = []
    for term in terms:
        if term.http_only and for_tcp:
            continue
        if term.values:
            found.append(term.matcher(term.values))
        if term.not_values:
            found.append(negated(term.matcher(term.not_values)))
    return found


def _any_permission(make: Callable[[str], Permission], values: Values) -> Permission:
    return Permission(or_rules=Permission.Set(rules=[make(value) for value in values]))


def _any_principal(make: Callable[[str], Principal], values: Values) -> Principal:
    return Principal(or_ids=Principal.Set(ids=[make(value) for value in values]))


def _operation(operation: Operation) -> Iterator[_Term[Permission]]:
    yield from _asked(operation.hosts, operation.not_hosts, partial(_any_permission, _host), http_only=True)
    yield from _asked(operation.methods, operation.not_methods, partial(_any_permission, _method), http_only=True)
    yield from _asked(operation.paths, operation.not_paths, partial(_any_permission, _path), http_only=True)
    yield from _asked(operation.ports, operation.not_ports, partial(_any_permission, _port))


def _source(source: Source, namespace: str, domains: TrustDomains) -> Iterator[_Term[Principal]]:
    account = partial(matchers.service_account, own_namespace=namespace)
    yield from _asked(
        domains.principals(source.principals), domains.principals(source.not_principals), _each(matchers.principal)
    )
    yield from _asked(source.request_principals, source.not_request_principals, _request_principals, http_only=True)
    yield from _asked(source.service_accounts, source.not_service_accounts, _each(account))
    yield from _asked(
        domains.domains(source.trust_domains),
        domains.domains(source.not_trust_domains),
        _each(matchers.trust_domain),
    )
    yield from _asked(source.namespaces, source.not_namespaces, _each(matchers.namespace))
    yield from _asked(source.remote_ip_blocks, source.not_remote_ip_blocks, _each(_remote_ip))
    yield from _asked(source.ip_blocks, source.not_ip_blocks, _each(_source_ip))


def _asked(
    values: Values, not_values: Values, matcher: Callable[[Values], T], *, http_only: bool = False
) -> Iterator[_Term[T]]:
    if values or not_values:
        yield _Term(values, not_values, matcher, http_only)


def _each(make: Callable[[str], Principal]) -> Callable[[Values], Principal]:
    return partial(_any_principal, make)


def _conditions(
    conditions: Iterable[Condition], namespace: str, domains: TrustDomains
) -> Iterator[tuple[_Term[Permission] | None, _Term[Principal] | None]]:
    """Yield each condition as a term of the request or of the caller."""
    for each in conditions:
        of_request = _request_term(each)
        yield of_request, None if of_request is not None else _caller_term(each, namespace, domains)


def _request_term(condition: Condition) -> _Term[Permission] | None:
    values, not_values = condition.values, condition.not_values
    match key_family(condition.key):
        case "destination.ip":
            return _Term(values, not_values, partial(_any_permission, _destination_ip))
        case "destination.port":
            return _Term(values, not_values, partial(_any_permission, _port))
        case "connection.sni":
            return _Term(values, not_values, partial(_any_permission, _server_name))
        case family if family == FILTERS:
            name, key = filter_and_key(condition.key)
            return _Term(values, not_values, lambda given: Permission(metadata=matchers.filter_value(name, key, given)))
    return None


def _caller_term(condition: Condition, namespace: str, domains: TrustDomains) -> _Term[Principal]:
    values, not_values = condition.values, condition.not_values
    family = key_family(condition.key)
    if family == "source.principal":
        values, not_values = domains.principals(values), domains.principals(not_values)
    elif family == "source.trustDomain":
        values, not_values = domains.domains(values), domains.domains(not_values)
    plain: dict[str, Callable[[str], Principal]] = {
        "source.ip": _source_ip,
        "remote.ip": _remote_ip,
        "source.namespace": matchers.namespace,
        "source.trustDomain": matchers.trust_domain,
        "source.serviceAccount": partial(matchers.service_account, own_namespace=namespace),
        "source.principal": matchers.principal,
    }
    if family in plain:
        return _Term(values, not_values, _each(plain[family]))
    return _Term(values, not_values, _http_matcher(condition.key, family), http_only=True)


def _http_matcher(key: str, family: str | None) -> Callable[[Values], Principal]:
    if family == "request.auth.principal":
        return _request_principals
    if family == REQUEST_HEADERS:
        name = name_in_brackets(key, REQUEST_HEADERS)
        return _each(lambda value: Principal(header=matchers.header(name, value)))
    listed = {"request.auth.audiences": ("aud",), "request.auth.presenter": ("azp",)}
    path = claims_of(key) if family == CLAIMS else listed[family or ""]
    return lambda values: Principal(metadata=matchers.claim(path, values))


def _request_principals(values: Values) -> Principal:
    found = [matchers.request_principal(value) for value in values]
    return found[0] if len(found) == 1 else Principal(or_ids=Principal.Set(ids=found))


def _host(value: str) -> Permission:
    return Permission(header=matchers.header(":authority", value, ignore_case=True))


def _method(value: str) -> Permission:
    return Permission(header=matchers.header(":method", value))


def _path(value: str) -> Permission:
    if not has_template(value):
        return Permission(url_path=PathMatcher(path=matchers.text(value)))
    template = value.replace(MATCH_ONE, "*").replace(MATCH_ANY, "**")
    config = any_of(UriTemplateMatchConfig(path_template=template))
    return Permission(uri_template=TypedExtensionConfig(name="uri-template", typed_config=config))


def _port(value: str) -> Permission:
    return Permission(destination_port=int(value))


def _destination_ip(value: str) -> Permission:
    return Permission(destination_ip=matchers.block(value))


def _server_name(value: str) -> Permission:
    return Permission(requested_server_name=matchers.text(value))


def _source_ip(value: str) -> Principal:
    return Principal(direct_remote_ip=matchers.block(value))


def _remote_ip(value: str) -> Principal:
    return Principal(remote_ip=matchers.block(value))
