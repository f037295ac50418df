"""Other versions that a controller brings: one order after the other, each once, by the way of its component.

    order ▶ may it? ▶ fetch ▶ check ▶ the change ▶ done, or put back as it was

Envoy is changed by this agent (`envoy_update`), packages by a program of root's (`package_update`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

import structlog

from hostmesh_agent import call_figures, launch, update_order
from hostmesh_agent.admin import Admin
from hostmesh_agent.artifact import ArtifactError
from hostmesh_agent.artifact_fetch import FetchError
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.envoy_update import Envoys, EnvoyUpdate
from hostmesh_agent.package_update import PackageUpdate
from hostmesh_agent.update_fetch import Fetch, SupersededError
from hostmesh_agent.update_ledger import Ledger
from hostmesh_agent.update_order import DONE, FAILED, REFUSED, Order, RefusedUpdateError
from hostmesh_api.manifest import AGENT, COMPONENTS, ENVOY
from hostmesh_api.v1.hostmesh_pb2 import CallFigures, FetchRequest, UpdateState, WantedUpdate

log = structlog.get_logger(__name__)


class Way(Protocol):
    """How another version of a component comes to be. Both return why it failed, "" if it did not."""

    async def go_on(self, order: Order, wanted: WantedUpdate) -> str: ...

    async def go_back(self, order: Order) -> str: ...

    async def settle(self, order: Order, wanted: WantedUpdate) -> None:
        """Take note that it is everywhere. Raises RefusedUpdateError."""


class Updates:
    """Carries out what is wanted. `fetch` asks the controller for a piece.

    Args:
        config: what the host's owner says.
        machine: as `uname -m` says it.
        envoys: the two.
        admin: of the one that serves.
        fetch: raises NotConnectedError or an RPC's error.
        changed: is called whenever `tell` would answer differently.
        packages: changes the host's packages; what this agent came from decides without.
    """

    def __init__(
        self,
        config: AgentConfig,
        machine: str,
        envoys: Envoys,
        admin: Admin,
        fetch: Callable[[FetchRequest], Awaitable[bytes]],
        changed: Callable[[], None],
        packages: "PackageUpdate | None" = None,
    ) -> None:
        self._config = config
        self._admin = admin
        self._wanted: dict[str, WantedUpdate] = {}
        self._wake = asyncio.Event()
        self._ledger = Ledger(config.state_dir, changed)
        self._begun()
        self._fetch = Fetch(config.state_dir, fetch, self._still)
        self._envoy = EnvoyUpdate(config, machine, envoys, admin, self._fetch, self._ledger)
        self._package = packages or PackageUpdate(config, machine)
        self._package.use(self._envoy, self._fetch, self._ledger, lambda: call_figures.look(admin))

    def take(self, updates: Iterable[WantedUpdate]) -> None:
        """Take what the configuration wants now; called on the event loop."""
        wanted = {each.component: each for each in updates if each.component in COMPONENTS}
        if wanted != self._wanted:
            self._wanted = wanted
            self._fetch.news.set()
            self._wake.set()

    async def tell(self) -> list[UpdateState]:
        """Return how far it is; nothing where nothing is wanted, which costs nothing."""
        return [await self._told(each) for _, each in sorted(self._wanted.items())]

    async def _told(self, wanted: WantedUpdate) -> UpdateState:
        standing, order = self._ledger.of(wanted.component), update_order.order_in(wanted)
        known = standing.order == order
        told = UpdateState(
            component=wanted.component,
            version=order.version,
            rollout=order.rollout,
            attempt=order.attempt,
            back=order.back,
            state=standing.state if known else "",
            reason=standing.reason if known else "",
        )
        if known and not wanted.settled and not order.back:
            told.before.CopyFrom(_figures(standing.before))
            told.restarts = standing.restarts
            if standing.state == DONE:
                after = await call_figures.look(self._admin)
                # Envoy goes on while the agent changes, and so do its counters.
                told.after.CopyFrom(_figures(_since(after, standing.before) if wanted.component == AGENT else after))
        return told

    async def run(self) -> None:
        """Carry out what is wanted until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for component in COMPONENTS:
                if component in self._wanted:
                    await self._tried(self._wanted[component])

    async def _tried(self, wanted: WantedUpdate) -> None:
        try:
            await self._one(wanted)
        except SupersededError:
            self._wake.set()
        except OSError as error:
            log.error("an update stands still: it cannot be written down", reason=str(error))

    async def _one(self, wanted: WantedUpdate) -> None:
        component, order = wanted.component, update_order.order_in(wanted)
        way = self._way(wanted)
        if wanted.settled and self._ledger.of(component).order != order:
            # That version is everywhere, and came another way to this host or was replaced: it is no news.
            return
        if not self._ledger.of(component).concluded(order):
            log.info("update begins", component=component, version=order.version, back=order.back, of=order.rollout)
            try:
                why = await (way.go_back(order) if order.back else way.go_on(order, wanted))
                await self._conclude(component, order, FAILED if why else DONE, why)
            except RefusedUpdateError as error:
                await self._conclude(component, order, REFUSED, str(error))
            except (FetchError, ArtifactError) as error:
                await self._conclude(component, order, FAILED, str(error))
        standing = self._ledger.of(component)
        if wanted.settled and standing.order == order and standing.state == DONE:
            try:
                await way.settle(order, wanted)
            except RefusedUpdateError as error:
                log.warning("the floor stays: what is everywhere would not be taken now", reason=str(error))

    def _way(self, wanted: WantedUpdate) -> Way:
        if wanted.component == AGENT:
            return self._package.of(AGENT)
        by_package = wanted.source == update_order.PACKAGES
        return self._package.of(ENVOY) if by_package else self._envoy

    def _still(self, component: str, order: Order) -> None:
        wanted = self._wanted.get(component)
        if wanted is None or update_order.order_in(wanted) != order:
            raise SupersededError

    async def _conclude(self, component: str, order: Order, state: str, reason: str) -> None:
        say = log.info if state == DONE else log.error
        say("update concluded", component=component, version=order.version, back=order.back, state=state, reason=reason)
        standing = self._ledger.of(component)
        # From here on each end of this agent that nobody asked for is held against it.
        counted = replace(standing, boot=launch.boot_id(), ended=False, restarts=0)
        if component != AGENT or state != DONE or order.back:
            counted = replace(standing, restarts=0, ended=True)
        concluded = replace(counted, order=order, state=state, reason=reason[:1000])
        await asyncio.to_thread(self._ledger.write, component, concluded)

    # Whether the agent before this one was told to end

    def _begun(self) -> None:
        standing, boot = self._ledger.of(AGENT), launch.boot_id()
        if standing.state != DONE or not standing.boot:
            return
        crashed = not standing.ended and standing.boot == boot
        again = replace(standing, boot=boot, ended=False, restarts=standing.restarts + crashed)
        if again != standing:
            with suppress(OSError):
                self._ledger.write(AGENT, again)

    def told_to_end(self) -> None:
        """Take note that this agent ends because it was told to. Blocks."""
        with suppress(OSError):  # then this end is held against it
            self._ledger.change(AGENT, lambda standing: replace(standing, ended=True))


def _since(now: Mapping[str, float], before: Mapping[str, float]) -> Mapping[str, float]:
    """Return what was counted since; all of it where the counter began anew."""
    if not now or any(now.get(name, 0.0) < value for name, value in before.items()):
        return now
    return {name: value - before.get(name, 0.0) for name, value in now.items()}


def _figures(said: Mapping[str, float]) -> CallFigures:
    return CallFigures(
        calls=int(said.get("calls", 0)),
        failed=int(said.get("failed", 0)),
        timed=int(said.get("timed", 0)),
        time_ms=said.get("time_ms", 0.0),
    )
