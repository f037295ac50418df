"""Rollout: another version of Envoy or of the agent for hosts, a few first."""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, model_validator

from hostmesh_api.manifest import COMPONENTS, VERSION, is_package_version
from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.schema import (
    AnyDuration,
    Flag,
    LabelKey,
    LabelValue,
    Percent,
    PositiveDuration,
    Spec,
    Unsigned,
    fault,
)

_PERCENT: Final = re.compile(r"([1-9][0-9]?|100)%")
MAX_WAVES: Final = 64


def _component(value: object) -> str:
    if value not in COMPONENTS:
        known = " and ".join(f"{each!r}" for each in COMPONENTS)
        raise fault("component", f"{value!r} is nothing that is rolled out; there are {known}")
    return str(value)


def _version(value: str) -> str:
    if not VERSION.fullmatch(value):
        raise fault("version", f"{value!r} is not a version such as 1.40.1")
    return value


def _wave(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and _PERCENT.fullmatch(value):
        return value
    raise fault("wave", "expected how many hosts have it after the wave: a number, or a share such as '25%'")


def _as_written(value: int | str) -> int | str:
    return value


Wave = Annotated[
    int | str, PlainValidator(_wave), PlainSerializer(_as_written, return_type=int | str, when_used="json")
]
Component = Annotated[str, PlainValidator(_component), PlainSerializer(str, return_type=str)]


class HostSelector(Spec):
    """Hosts by the labels of their Host objects; none: all hosts."""

    match_labels: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=64)] = Field(default_factory=dict)


class RolloutHealth(Spec):
    """When a host with the new version counts as worse than it was before.

    `min_calls`: fewer say nothing. `max_error_increase`: of 100 calls so many more may fail.
    `max_latency_increase`: by so many percent the mean time of a call may grow, and by 5 ms always.
    """

    min_calls: Unsigned = 20
    max_error_increase: Percent = 1.0
    max_latency_increase: Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)] = 100.0
    max_restarts: Unsigned = 0


class RolloutSpec(Spec):
    """Which version, for which hosts, and how.

    `source`: where hosts have it from: the controller's mirror, or the repository that their package manager knows.
    From there, and for the agent always, `version` is that of the package hostmesh-envoy or hostmesh-agent.

    `canary` hosts get the version first; after each wave all of its hosts must be well for `watch`.

    `waves` say how many hosts have it then, of those that there are; all of them come last. A host that is not done
    within `deadline` counts as failed. A host that was not heard of for `absent_after` is not waited for: it gets the
    version when it comes back. `rollback`: what becomes of those that have it when the rollout halts. `paused`: nobody
    else gets it.
    """

    meant: ClassVar = {
        "selector": "write hosts: {matchLabels: {…}}",
        "pause": "between waves it is watch: 5m; to hold it, paused: true",
    }

    component: Component = "envoy"
    source: Literal["mirror", "packages"] = "mirror"
    version: Annotated[str, AfterValidator(_version)]
    hosts: HostSelector = HostSelector()
    canary: Annotated[Unsigned, Field(ge=1)] = 1
    waves: Annotated[tuple[Wave, ...], Field(max_length=MAX_WAVES)] = ()
    watch: AnyDuration = Duration("2m")
    deadline: PositiveDuration = Duration("10m")
    absent_after: PositiveDuration = Duration("1h")
    health: RolloutHealth = RolloutHealth()
    rollback: Literal["all", "none"] = "all"
    paused: Flag = False

    @model_validator(mode="after")
    def _packages_have_it(self) -> "RolloutSpec":
        if (self.component == "agent" or self.source == "packages") and not is_package_version(self.version):
            raise fault("version", f"{self.version} is no version of a package, which has no '-'", "version")
        return self

    @model_validator(mode="after")
    def _waves_grow(self) -> "RolloutSpec":
        for kind in (int, str):
            found = [(index, each) for index, each in enumerate(self.waves) if isinstance(each, kind)]
            sizes = [int(str(each).rstrip("%")) for _, each in found]
            for (index, each), size, before in zip(found[1:], sizes[1:], sizes, strict=False):
                if size <= before:
                    raise fault("waves", f"{each} is not more than the wave before it", "waves", index)
        return self
