"""Another Envoy from the controller's mirror: fetched, checked, installed, and put in by the change of Envoys.

Where it fails the choice is what it was before, so that the next Envoy is the old one too.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import structlog

from hostmesh_agent import artifact, call_figures, chosen_binary, keyroom, process, update_order
from hostmesh_agent.admin import Admin
from hostmesh_agent.artifact import Installed
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.places import Instance
from hostmesh_agent.update_fetch import Fetch
from hostmesh_agent.update_ledger import Ledger
from hostmesh_agent.update_order import CHANGING, FETCHING, Order, Standing
from hostmesh_api.manifest import ENVOY
from hostmesh_api.v1.hostmesh_pb2 import WantedUpdate

LOOK_S: Final = 0.5
"""How often it is looked how far the change of Envoys is."""
BEYOND_PROBATION_S: Final = 120.0
"""A change is given the time of rehearsal and probation, and this for the start and the rules (`upgrade`)."""

log = structlog.get_logger(__name__)


class Envoys(Protocol):
    """Who changes them."""

    @property
    def active(self) -> Instance: ...

    def document(self) -> dict[str, Any]: ...

    def take_binary(self, installed: Installed) -> None: ...

    def upgrade(self) -> str: ...


class EnvoyUpdate:
    """A Way of `updates`."""

    def __init__(
        self, config: AgentConfig, machine: str, envoys: Envoys, admin: Admin, fetch: Fetch, ledger: Ledger
    ) -> None:
        self._config = config
        self._machine = machine
        self._envoys = envoys
        self._admin = admin
        self._fetch = fetch
        self._ledger = ledger

    @property
    def _standing(self) -> Standing:
        return self._ledger.of(ENVOY)

    async def _keep(self, standing: Standing) -> None:
        await asyncio.to_thread(self._ledger.write, ENVOY, standing)

    async def go_on(self, order: Order, wanted: WantedUpdate) -> str:
        settings, floor = self._config.updates, self._standing.floor
        manifest = await asyncio.to_thread(
            update_order.judged, wanted, settings, floor, self._machine, keyroom.signed_by
        )
        await self._keep(replace(self._standing, order=order, state=FETCHING, reason=""))
        await asyncio.to_thread(self._forget_old)
        path = await self._fetch.file(order, manifest)
        installed = await asyncio.to_thread(
            artifact.install, path, manifest.sha256, self._config.state_dir, version=manifest.version
        )
        path.unlink(missing_ok=True)
        choice = chosen_binary.choice(self._config.state_dir)
        standing = self._standing
        if choice is None or choice.get("sha256") != manifest.sha256:
            standing = replace(standing, choice=choice, package="", rollout=order.rollout)
        before = await call_figures.look(self._admin) if self.running() != manifest.sha256 else standing.before
        await self._keep(replace(standing, state=CHANGING, before=before))
        chosen_binary.choose(self._config.state_dir, installed.path, installed.sha256, installed.version)
        why = await self.change_to(installed)
        if why:
            await self.choose_again(self._standing.choice)
        return why

    async def go_back(self, order: Order) -> str:
        """Return to what was chosen before the rollout; that is nothing new, and needs no signature."""
        update_order.allowed(self._config.updates, ENVOY)
        if self._standing.rollout != order.rollout:
            log.info("this rollout changed nothing here", rollout=order.rollout)
            return ""
        await self._keep(replace(self._standing, order=order, state=CHANGING, reason=""))
        why = await self.change_to(await self.choose_again(self._standing.choice))
        if not why:
            await self._keep(replace(self._standing, rollout="", choice=None))
        return why

    async def settle(self, _order: Order, wanted: WantedUpdate) -> None:
        """Once a version is everywhere there is no going back below what its manifest names."""
        manifest = await asyncio.to_thread(
            update_order.judged, wanted, self._config.updates, "", self._machine, keyroom.signed_by
        )
        floor = update_order.raised(self._standing.floor, manifest)
        if floor != self._standing.floor:
            await self._keep(replace(self._standing, floor=floor, rollout="", choice=None))
            log.info("no version below is taken from a controller any more", floor=floor)

    async def change_to(self, installed: Installed) -> str:
        """Let the Envoys change; return why it does not serve, "" if it does. What was begun is waited for."""
        loop, times = asyncio.get_running_loop(), self._config.envoy
        until = loop.time() + times.rehearsal_s + times.probation_s + BEYOND_PROBATION_S
        asked, why_not = False, ""
        while loop.time() < until:
            document = self._envoys.document()
            if not asked and document["stage"] == "steady":
                if self.running() == installed.sha256:
                    return ""
                self._envoys.take_binary(installed)
                why_not = self._envoys.upgrade()
                asked = not why_not
            elif asked:
                if document["put_back"]:
                    return str(document["put_back"])
                if self.running() == installed.sha256 and document["stage"] in {"steady", "draining"}:
                    return ""
            await asyncio.sleep(LOOK_S)
        return f"the Envoys did not change in time{': ' if why_not else ''}{why_not}"

    def _forget_old(self) -> None:
        """Remove what earlier rollouts brought, but what runs and what there may be a way back to."""
        choices = (chosen_binary.choice(self._config.state_dir), self._standing.choice)
        records = (process.read_record(self._config.directory_of(each)) for each in Instance)
        used = {Path(each["binary"]).parent.name for each in choices if each is not None}
        used |= {Path(each.binary).parent.name for each in records if each is not None}
        artifact.remove_brought(self._config.state_dir, used)

    def running(self) -> str:
        """Return the sha256 of the Envoy that serves; "" if none is known."""
        record = process.read_record(self._config.directory_of(self._envoys.active))
        return "" if record is None else record.sha256

    async def choose_again(self, choice: Mapping[str, str] | None) -> Installed:
        """Let a choice hold that held before, and return what that is. Raises ArtifactError."""
        chosen_binary.restore(self._config.state_dir, choice)
        installed = await asyncio.to_thread(chosen_binary.install, self._config)
        self._envoys.take_binary(installed)
        return installed
