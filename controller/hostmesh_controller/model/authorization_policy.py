"""AuthorizationPolicy: who may do what with the selected workloads."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from hostmesh_controller.model.authorization_terms import (
    ACCOUNTS_MAX,
    KEYS,
    VALUE_CHECKS,
    Accounts,
    Blocks,
    Paths,
    Ports,
    TrustDomains,
    Values,
    key_family,
    key_fault,
)
from hostmesh_controller.model.schema import Spec, fault
from hostmesh_controller.model.security import PolicySelector
from hostmesh_controller.suggest import did_you_mean

_GATEWAY_API: Final = "it attaches to Kubernetes' Gateway API, waypoints and their services; use selector"
_RULES_MAX: Final = 512
DRY_RUN: Final = "istio.io/dry-run"
"""The annotation of a policy that is only tried."""
TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})

Action = Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"]


class Source(Spec):
    """Who asks: every field that is given must hold, by one of its values."""

    principals: Values = ()
    not_principals: Values = ()
    request_principals: Values = ()
    not_request_principals: Values = ()
    namespaces: Values = ()
    not_namespaces: Values = ()
    service_accounts: Accounts = ()
    not_service_accounts: Accounts = ()
    trust_domains: TrustDomains = ()
    not_trust_domains: TrustDomains = ()
    ip_blocks: Blocks = ()
    not_ip_blocks: Blocks = ()
    remote_ip_blocks: Blocks = ()
    not_remote_ip_blocks: Blocks = ()

    @model_validator(mode="after")
    def _says_something(self) -> "Source":
        _not_empty(self)
        named = self.principals or self.not_principals or self.namespaces or self.not_namespaces
        if named and (self.service_accounts or self.not_service_accounts):
            at = "serviceAccounts" if self.service_accounts else "notServiceAccounts"
            raise fault("one-of", "serviceAccounts cannot stand beside principals or namespaces", at)
        return self


class Operation(Spec):
    """What is asked for: every field that is given must hold, by one of its values. `ports` are the workload's own."""

    hosts: Values = ()
    not_hosts: Values = ()
    ports: Ports = ()
    not_ports: Ports = ()
    methods: Values = ()
    not_methods: Values = ()
    paths: Paths = ()
    not_paths: Paths = ()

    @model_validator(mode="after")
    def _says_something(self) -> "Operation":
        _not_empty(self)
        return self


def _not_empty(spec: Spec) -> None:
    if not any(getattr(spec, name) for name in type(spec).model_fields):
        raise fault("empty", "must not be empty: say what is matched, or leave it out to match anything")


class From(Spec):
    """One source of several."""

    source: Source


class To(Spec):
    """One operation of several."""

    operation: Operation


class Condition(Spec):
    """An attribute that has one of the values, and none of the others."""

    key: str
    values: Values = ()
    not_values: Values = ()

    @model_validator(mode="after")
    def _means_something(self) -> "Condition":
        if not self.key:
            raise fault("missing", "must not be empty", "key")
        family = key_family(self.key)
        if family is None:
            near = did_you_mean(self.key.partition("[")[0], KEYS)
            raise fault("unknown-attribute", key_fault(self.key) or f"unknown attribute {self.key!r}{near}", "key")
        if not self.values and not self.not_values:
            raise fault("missing", "give values or notValues")
        if family == "source.serviceAccount" and max(len(self.values), len(self.not_values)) > ACCOUNTS_MAX:
            raise fault("too-long", f"at most {ACCOUNTS_MAX} service accounts allowed", "values")
        check = VALUE_CHECKS.get(family)
        for field, values in (("values", self.values), ("notValues", self.not_values)) if check else ():
            assert check is not None
            for index, value in enumerate(values):
                try:
                    check(value)
                except ValueError as error:
                    raise fault("value", str(error), field, index) from error
        return self


_Sources = Annotated[tuple[From, ...], Field(min_length=1, max_length=_RULES_MAX)]


class Rule(Spec):
    """One of the sources, one of the operations, and all of the conditions. What is left out matches anything."""

    from_: Annotated[_Sources | None, Field(alias="from")] = None
    to: Annotated[tuple[To, ...], Field(min_length=1)] | None = None
    when: tuple[Condition, ...] = ()


class Provider(Spec):
    """An external authorizer of MeshConfig's extensionProviders."""

    name: str = ""


_WITHOUT_CUSTOM: Final = (
    *("namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts", "trustDomains", "notTrustDomains"),
    *("principals", "notPrincipals", "requestPrincipals", "notRequestPrincipals"),
)
_KEYS_WITHOUT_CUSTOM: Final = frozenset(
    {"source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"}
)


class AuthorizationPolicySpec(Spec):
    """Istio's: CUSTOM is asked first, then DENY, then ALLOW; with any ALLOW policy, what none allows is denied.

    No rules match nothing (so ALLOW without rules denies everything); the empty rule `{}` matches everything.
    """

    refused: ClassVar[Mapping[str, str]] = {"targetRef": _GATEWAY_API, "targetRefs": _GATEWAY_API}

    selector: PolicySelector | None = None
    action: Action = "ALLOW"
    provider: Provider | None = None
    rules: Annotated[tuple[Rule, ...], Field(max_length=_RULES_MAX)] = ()

    @model_validator(mode="after")
    def _fits_the_action(self) -> "AuthorizationPolicySpec":
        if self.action in {"DENY", "CUSTOM"} and not self.rules:
            message = f"{self.action} without rules never holds; add an empty rule ({{}}) if it is for every request"
            raise fault("missing", message, "rules")
        if self.action != "CUSTOM" and self.provider is not None:
            raise fault("provider", f"only CUSTOM policies have a provider, and this is {self.action}", "provider")
        if self.action == "CUSTOM":
            if self.provider is None or not self.provider.name:
                raise fault("missing", "a CUSTOM policy needs provider.name, of extensionProviders", "provider")
            for at, what in _not_for_custom(self.rules):
                raise fault("not-supported", f"{what} cannot be asked for by CUSTOM policies (nor in Istio)", *at)
        return self


def _not_for_custom(rules: tuple[Rule, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield what a rule asks for that is not known yet when an external authorizer is asked."""
    for index, rule in enumerate(rules):
        for place, each in enumerate(rule.from_ or ()):
            written = each.source.to_dict()
            for name in _WITHOUT_CUSTOM:
                if written.get(name):
                    yield ("rules", index, "from", place, "source", name), name
        for place, condition in enumerate(rule.when):
            if condition.key in _KEYS_WITHOUT_CUSTOM or condition.key.startswith("request.auth."):
                yield ("rules", index, "when", place, "key"), condition.key
