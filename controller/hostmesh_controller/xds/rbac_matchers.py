"""What a value of an AuthorizationPolicy is to Envoy: matchers of texts, headers, metadata and addresses."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from envoy.config.core.v3.address_pb2 import CidrRange
from envoy.config.rbac.v3.rbac_pb2 import Principal
from envoy.config.route.v3.route_components_pb2 import HeaderMatcher
from envoy.type.matcher.v3.metadata_pb2 import MetadataMatcher
from envoy.type.matcher.v3.regex_pb2 import RegexMatcher
from envoy.type.matcher.v3.string_pb2 import StringMatcher
from envoy.type.matcher.v3.value_pb2 import ListMatcher, OrMatcher, ValueMatcher
from google.protobuf.wrappers_pb2 import UInt32Value

from hostmesh_controller.model.authorization_terms import parse_block

JWT: Final = "envoy.filters.http.jwt_authn"
PAYLOAD: Final = "payload"
"""Under which key of its metadata the filter that verifies tokens leaves their claims."""
_SPECIAL: Final = re.compile(r"([\\.+*?()|\[\]{}^$])")


def quoted(text: str) -> str:
    """Return the regular expression of RE2 that takes a text alone."""
    return _SPECIAL.sub(r"\\\1", text)


def regex(expression: str) -> StringMatcher:
    return StringMatcher(safe_regex=RegexMatcher(regex=expression))


def text(value: str, *, ignore_case: bool = False) -> StringMatcher:
    """Return the matcher of a value: any that is not empty, a suffix, a prefix, or exact."""
    if value == "*":
        return regex(".+")
    if value.startswith("*"):
        return StringMatcher(suffix=value[1:], ignore_case=ignore_case)
    if value.endswith("*"):
        return StringMatcher(prefix=value[:-1], ignore_case=ignore_case)
    return StringMatcher(exact=value, ignore_case=ignore_case)


def principal(value: str) -> Principal:
    """Return the matcher of a principal as policies write it: without the scheme of its SPIFFE ID."""
    if value == "*" or not value.startswith("*"):
        return identity(text(value if value == "*" else f"spiffe://{value}"))
    return identity(regex(f"spiffe://.*{quoted(value[1:])}"))


def identity(name: StringMatcher) -> Principal:
    """Return the matcher of a caller's certificate; who has none has no such name."""
    return Principal(authenticated=Principal.Authenticated(principal_name=name))


def namespace(value: str) -> Principal:
    inside = ".*".join(quoted(part) for part in value.split("*"))
    return identity(regex(f".*/ns/{inside}/.*"))


def service_account(value: str, own_namespace: str) -> Principal:
    """Return the matcher of `NAMESPACE/NAME`, or of a name in the policy's own namespace."""
    owner, slash, name = value.partition("/")
    owner, name = (owner, name) if slash else (own_namespace, value)
    return identity(regex(f"spiffe://.+/ns/{quoted(owner)}/(.+/|)sa/{quoted(name)}(/.+)?"))


def trust_domain(value: str) -> Principal:
    if value == "*":
        return identity(StringMatcher(prefix="spiffe://"))
    if "*" not in value:
        return identity(StringMatcher(prefix=f"spiffe://{value}/"))
    before, _, after = value.partition("*")
    return identity(regex(f"spiffe://{quoted(before)}[^/]*{quoted(after)}/.*"))


def header(name: str, value: str, *, ignore_case: bool = False) -> HeaderMatcher:
    if value == "*":
        return HeaderMatcher(name=name, present_match=True)
    return HeaderMatcher(name=name, string_match=text(value, ignore_case=ignore_case))


def block(value: str) -> CidrRange:
    address, length = parse_block(value)
    return CidrRange(address_prefix=str(address), prefix_len=UInt32Value(value=length))


def metadata(filter_name: str, path: Sequence[str], value: ValueMatcher) -> MetadataMatcher:
    steps = [MetadataMatcher.PathSegment(key=key) for key in path]
    return MetadataMatcher(filter=filter_name, path=steps, value=value)


def filter_value(filter_name: str, key: str, values: Iterable[str]) -> MetadataMatcher:
    """Return the matcher of metadata that a filter left: a text, or (`[x]`) a list that holds one."""
    return metadata(filter_name, (key,), either([_listed_or_text(value) for value in values]))


def _listed_or_text(value: str) -> ValueMatcher:
    if value.startswith("[") and value.endswith("]"):
        return ValueMatcher(list_match=ListMatcher(one_of=ValueMatcher(string_match=text(value.strip("[]")))))
    return ValueMatcher(string_match=text(value))


def claim(path: Sequence[str], values: Iterable[str]) -> MetadataMatcher:
    """Return the matcher of a token's claim that is a text, or a list of texts."""
    one = either([ValueMatcher(string_match=text(value)) for value in values])
    listed = ValueMatcher(list_match=ListMatcher(one_of=one))
    return metadata(JWT, (PAYLOAD, *path), either([listed, one]))


def either(matchers: Sequence[ValueMatcher]) -> ValueMatcher:
    return matchers[0] if len(matchers) == 1 else ValueMatcher(or_match=OrMatcher(value_matchers=matchers))


def request_principal(value: str) -> Principal:
    """Return the matcher of `ISSUER/SUBJECT`, whose issuer may have slashes itself."""
    issuer, subject = _issuer_and_subject(value)
    both = (("iss", issuer), ("sub", subject))
    found = (metadata(JWT, (PAYLOAD, name), ValueMatcher(string_match=matcher)) for name, matcher in both)
    return Principal(and_ids=Principal.Set(ids=[Principal(metadata=each) for each in found]))


def _issuer_and_subject(value: str) -> tuple[StringMatcher, StringMatcher]:
    issuer, slash, subject = value.rpartition("/")
    if not slash:
        issuer, subject = value, ""
    if value == "*":
        return text("*"), text("*")
    if value.startswith("*"):
        return (text(issuer), StringMatcher(exact=subject)) if slash else (text("*"), text(value))
    if value.endswith("*"):
        beginning = text("*") if subject == "*" else StringMatcher(prefix=subject[:-1])
        return (StringMatcher(exact=issuer), beginning) if slash else (text(value), text("*"))
    return StringMatcher(exact=issuer), StringMatcher(exact=subject)
