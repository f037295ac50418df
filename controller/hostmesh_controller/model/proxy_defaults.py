"""The `defaultConfig` of a MeshConfig: settings of each Envoy, by Istio's names and with Istio's defaults."""

from typing import Annotated

from pydantic import Field

from hostmesh_controller.model.durations import Duration
from hostmesh_controller.model.schema import Count, Integer, PositiveDuration, Spec


class StatsMatcher(Spec):
    """Which of Envoy's statistics are kept beside the ones that are always."""

    inclusion_prefixes: tuple[str, ...] = ()
    inclusion_suffixes: tuple[str, ...] = ()
    inclusion_regexps: tuple[str, ...] = ()


class ProxyDefaults(Spec):
    """`concurrency` is Envoy's worker threads: None and 0 are one for each core."""

    concurrency: Count | None = None
    drain_duration: PositiveDuration = Duration("45s")
    termination_drain_duration: PositiveDuration = Duration("5s")
    stat_name_length: Annotated[Integer, Field(ge=0)] = 189
    proxy_stats_matcher: StatsMatcher | None = None
