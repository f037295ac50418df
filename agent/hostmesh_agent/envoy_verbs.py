"""What the agent does when the owner of the host asks for it: change Envoys, drain the host."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from hostmesh_agent import chosen_binary, control
from hostmesh_agent.artifact import ArtifactError
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.control import Verb
from hostmesh_agent.drained import Drained
from hostmesh_agent.envoys import Envoys


class Reports(Protocol):
    """Tells the controller."""

    def changed(self) -> None: ...

    @property
    def delivered(self) -> int: ...

    @property
    def failing(self) -> str: ...


class EnvoyVerbs:
    """Answers on the control socket."""

    def __init__(self, config: AgentConfig, envoys: Envoys, drained: Drained, reports: Reports) -> None:
        self._config = config
        self._envoys = envoys
        self._drained = drained
        self._reports = reports
        self._told_at = 1
        """Once so many reports are delivered the controller knows what the marks say: at first, those of before."""

    def verbs(self) -> Mapping[str, Verb]:
        return {
            control.ENVOY_UPGRADE: self._upgrade,
            control.ENVOY_ROLLBACK: self._rollback,
            control.DRAIN: self._drain,
            control.DRAIN_UNTIL_BOOT: self._drain_until_boot,
            control.UNDRAIN: self._undrain,
            control.UNDRAIN_UNTIL_BOOT: self._undrain_until_boot,
        }

    async def _upgrade(self) -> dict[str, Any]:
        try:
            installed = await asyncio.to_thread(chosen_binary.install, self._config)
        except ArtifactError as error:
            return {"begun": False, "why_not": str(error)}
        # A change that is under way goes on: it would end where another binary is wanted.
        why_not = self._envoys.changing()
        if not why_not:
            self._envoys.take_binary(installed)
            why_not = self._envoys.upgrade()
        return {"begun": not why_not, "why_not": why_not, "sha256": installed.sha256}

    async def _rollback(self) -> dict[str, Any]:
        why_not = self._envoys.rollback()
        return {"begun": not why_not, "why_not": why_not, "instance": self._envoys.earlier.value}

    async def _drain(self) -> dict[str, Any]:
        return await self._draining(until_boot=False)

    async def _drain_until_boot(self) -> dict[str, Any]:
        return await self._draining(until_boot=True)

    async def _draining(self, *, until_boot: bool) -> dict[str, Any]:
        """Begin to drain, or say how far that is: asked again until it is done."""
        told = self._mark(True, until_boot=until_boot)
        calls, begun = await self._envoys.calls()
        return {"told": told, "failing": self._reports.failing, "calls": calls, "begun": begun}

    async def _undrain(self) -> dict[str, Any]:
        return self._undrained(until_boot=False)

    async def _undrain_until_boot(self) -> dict[str, Any]:
        return self._undrained(until_boot=True)

    def _undrained(self, *, until_boot: bool) -> dict[str, Any]:
        """End it, or say how far that is: asked again until the controller knows it."""
        told = self._mark(False, until_boot=until_boot)
        return {"drained": self._drained.asked, "told": told, "failing": self._reports.failing}

    def _mark(self, wanted: bool, *, until_boot: bool) -> bool:
        """Set a mark or take it away; return whether the controller has been told how it is."""
        before = self._drained.asked
        self._drained.ask(wanted, until_boot=until_boot)
        if self._drained.asked != before:
            # The report that is being delivered may have been made before.
            self._told_at = self._reports.delivered + 2
        told = self._reports.delivered >= self._told_at
        if not told:
            self._reports.changed()
        return told
