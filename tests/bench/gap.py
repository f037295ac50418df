"""How long a host is without a proxy whose Envoy was killed, in each failure mode: as its agent measures it."""

import json
import os
import signal
import time
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

from bench.figure import Figure
from bench.hosts import CALLEE, NAMESPACE, Hosts
from hostmesh_agent.lifecycle import STABLE_S

MODES: Final = ("closed", "open")
_KILLS: Final = 3
_NONE_YET: Final = {"count": 0, "lasts": False}


def gap(hosts: Hosts) -> Sequence[Figure]:
    """Kill the callee's Envoy some times in each mode; the ports of its workload take plaintext, too."""
    lab = hosts.ready
    figures: list[Figure] = []
    for mode in MODES:
        lab.applied(_policy(mode))
        gaps = [_killed(lab, mode) for _ in range(_KILLS)]
        refused = [each["refused_ms"] for each in gaps]
        detail = (
            f"inbound; {min(refused)} to {max(refused)} ms, {_KILLS} times SIGKILL of Envoy, until the next one serves"
        )
        figures.append(Figure(f"failure mode {mode}: calls are refused, median", median(refused), "ms", None, detail))
        if mode == "open":
            passed = [each["passed_ms"] for each in gaps]
            detail = f"{min(passed)} to {max(passed)} ms, after that, until they are captured again"
            figures.append(Figure("failure mode open: calls pass by, median", median(passed), "ms", None, detail))
    return figures


def _policy(mode: str) -> dict[str, Any]:
    return {
        "apiVersion": "hostmesh.io/v1",
        "kind": "CapturePolicy",
        "metadata": {"name": "failing", "namespace": NAMESPACE},
        "spec": {"inbound": {"failureMode": mode}},
    }


def _killed(lab: Hosts, mode: str) -> dict[str, Any]:
    """Kill the Envoy that serves, and return the gap once it is over.

    Each has served for a while before: one that ends soon after its start is started later each time.
    """
    time.sleep(STABLE_S)
    before = _last(lab)
    os.kill(lab.pid(CALLEE, "envoy"), signal.SIGKILL)
    lab.until(lambda: _last(lab)["count"] > before["count"] and not _last(lab)["lasts"], "the gap is over")
    lab.called()
    found = _last(lab)
    if found["failure_mode"] != mode or found["count"] != before["count"] + 1:
        raise RuntimeError(f"one gap in mode {mode} was to be measured, after {before}: {found}")
    return found


def _last(lab: Hosts) -> dict[str, Any]:
    """Return what the host's own status says of its last inbound gap."""
    # Not well, the command ends with another code than 0.
    said = lab.inside(CALLEE, "hostmesh-agent", "status", "-o", "json", check=False)
    capture = json.loads(said[said.index("{") : said.rindex("}") + 1])["capture"]
    return next((each for each in capture["gaps"] if each["direction"] == "inbound"), _NONE_YET)
