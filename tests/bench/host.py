"""What a host pays: the agent's size, the first request on demand, and the way through two proxies."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

import psutil

from bench.figure import Figure
from bench.hosts import CALLEE, CALLER, PLAIN_PORT, SERVICES, Hosts, service_url

_IDLE_S: Final = 60.0
_WRK_S: Final = 5
_ROUNDS: Final = 3
_UNITS_US: Final = {"us": 1.0, "ms": 1e3, "s": 1e6}


def agent(hosts: Hosts) -> Sequence[Figure]:
    """Look at the agent of a host where nothing happens."""
    process = psutil.Process(hosts.ready.pid(CALLER, "agent"))
    began = process.cpu_times()
    started_s = time.monotonic()
    time.sleep(_IDLE_S)  # idling is what is measured
    ended = process.cpu_times()
    cpu_s = ended.user + ended.system - began.user - began.system
    return (
        Figure(
            "agent memory, resident",
            process.memory_info().rss / 1e6,
            "MB",
            60,
            f"{process.memory_full_info().uss / 1e6:.0f} MB of it its own, the rest is files that others map, too",
        ),
        Figure("idle agent", cpu_s / (time.monotonic() - started_s) * 100, "% of a core", 0.2, f"over {_IDLE_S:.0f} s"),
    )


def first(hosts: Hosts) -> Sequence[Figure]:
    """Call services that the caller's proxy has never heard of, each twice."""
    lab = hosts.ready
    times = [[_curl_s(lab, index) for _ in range(2)] for index in range(1, SERVICES)]
    first_s, later_s = (median(column) for column in zip(*times, strict=True))
    return (
        Figure(
            f"first request to a service, on demand, median of {len(times)}",
            first_s * 1e3,
            "ms",
            detail=f"a later one {later_s * 1e3:.1f} ms, each with a new connection and a look-up of the name; "
            f"{first_s / later_s:.1f} times",
        ),
    )


def _curl_s(lab: Hosts, index: int) -> float:
    command = ("curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code} %{time_total}", service_url(index))
    code, seconds = lab.inside(CALLER, *command).split()
    if code != "200":
        raise RuntimeError(f"{service_url(index)} answered {code}")
    return float(seconds)


@dataclass(frozen=True, slots=True)
class Latency:
    """As wrk says it, in microseconds."""

    p50_us: float
    p99_us: float


def read_wrk(output: str) -> Latency:
    """Read the output of `wrk --latency`.

    Raises:
        ValueError: it has no latencies, or some requests failed.
    """
    found = {percent: float(value) * _UNITS_US[unit] for percent, value, unit in re.findall(_PERCENTILE, output)}
    if "50" not in found or "99" not in found or "Non-2xx" in output or "Socket errors" in output:
        raise ValueError(f"no clean run of wrk:\n{output}")
    return Latency(found["50"], found["99"])


_PERCENTILE: Final = r"(?m)^\s+(50|99)%\s+([0-9.]+)(us|ms|s)$"


def latency(hosts: Hosts) -> Sequence[Figure]:
    """Call the same program by the mesh and past it, in turns, one request at a time."""
    lab = hosts.ready
    urls = {"direct": f"http://{lab.ip(CALLEE)}:{PLAIN_PORT}/", "mesh": service_url(0)}
    runs: dict[str, list[Latency]] = {name: [] for name in urls}
    for _ in range(_ROUNDS):
        for name, url in urls.items():
            output = lab.inside(CALLER, "wrk", "-t1", "-c1", f"-d{_WRK_S}s", "--latency", url)
            runs[name].append(read_wrk(output))
    p50 = {name: median(each.p50_us for each in found) for name, found in runs.items()}
    p99 = {name: median(each.p99_us for each in found) for name, found in runs.items()}
    return tuple(
        Figure(
            f"latency added by capture and mutual TLS, {percentile}",
            at["mesh"] - at["direct"],
            "us",
            detail=f"{at['mesh']:.0f} us by two proxies, {at['direct']:.0f} us direct: "
            f"{at['mesh'] / at['direct']:.1f} times; wrk, one connection, {_ROUNDS} turns of {_WRK_S} s",
        )
        for percentile, at in (("p50", p50), ("p99", p99))
    )
