"""Where a caller's requests go first: locality load balancing of a DestinationRule, or of the whole mesh."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final

from pydantic import Field, model_validator

from hostmesh_controller.model.schema import Flag, Integer, Spec, Unsigned, fault

_ANY: Final = "*"
_DEPTH: Final = 3
"""region/zone/subzone"""
_TOPOLOGY: Final = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
)
_PERCENT: Final = 100


class Distribute(Spec):
    """Of what is called from `from_`, this share in percent goes to each locality; the shares sum to 100.

    A locality is `region`, `region/zone`, `region/zone/subzone`, or one of them with `*` as its last part.
    """

    from_: str = Field(alias="from")
    to: Mapping[str, Annotated[Integer, Field(ge=1, le=_PERCENT)]]

    @model_validator(mode="after")
    def _shares_are_of_100(self) -> "Distribute":
        total = sum(self.to.values())
        if total != _PERCENT:
            raise fault("weights", f"the shares sum to {total}, not 100", "to")
        wrong = _locality_fault(list(self.to))
        if wrong:
            raise fault("locality", wrong[1], "to", wrong[0])
        return self


class Failover(Spec):
    """Which region steps in for which."""

    from_: str = Field(alias="from")
    to: str

    @model_validator(mode="after")
    def _regions_differ(self) -> "Failover":
        for field, value in (("from", self.from_), ("to", self.to)):
            if "/" in value or _ANY in value:
                raise fault("locality", f"{value!r}: failover is between regions; name one, without '/' and '*'", field)
        if self.from_ == self.to:
            raise fault("locality", f"{self.to!r} cannot step in for itself", "to")
        return self


class LocalityLbSetting(Spec):
    """Nearer endpoints first, or the given shares. `enabled` None is the mesh's setting.

    `failover_priority` are labels, some with a value (`key=value`): the more of the first ones an endpoint shares with
    the caller, the sooner it is used.
    """

    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: Flag | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "LocalityLbSetting":
        if self.distribute and self.failover:
            raise fault("one-of", "only one of distribute, failover may be set", "failover")
        if self.failover:
            _refuse_topology(self.failover_priority, "failover has the regions already; remove this label")
        wrong = _locality_fault([share.from_ for share in self.distribute])
        if wrong:
            index = [share.from_ for share in self.distribute].index(wrong[0])
            raise fault("locality", wrong[1], "distribute", index, "from")
        return self


class ZoneAwareLbSetting(Spec):
    """Endpoints of the caller's zone first, as many of the other zones' as evens out the load.

    `min_cluster_size` is how many endpoints there must be for it; `enabled` None is the mesh's setting.
    """

    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: Flag | None = None
    min_cluster_size: Annotated[Unsigned, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> "ZoneAwareLbSetting":
        _refuse_topology(self.failover_priority, "regions and zones are looked at anyway; remove this label")
        return self


def _refuse_topology(labels: Iterable[str], reason: str) -> None:
    for index, label in enumerate(labels):
        if label in _TOPOLOGY:
            raise fault("one-of", f"{label!r}: {reason}", "failoverPriority", index)


def _locality_fault(localities: Sequence[str]) -> tuple[str, str] | None:
    """Return the first locality that is none or that overlaps one before it, and what is wrong with it."""
    seen: list[tuple[tuple[str, ...], str]] = []
    for locality in localities:
        parts = locality.split("/", _DEPTH - 1)
        if not all(parts):
            return locality, f"{locality!r}: write region, region/zone or region/zone/subzone, no part of it empty"
        if locality.count(_ANY) > locality.endswith(_ANY):
            return locality, f"{locality!r}: '*' can only be the last part"
        place = tuple(part for part in parts if part != _ANY)
        # What is left over by those before it may come last, with '*'.
        rest = locality.endswith(_ANY)
        for other, text in seen:
            if place[: len(other)] == other or (not rest and other[: len(place)] == place):
                return locality, f"{locality!r} overlaps {text!r}; '*' for the rest comes last"
        seen.append((place, locality))
    return None
