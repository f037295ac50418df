"""How calls through an Envoy go: how many, how many failed, and how long they took."""

import re
from collections.abc import Mapping
from typing import Final

from hostmesh_agent import verdict
from hostmesh_agent.admin import Admin, AdminError

_TIMES: Final = "downstream_rq_time$"
_LINE: Final = re.compile(r"^envoy_http_downstream_rq_time_(sum|count)\{([^}]*)\} ([0-9.e+]+)$", re.MULTILINE)
_OWN: Final = re.compile(r'prefix="(admin|hostmesh-)')


def times_in(text: str) -> tuple[int, float]:
    """Return how many requests there were and their times (ms) summed up, of Envoy's histograms in Prometheus' form."""
    found = [(kind, float(value)) for kind, labels, value in _LINE.findall(text) if not _OWN.search(labels)]
    return int(sum(value for kind, value in found if kind == "count")), sum(
        value for kind, value in found if kind == "sum"
    )


async def look(admin: Admin) -> Mapping[str, float]:
    """Return the fields of CallFigures, without the agent's own calls; nothing where Envoy does not say."""
    try:
        answered = verdict.counts(await admin.stats(verdict.PATTERN))[verdict.ANSWERED]
        status, body = await admin.request("GET", f"/stats?format=prometheus&filter={_TIMES}")
    except AdminError:
        return {}
    timed, time_ms = times_in(body.decode(errors="replace")) if status == 200 else (0, 0.0)
    return {"calls": answered.all, "failed": answered.failed, "timed": timed, "time_ms": time_ms}
