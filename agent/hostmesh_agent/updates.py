"""Other versions that a controller brings: fetched, checked, and put in by the change of Envoys that there is.

    order ▶ may it? ▶ fetch ▶ sha256 ▶ installed ▶ chosen ▶ the two Envoys change ▶ done, or put back as it was

An order is tried once. Where it fails the choice is what it was before, so that the next Envoy is the old one too.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import structlog

from hostmesh_agent import artifact, artifact_fetch, call_figures, chosen_binary, keyroom, process, update_order
from hostmesh_agent.admin import Admin
from hostmesh_agent.artifact import ArtifactError, Installed
from hostmesh_agent.artifact_fetch import FetchError
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.places import Instance
from hostmesh_agent.state import StateError, read_private, write_private
from hostmesh_agent.update_order import CHANGING, DONE, FAILED, FETCHING, REFUSED, Order, RefusedUpdateError, Standing
from hostmesh_agent.uplink import NotConnectedError
from hostmesh_api.manifest import Manifest
from hostmesh_api.v1.hostmesh_pb2 import CallFigures, FetchRequest, UpdateState, WantedUpdate

ENVOY: Final = "envoy"
LOOK_S: Final = 0.5
"""How often it is looked how far the change of Envoys is."""
BEYOND_PROBATION_S: Final = 120.0
"""A change is given the time of rehearsal and probation, and this for the start and the rules (`upgrade`)."""
FIRST_PAUSE_S: Final = 1.0
LAST_PAUSE_S: Final = 30.0
_FINAL: Final = {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT}

log = structlog.get_logger(__name__)


class Envoys(Protocol):
    """Who changes them."""

    @property
    def active(self) -> Instance: ...

    def document(self) -> dict[str, Any]: ...

    def take_binary(self, installed: Installed) -> None: ...

    def upgrade(self) -> str: ...


class SupersededError(Exception):
    """Something else is wanted by now."""


class Updates:
    """Carries out what is wanted, one order after the other. `fetch` asks the controller for a piece.

    Args:
        config: what the host's owner says.
        machine: as `uname -m` says it.
        envoys: the two.
        admin: of the one that serves.
        fetch: raises NotConnectedError or an RPC's error.
        changed: is called whenever `tell` would answer differently.
    """

    def __init__(
        self,
        config: AgentConfig,
        machine: str,
        envoys: Envoys,
        admin: Admin,
        fetch: Callable[[FetchRequest], Awaitable[bytes]],
        changed: Callable[[], None],
    ) -> None:
        self._config = config
        self._machine = machine
        self._envoys = envoys
        self._admin = admin
        self._fetch = fetch
        self._changed = changed
        self._wanted: WantedUpdate | None = None
        self._standing = self._load()
        self._wake = asyncio.Event()

    def take(self, updates: Iterable[WantedUpdate]) -> None:
        """Take what the configuration wants now; called on the event loop."""
        wanted = next((each for each in updates if each.component == ENVOY), None)
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()

    async def tell(self) -> list[UpdateState]:
        """Return how far it is; nothing where nothing is wanted, which costs nothing."""
        wanted, standing = self._wanted, self._standing
        if wanted is None:
            return []
        order = update_order.order_in(wanted)
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
            if standing.state == DONE:
                told.after.CopyFrom(_figures(await call_figures.look(self._admin)))
        return [told]

    async def run(self) -> None:
        """Carry out what is wanted until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted = self._wanted
            if wanted is None:
                continue
            try:
                await self._one(wanted)
            except SupersededError:
                continue
            except OSError as error:
                log.error("an update stands still: it cannot be written down", reason=str(error))

    async def _one(self, wanted: WantedUpdate) -> None:
        order = update_order.order_in(wanted)
        if not self._standing.concluded(order):
            log.info("update begins", version=order.version, back=order.back, rollout=order.rollout)
            try:
                await (self._go_back(order) if order.back else self._go_on(order, wanted))
            except RefusedUpdateError as error:
                await self._conclude(order, REFUSED, str(error))
            except (FetchError, ArtifactError) as error:
                await self._conclude(order, FAILED, str(error))
        if wanted.settled and self._standing.order == order and self._standing.state == DONE:
            try:
                await self._raise_floor(wanted)
            except RefusedUpdateError as error:
                log.warning("the floor stays: what is everywhere would not be taken now", reason=str(error))

    async def _go_on(self, order: Order, wanted: WantedUpdate) -> None:
        settings, floor = self._config.updates, self._standing.floor
        manifest = await asyncio.to_thread(
            update_order.judged, wanted, settings, floor, self._machine, keyroom.signed_by
        )
        await self._keep(replace(self._standing, order=order, state=FETCHING, reason=""))
        await asyncio.to_thread(self._forget_old)
        path = await artifact_fetch.fetch(manifest, self._config.state_dir, lambda at: self._piece(order, manifest, at))
        installed = await asyncio.to_thread(
            artifact.install, path, manifest.sha256, self._config.state_dir, version=manifest.version
        )
        path.unlink(missing_ok=True)
        choice = chosen_binary.choice(self._config.state_dir)
        if choice is None or choice.get("sha256") != manifest.sha256:
            self._standing = replace(self._standing, choice=choice, rollout=order.rollout)
        before = await call_figures.look(self._admin) if self._running() != manifest.sha256 else self._standing.before
        await self._keep(replace(self._standing, state=CHANGING, before=before))
        chosen_binary.choose(self._config.state_dir, installed.path, installed.sha256, installed.version)
        why = await self._change_to(installed)
        if why:
            await self._choose_again(self._standing.choice)
        await self._conclude(order, FAILED if why else DONE, why)

    async def _go_back(self, order: Order) -> None:
        """Return to what was chosen before the rollout; that is nothing new, and needs no signature."""
        update_order.allowed(self._config.updates, ENVOY)
        if self._standing.rollout != order.rollout:
            await self._conclude(order, DONE, "this rollout changed nothing here")
            return
        await self._keep(replace(self._standing, order=order, state=CHANGING, reason=""))
        installed = await self._choose_again(self._standing.choice)
        why = await self._change_to(installed)
        if not why:
            self._standing = replace(self._standing, rollout="", choice=None)
        await self._conclude(order, FAILED if why else DONE, why)

    async def _piece(self, order: Order, manifest: Manifest, offset: int) -> bytes:
        """Return a piece as soon as it can be had. A controller that is away is waited for."""
        request = FetchRequest(
            component=manifest.component, version=manifest.version, machine=manifest.machine, offset=offset
        )
        pause_s = FIRST_PAUSE_S
        while True:
            self._still(order)
            try:
                return await self._fetch(request)
            except NotConnectedError:
                pass
            except grpc.aio.AioRpcError as error:
                if error.code() in _FINAL:
                    raise FetchError(f"the controller does not give it: {error.details()}") from error
            await self._pause(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _still(self, order: Order) -> None:
        if self._wanted is None or update_order.order_in(self._wanted) != order:
            raise SupersededError

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _change_to(self, installed: Installed) -> str:
        """Let the Envoys change; return why it does not serve, "" if it does. What was begun is waited for."""
        loop, times = asyncio.get_running_loop(), self._config.envoy
        until = loop.time() + times.rehearsal_s + times.probation_s + BEYOND_PROBATION_S
        asked, why_not = False, ""
        while loop.time() < until:
            document = self._envoys.document()
            if not asked and document["stage"] == "steady":
                if self._running() == installed.sha256:
                    return ""
                self._envoys.take_binary(installed)
                why_not = self._envoys.upgrade()
                asked = not why_not
            elif asked:
                if document["put_back"]:
                    return str(document["put_back"])
                if self._running() == installed.sha256 and document["stage"] in {"steady", "draining"}:
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

    def _running(self) -> str:
        """Return the sha256 of the Envoy that serves; "" if none is known."""
        record = process.read_record(self._config.directory_of(self._envoys.active))
        return "" if record is None else record.sha256

    async def _choose_again(self, choice: Mapping[str, str] | None) -> Installed:
        chosen_binary.restore(self._config.state_dir, choice)
        installed = await asyncio.to_thread(chosen_binary.install, self._config)
        self._envoys.take_binary(installed)
        return installed

    async def _raise_floor(self, wanted: WantedUpdate) -> None:
        """Once a version is everywhere there is no going back below what its manifest names."""
        manifest = await asyncio.to_thread(
            update_order.judged, wanted, self._config.updates, "", self._machine, keyroom.signed_by
        )
        floor = update_order.raised(self._standing.floor, manifest)
        if floor != self._standing.floor:
            await self._keep(replace(self._standing, floor=floor, rollout="", choice=None))
            log.info("no version below is taken from a controller any more", floor=floor)

    async def _conclude(self, order: Order, state: str, reason: str) -> None:
        say = log.info if state == DONE else log.error
        say("update concluded", version=order.version, back=order.back, state=state, reason=reason)
        await self._keep(replace(self._standing, order=order, state=state, reason=reason[:1000]))

    # On disk

    async def _keep(self, standing: Standing) -> None:
        data = json.dumps(update_order.written(standing)).encode() + b"\n"
        await asyncio.to_thread(write_private, self._config.state_dir / update_order.FILE, data)
        self._standing = standing
        self._changed()

    def _load(self) -> Standing:
        try:
            return update_order.read(json.loads(read_private(self._config.state_dir / update_order.FILE)))
        except FileNotFoundError:
            return Standing()
        except (StateError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # The order that stands is tried again; its floor is lost, that of agent.toml is not.
            log.error("what is known of updates cannot be read", reason=str(error))
            return Standing()


def _figures(said: Mapping[str, float]) -> CallFigures:
    return CallFigures(
        calls=int(said.get("calls", 0)),
        failed=int(said.get("failed", 0)),
        timed=int(said.get("timed", 0)),
        time_ms=said.get("time_ms", 0.0),
    )
