"""A program that comes and goes every second: its callers are told at once, and then ever more rarely."""

import asyncio
import selectors
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from hostmesh_agent.probes import LAST_HOLD_S, Look, Memory, Name, Probes
from hostmesh_agent.repairs import LIMIT
from hostmesh_api.v1.hostmesh_pb2 import Probe, Workload, WorkloadLease

WEB = Name("shop", "web")


class _NoWaiting(selectors.SelectSelector):
    """Nothing is waited for but the clock, which is put forward instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class Life:
    """A workload under a clock of its own. `well(second)` is what each second's look finds."""

    def __init__(self, well: Callable[[int], bool], path: Path) -> None:
        self._clock = _NoWaiting()
        self._well = well
        self.flips: list[tuple[float, bool]] = []
        self.probes = Probes(self._look, Memory(path / "health", "b1"), self._changed)
        way = Probe(tcp_socket=Probe.TcpSocket(port=80), period_s=1, success_threshold=1, failure_threshold=1)
        self.probes.configure([Workload(namespace=WEB.namespace, name=WEB.name, probe=way)])

    def healthy(self) -> bool:
        return self.told().health == WorkloadLease.HEALTHY

    def told(self) -> WorkloadLease:
        return self.probes.tell(WorkloadLease(namespace=WEB.namespace, name=WEB.name))

    def last(self, seconds: float) -> None:
        loop = asyncio.SelectorEventLoop(self._clock)
        loop.time = lambda: self._clock.now  # type: ignore[method-assign]
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._run(seconds))

    async def _run(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.probes.run()
        except TimeoutError:
            return

    async def _look(self, _probe: Probe, _address: str) -> Look:
        return Look(True) if self._well(round(self._clock.now)) else Look(False, "refused")

    def _changed(self) -> None:
        self.flips.append((self._clock.now, self.healthy()))


def test_the_first_flips_count_at_once_and_one_that_goes_on_flipping_counts_ever_more_rarely(tmp_path: Path) -> None:
    life = Life(lambda second: second % 2 == 0, tmp_path)
    life.last(900)
    assert [round(at) for at, _ in life.flips[: 2 * LIMIT]] == list(range(2 * LIMIT))
    # Two a minute instead of sixty, and after a hold it is well or not by chance.
    assert len([at for at, _ in life.flips if at > 300]) <= 2 * 600 / LAST_HOLD_S + 1
    assert all(healthy != before for (_, before), (_, healthy) in pairwise(life.flips))


def test_one_that_has_flapped_fails_at_once_and_is_healthy_again_when_it_stays_well(tmp_path: Path) -> None:
    life = Life(lambda second: second % 2 == 0 or 100 <= second < 400 or second > 500, tmp_path)
    life.last(600)
    (back,) = (at for at, healthy in life.flips if 99 < at < 400 and healthy)
    assert back <= 100 + LAST_HOLD_S
    failed = [at for at, healthy in life.flips if at > back and not healthy]
    assert round(failed[0]) == 401
    assert life.healthy()


def test_while_it_must_wait_it_says_why(tmp_path: Path) -> None:
    life = Life(lambda second: second % 2 == 0 or second > 20, tmp_path)
    life.last(21.5)
    assert not life.healthy()
    assert "comes and goes" in life.told().health_reason
    assert all(each.healthy for each in life.told().probes)
