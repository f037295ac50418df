"""The controller's own metrics, for Prometheus. What others count is read from them at the moment of the scrape."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

# The moments of creation would double the series and tell nothing that matters here.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def build_version() -> str:
    """The installed version, "0+unknown" when run from a tree that is not installed."""
    try:
        return version("hostmesh")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a part of the controller tells at a scrape.

    `labels` are the names; `values` maps label values in that order to a number. `total` means that it only grows.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    total: bool = False


@dataclass(slots=True, eq=False)
class _Readings:
    sources: list[Callable[[], Iterable[Reading]]] = field(default_factory=list)

    def collect(self) -> Iterable[Metric]:
        for source in self.sources:
            for reading in source():
                family: CounterMetricFamily | GaugeMetricFamily
                if reading.total:
                    family = CounterMetricFamily(reading.name, reading.help, labels=reading.labels)
                else:
                    family = GaugeMetricFamily(reading.name, reading.help, labels=reading.labels)
                for labels, value in reading.values.items():
                    family.add_metric(labels, value)
                yield family


class Metrics:
    """One process's counters. Each controller (and each test) has its own, there is no global registry."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._readings = _Readings()
        self.api_requests = Counter(
            "hostmesh_controller_api_requests",
            "Requests to the admin API.",
            ["method", "route", "role", "code"],
            registry=self._registry,
        )
        self.certificates_issued = Counter(
            "hostmesh_controller_certificates_issued",
            "Certificates issued, by what they are for.",
            ["identity"],
            registry=self._registry,
        )
        self.join_attempts = Counter(
            "hostmesh_controller_join_attempts",
            "Attempts to join and to come back, by what proved who it was and by result.",
            ["attestor", "result"],
            registry=self._registry,
        )
        self.denials_not_kept = Counter(
            "hostmesh_controller_denials_not_kept",
            "Refusals to callers of the admin API that were too many for the audit log.",
            registry=self._registry,
        )
        self.connections_refused = Counter(
            "hostmesh_controller_connections_refused",
            "Connections to the admin port beyond its limits.",
            registry=self._registry,
        )
        build = Gauge("hostmesh_controller_build_info", "The running version.", ["version"], registry=self._registry)
        build.labels(build_version()).set(1)
        self._registry.register(self._readings)

    def read_from(self, source: Callable[[], Iterable[Reading]]) -> None:
        """Ask `source` at every scrape. It must be cheap and not wait."""
        self._readings.sources.append(source)

    def render(self) -> bytes:
        """The exposition text; see `CONTENT_TYPE`."""
        return generate_latest(self._registry)
