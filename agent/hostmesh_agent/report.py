"""What the controller is told of the host, and when: at once when something changed, else once per interval.

A report is the whole state. Its leases say for which workloads the agent vouches; a missing report takes nothing away.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple

import structlog

from hostmesh_agent.envoy import EnvoyStatus
from hostmesh_agent.identities import AGENT, Replaced
from hostmesh_agent.lifecycle import Phase
from hostmesh_agent.rotation import Validity
from hostmesh_api.v1.hostmesh_pb2 import (
    EnvoyState,
    HeldCertificate,
    HostReport,
    ReportResponse,
    TrustState,
    Workload,
    WorkloadLease,
)

INTERVAL_S: Final = 10.0
"""Until the controller says otherwise."""
_MIN_INTERVAL_S: Final = 1.0
_MAX_INTERVAL_S: Final = 900.0
COALESCE_S: Final = 0.05
"""Changes come in bursts (a listener, its capture, the next workload): one report for all."""
RETRY_S: Final = 5.0
_JITTER: Final = 0.2

log = structlog.get_logger(__name__)

_STATES: Final = {
    Phase.DOWN: "down",
    Phase.STARTING: "starting",
    Phase.LIVE: "live",
    Phase.HELD: "held",
    Phase.STOPPED: "down",
}


class Presented(NamedTuple):
    """A certificate that Envoy shows on a workload's ports, and its end."""

    spiffe_id: str
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Vouched:
    """What is true of the whole host and decides which workloads are ready.

    `captured_ports` are those in the kernel now. Capture follows the certificates and the listeners and is never taken
    away because Envoy is down for a moment: so a captured port is one that was served, and will be again.
    """

    certificates: Mapping[str, datetime]
    """SPIFFE ID to the end of its certificate, for those that are in place."""
    captured_ports: frozenset[int]
    presented: Mapping[tuple[str, str], Presented] = field(default_factory=dict)
    """What Envoy shows callers, by the namespace and name of a workload."""


def presented(workloads: Iterable[Workload], certificates: Mapping[str, datetime]) -> dict[tuple[str, str], Presented]:
    """Return what Envoy shows once it has the listener for these workloads."""
    return {
        (each.namespace, each.name): Presented(each.spiffe_id, certificates[each.spiffe_id])
        for each in workloads
        if each.spiffe_id in certificates
    }


def lease(workload: Workload, vouched: Vouched, now: datetime) -> WorkloadLease:
    """Say whether callers may use mutual TLS to the workload."""
    ports = frozenset(workload.ports)
    shown = vouched.presented.get((workload.namespace, workload.name))
    # After a change of its service account it is served under the old identity until the new certificate is in use.
    not_after = vouched.certificates.get(workload.spiffe_id) if shown is None else shown.not_after
    return WorkloadLease(
        namespace=workload.namespace,
        name=workload.name,
        ready=not_after is not None and now < not_after and ports <= vouched.captured_ports,
        captured_ports=sorted(ports & vouched.captured_ports),
        certificate_not_after=0 if not_after is None else int(not_after.timestamp()),
        presented="" if shown is None else shown.spiffe_id,
    )


def leases(workloads: Iterable[Workload], vouched: Vouched, now: datetime) -> list[WorkloadLease]:
    return [lease(each, vouched, now) for each in workloads]


def without(leases: Iterable[WorkloadLease], why: str) -> list[WorkloadLease]:
    """Return the leases; with a reason `why`, as those of workloads that nobody is to call."""
    told = list(leases)
    for each in told if why else ():
        each.health, each.health_reason = WorkloadLease.UNHEALTHY, why
    return told


def envoy_state(status: EnvoyStatus, change: Mapping[str, Any]) -> EnvoyState:
    view = status.view
    last_exit = f"crash loop: {view.last_exit}" if view.crash_looping else view.last_exit
    return EnvoyState(
        state=_STATES[view.phase],
        version=status.version,
        pid=view.pid or 0,
        restarts=view.restarts,
        last_exit=last_exit,
        instance=change["instance"],
        stage=change["stage"],
        put_back=change["put_back"],
        hung=change["hung"],
    )


def trust_state(
    host_uri: str, roots: Iterable[str], validities: Mapping[str, Validity], replaced: Iterable[Replaced]
) -> TrustState:
    """Say which roots are trusted and which certificates are in use, of the agent and of Envoy."""
    held = [(host_uri if name == AGENT else name, each) for name, each in validities.items()]
    held += [(each.spiffe_id, each.validity) for each in replaced]
    return TrustState(
        roots=roots,
        certificates=[
            HeldCertificate(
                spiffe_id=uri, serial=each.serial, root=each.root, not_after=int(each.not_after.timestamp())
            )
            for uri, each in sorted(held, key=lambda pair: pair[1].serial)
        ],
    )


class Reporter:
    """Sends reports until cancelled.

    Args:
        build: makes the report of now; may wait for other threads; raises what it likes.
        send: delivers it; raises what it likes, with a bound on its time.
        taken: is told what the controller answered.
    """

    def __init__(
        self,
        build: Callable[[], Awaitable[HostReport]],
        send: Callable[[HostReport], Awaitable[ReportResponse]],
        interval_s: float = INTERVAL_S,
        taken: Callable[[ReportResponse], None] = lambda _: None,
    ) -> None:
        self._build = build
        self._send = send
        self._taken = taken
        self._interval_s = interval_s
        self._changed = asyncio.Event()
        self._failing = ""
        self.delivered = 0
        """How many reports the controller has taken."""

    @property
    def failing(self) -> str:
        """Why the last report was not delivered; empty when it was."""
        return self._failing

    def changed(self) -> None:
        """Report soon: something is not as it was told."""
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed.clear()
            delivered = await self._report()
            await self._wait(self._interval_s if delivered else min(RETRY_S, self._interval_s))

    async def _report(self) -> bool:
        try:
            response = await self._send(await self._build())
        except Exception as error:
            self._fails(f"{type(error).__name__}: {error}")
            return False
        self._fails("")
        self.delivered += 1
        self._taken(response)
        if response.interval_s:
            self._interval_s = min(max(float(response.interval_s), _MIN_INTERVAL_S), _MAX_INTERVAL_S)
        return True

    def _fails(self, reason: str) -> None:
        """Log the changes only: an outage of a day is two lines."""
        if bool(reason) != bool(self._failing):
            if reason:
                log.warning("reports are not delivered", reason=reason)
            else:
                log.info("reports are delivered again")
        self._failing = reason

    async def _wait(self, longest_s: float) -> None:
        # Earlier by up to a fifth: a fleet that was started together does not report together for ever.
        spread_s = longest_s * (1 - _JITTER * random.random())  # noqa: S311 - jitter, not a secret
        try:
            async with asyncio.timeout(spread_s):
                await self._changed.wait()
        except TimeoutError:
            return
        await asyncio.sleep(COALESCE_S)
