"""Which requests a route of a VirtualService takes."""

from collections.abc import Mapping

from pydantic import Field, model_validator

from hostmesh_controller.model.domains import is_label
from hostmesh_controller.model.route_fields import Gateway, Line, MatchHeaderName, MatchPort, Regex, RegexOrAny
from hostmesh_controller.model.schema import Flag, LabelKey, LabelValue, Spec, at_most_one, fault


class StringMatch(Spec):
    """One of the three ways, or none: then the thing has only to be there."""

    exact: Line | None = None
    prefix: Line | None = None
    regex: Regex | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "StringMatch":
        at_most_one(self, "exact", "prefix", "regex")
        return self


class AbsentMatch(StringMatch):
    """A match that must not hold. The lone regex '*', though it is none, means: the header is not there."""

    regex: RegexOrAny | None = None


class HttpMatch(Spec):
    """All that is given must hold. `port` is the service's port that was called.

    `source_labels` are of a workload of the calling host, `source_namespace` is the caller's. `gateways` are those of
    the VirtualService where empty. `stat_prefix` names statistics of the requests that the match takes.
    """

    name: str | None = None
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: Mapping[MatchHeaderName, StringMatch] = Field(default_factory=dict)
    without_headers: Mapping[MatchHeaderName, AbsentMatch] = Field(default_factory=dict)
    query_params: Mapping[str, StringMatch] = Field(default_factory=dict)
    port: MatchPort = None
    ignore_uri_case: Flag = False
    source_labels: Mapping[LabelKey, LabelValue] = Field(default_factory=dict)
    source_namespace: str | None = None
    gateways: tuple[Gateway, ...] = ()
    stat_prefix: str | None = None

    @model_validator(mode="after")
    def _prefixes_are_not_empty(self) -> "HttpMatch":
        # A path may have the empty prefix; Envoy refuses it of any other text.
        for field in ("scheme", "method", "authority"):
            _not_empty(getattr(self, field), field)
        for field, written in (("headers", "headers"), ("without_headers", "withoutHeaders")):
            for name, value in getattr(self, field).items():
                _not_empty(value, written, name)
        for name, value in self.query_params.items():
            _not_empty(value, "queryParams", name)
        return self

    @model_validator(mode="after")
    def _source_is_a_namespace(self) -> "HttpMatch":
        check_namespace(self.source_namespace)
        return self


def check_namespace(value: str | None) -> None:
    """Refuse a `sourceNamespace` that no namespace can have.

    Raises:
        PydanticCustomError: it has other characters than a namespace.
    """
    if value and not is_label(value):
        raise fault("name", f"{value!r} is not the name of a namespace", "sourceNamespace")


def _not_empty(value: StringMatch | None, *at: str) -> None:
    if value is not None and value.prefix == "":
        raise fault(
            "empty", "the empty prefix matches nothing in Envoy; leave the match empty for 'any'", *at, "prefix"
        )
