"""Which endpoint of a service is taken."""

from collections.abc import Mapping
from math import isqrt
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from hostmesh_controller.model.localities import LocalityLbSetting, ZoneAwareLbSetting
from hostmesh_controller.model.route_fields import MillisecondDuration
from hostmesh_controller.model.schema import AnyDuration, Flag, Number, Percent, Spec, at_most_one, fault

_TABLE_BELOW: Final = 5_000_011
"""Envoy's limit of a Maglev table."""

RingSize = Annotated[int, Field(strict=True, ge=0, le=2**63 - 1)]


class CookieAttribute(Spec):
    """Such as SameSite=Strict; without a value it is the name alone."""

    name: Annotated[str, Field(min_length=1)]
    value: str | None = None


class HttpCookie(Spec):
    """The cookie to hash. With a `ttl` (0: until the browser ends) it is made where it is missing."""

    name: Annotated[str, Field(min_length=1)]
    path: str | None = None
    ttl: AnyDuration | None = None
    attributes: tuple[CookieAttribute, ...] = ()

    @model_validator(mode="after")
    def _attributes_are_told_apart(self) -> "HttpCookie":
        seen: set[str] = set()
        for index, attribute in enumerate(self.attributes):
            if attribute.name in seen:
                raise fault("duplicate", f"attribute {attribute.name!r} is there twice", "attributes", index, "name")
            seen.add(attribute.name)
        return self


class RingHash(Spec):
    """None is Istio's default, 1024 points."""

    minimum_ring_size: RingSize | None = None


class Maglev(Spec):
    """The size of the table is prime, such as 65537."""

    table_size: RingSize

    @model_validator(mode="after")
    def _size_is_prime(self) -> "Maglev":
        if self.table_size >= _TABLE_BELOW or not _is_prime(self.table_size):
            raise fault("value", f"must be a prime number below {_TABLE_BELOW}, such as 65537", "tableSize")
        return self


class ConsistentHash(Spec):
    """The same endpoint for the same header, cookie, address or query parameter.

    `minimum_ring_size` is the old place of the one in `ring_hash`; neither it nor `maglev` set: a ring.
    """

    http_header_name: Annotated[str, Field(min_length=1)] | None = None
    http_cookie: HttpCookie | None = None
    use_source_ip: Flag | None = None
    http_query_parameter_name: Annotated[str, Field(min_length=1)] | None = None
    ring_hash: RingHash | None = None
    maglev: Maglev | None = None
    minimum_ring_size: RingSize | None = None

    @model_validator(mode="after")
    def _one_of_each(self) -> "ConsistentHash":
        at_most_one(self, "http_header_name", "http_cookie", "use_source_ip", "http_query_parameter_name")
        at_most_one(self, "ring_hash", "maglev")
        if self.minimum_ring_size and (self.ring_hash is not None or self.maglev is not None):
            message = "only one of minimumRingSize, ringHash, maglev may be set"
            raise fault("one-of", message, "minimumRingSize")
        return self


class Warmup(Spec):
    """How a new endpoint gets its share: from `minimum_percent` up to all of it. None is 10 percent, and 1 (linear)."""

    duration: MillisecondDuration
    minimum_percent: Percent | None = None
    aggression: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = None


class LoadBalancer(Spec):
    """None and UNSPECIFIED are LEAST_REQUEST, so is the old LEAST_CONN. `warmup_duration_secs` is the old warmup."""

    refused: ClassVar[Mapping[str, str]] = {
        "backendUtilization": "Istio's proxies ignore it too; use simple: LEAST_REQUEST"
    }

    simple: Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None = None
    consistent_hash: ConsistentHash | None = None
    locality_lb_setting: LocalityLbSetting | None = None
    zone_aware_lb_setting: ZoneAwareLbSetting | None = None
    warmup: Warmup | None = None
    warmup_duration_secs: MillisecondDuration | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "LoadBalancer":
        at_most_one(self, "simple", "consistent_hash")
        at_most_one(self, "locality_lb_setting", "zone_aware_lb_setting")
        return self


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, isqrt(number) + 1))
