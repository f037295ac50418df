"""RequestAuthentication: whose tokens a workload takes, and where it finds them."""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from hostmesh_controller.model.jwks import JwksError, read_jwks
from hostmesh_controller.model.patterns import check_header_name, check_one_line
from hostmesh_controller.model.schema import Flag, PositiveDuration, Spec, as_fault, at_most_one, fault
from hostmesh_controller.model.security import PolicySelector

DISCOVERY: Final = "/.well-known/openid-configuration"
"""Below an issuer's URL: where it says where its keys are (OpenID Connect Discovery)."""
_URL_MAX: Final = 2048
_GATEWAY_API: Final = "it selects Kubernetes' gateways and ambient waypoints; use selector"
_CLAIM_HEADER: Final = re.compile(r"[-_A-Za-z0-9]+")


def url_problem(value: str) -> str:
    """Return why a URL is none from which keys can be had, "" if it is one."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as error:
        return f"{value!r} is not a URL: {error}"
    if parts.scheme not in {"http", "https"}:
        return f"{value!r}: url must have scheme http:// or https://"
    if not parts.hostname:
        return f"{value!r}: the URL has no host"
    if parts.username is not None or parts.password is not None:
        return "a password in a URL is shown to everybody who may read the object: leave it out"
    if not value.isascii() or any(char <= " " or char == "\x7f" for char in value):
        return f"{value!r}: a URL has no spaces, control characters or letters beyond ASCII; write them as %XX"
    return ""


def _jwks_uri(value: str) -> str:
    with as_fault("url"):
        problem = url_problem(value)
        if problem:
            raise ValueError(problem)
    return value


def _jwks(value: str) -> str:
    if not value:
        return value
    try:
        found = read_jwks(value)
    except JwksError as error:
        raise fault("jwks", f"jwks parse error: {error}") from None
    for each in found.left_out:
        if "oct" in each.reason:
            raise fault("not-supported", f"keys[{each.index}]: {each.reason}; use a key pair")
    return value


def _output_name(value: str) -> str:
    if value.lower() == "host":
        raise fault("header-name", "'host' says where a request goes; a token must not change it")
    return value


def _header(value: str) -> str:
    with as_fault("header-name"):
        return check_header_name(value)


def _output_header(value: str) -> str:
    return value and _output_name(_header(value))


def _claim_header(value: str) -> str:
    if not _CLAIM_HEADER.fullmatch(value):
        raise fault("header-name", f"{value!r} is not a header name of letters, digits, '-' and '_'")
    return _output_name(value)


def _line(value: str) -> str:
    with as_fault("text"):
        return check_one_line(value)


Text = Annotated[str, Field(min_length=1), AfterValidator(_line)]


class JwtHeader(Spec):
    """A header that has a token, after a prefix that is taken off."""

    name: Annotated[str, Field(min_length=1), AfterValidator(_header)]
    prefix: Annotated[str, AfterValidator(_line)] = ""


class ClaimToHeader(Spec):
    """A claim (`a.b` is b in a) that the program gets as a header."""

    header: Annotated[str, Field(min_length=1), AfterValidator(_claim_header)]
    claim: Text


class JwtRule(Spec):
    """One issuer's tokens. Without keys and an address of them, the issuer's own configuration says where they are."""

    refused: ClassVar[Mapping[str, str]] = {
        "presence": "Istio has the field and does nothing with it; demand a token by an AuthorizationPolicy with "
        'requestPrincipals: ["*"]',
    }

    issuer: Text | None = None
    audiences: tuple[Text, ...] = ()
    jwks_uri: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=_URL_MAX,
            validation_alias=AliasChoices("jwksUri", "jwks_uri"),
            serialization_alias="jwksUri",
        ),
        AfterValidator(lambda value: value and _jwks_uri(value)),
    ] = None
    jwks: Annotated[str, AfterValidator(_jwks)] | None = None
    from_headers: tuple[JwtHeader, ...] = ()
    from_params: tuple[Text, ...] = ()
    from_cookies: tuple[Text, ...] = ()
    output_payload_to_header: Annotated[str, AfterValidator(_output_header)] = ""
    forward_original_token: Flag = False
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    timeout: PositiveDuration | None = None
    space_delimited_claims: Annotated[tuple[Text, ...], Field(max_length=64)] = ()

    @model_validator(mode="after")
    def _keys_can_be_found(self) -> "JwtRule":
        at_most_one(self, "jwks", "jwks_uri")
        if not self.issuer and not self.jwks_uri:
            raise fault("missing", "issuer or jwksUri must be non-empty string")
        return self

    @property
    def keys_url(self) -> str:
        """Where the keys are fetched: a JWKS, or (`DISCOVERY`) the document that says where it is; "" if inline."""
        if self.jwks:
            return ""
        return self.jwks_uri or f"{(self.issuer or '').removesuffix('/')}{DISCOVERY}"


class RequestAuthenticationSpec(Spec):
    """A request with a token must have a valid one; one without has no principal. All that hold are combined."""

    refused: ClassVar[Mapping[str, str]] = {"targetRef": _GATEWAY_API, "targetRefs": _GATEWAY_API}

    selector: PolicySelector | None = None
    jwt_rules: Annotated[tuple[JwtRule, ...], Field(max_length=4096)] = ()
