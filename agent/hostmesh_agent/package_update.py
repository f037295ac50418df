"""Another version of a package: hostmesh-agent, or hostmesh-envoy. This agent only asks for it.

What changes packages is a program of root's (`upgrader`), which judges by itself. It outlives this agent, whose restart
is a part of it: what an agent asked for, the next one reads the end of.

    order ▶ may it? ▶ fetch ▶ ask for hostmesh-upgrade@… ▶ (another agent) ▶ what became of it ▶ done, or failed
"""

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

import hostmesh_agent
from hostmesh_agent import artifact_fetch, chosen_binary, host, keyroom, packaged_envoy, rights, update_order
from hostmesh_agent.artifact_fetch import FetchError
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.envoy_update import EnvoyUpdate
from hostmesh_agent.packaged_envoy import PackageDamagedError
from hostmesh_agent.state import write_private
from hostmesh_agent.update_fetch import Fetch
from hostmesh_agent.update_ledger import Ledger
from hostmesh_agent.update_order import CHANGING, FETCHING, Order, RefusedUpdateError, Standing
from hostmesh_agent.upgrader import record
from hostmesh_agent.upgrader.record import RUNNING, Result
from hostmesh_agent.upgrader.request import MANIFEST, PACKAGE, SIGNATURE, Request, Verb
from hostmesh_api.manifest import AGENT, ENVOY, PACKAGES, Manifest
from hostmesh_api.v1.hostmesh_pb2 import WantedUpdate

HOME: Final = Path("/usr/lib/hostmesh-agent")
"""Of the package."""
BEGINS_WITHIN_S: Final = 60.0
BEYOND_S: Final = 30.0
LOOK_S: Final = 0.5
_ASK_WITHIN_S: Final = 20.0

log = structlog.get_logger(__name__)


def ask(request: Request) -> None:
    """Have systemd start the unit. Blocks. Raises OSError."""
    asked = {
        "package": request.package,
        "version": request.version,
        "way": request.verb.value,
        "token": request.token,
    }
    rights.here().ask_upgrade(asked, lambda: _start(request))


def _start(request: Request) -> None:
    try:
        done = subprocess.run(
            ["systemctl", "--no-block", "--no-ask-password", "start", "--", request.unit],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ASK_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"systemctl: no answer within {_ASK_WITHIN_S:.0f} s") from None
    if done.returncode != 0:
        raise OSError(f"systemctl start {request.unit}: {done.stderr.strip()[-300:]}")


@dataclass(frozen=True, slots=True)
class Place:
    """How this host has its packages, and who changes them.

    Attributes:
        code: where this agent's code is.
        home: where the package has it.
        envoy: where the package hostmesh-envoy is.
        results: directory of the program of root's.
        dpkg: dpkg's list of packages, which only hosts with dpkg have.
        agent_version: returns what this agent is.
        ask: starts a unit.
    """

    code: Path = Path(hostmesh_agent.__file__).parent
    home: Path = HOME
    envoy: Path = packaged_envoy.HOME
    results: Path = record.STATE
    dpkg: Path = Path("/var/lib/dpkg/status")
    agent_version: Callable[[], str] = host.agent_version
    ask: Callable[[Request], None] = ask

    @property
    def kind(self) -> str:
        return "deb" if self.dpkg.exists() else "rpm"


class PackageUpdate:
    """Makes the two Ways of `updates`."""

    def __init__(self, config: AgentConfig, machine: str, place: Place = Place()) -> None:
        self._config = config
        self._machine = machine
        self._place = place
        self._ways: dict[str, _Way] = {}

    def use(
        self,
        envoy: EnvoyUpdate,
        fetch: Fetch,
        ledger: Ledger,
        figures: Callable[[], Awaitable[Mapping[str, float]]],
    ) -> None:
        parts = self._config, self._machine, self._place, fetch, ledger, figures
        self._ways = {AGENT: _Way(AGENT, None, *parts), ENVOY: _Way(ENVOY, envoy, *parts)}

    def of(self, component: str) -> "_Way":
        return self._ways[component]


class _Way:
    def __init__(
        self,
        component: str,
        envoy: EnvoyUpdate | None,
        config: AgentConfig,
        machine: str,
        place: Place,
        fetch: Fetch,
        ledger: Ledger,
        figures: Callable[[], Awaitable[Mapping[str, float]]],
    ) -> None:
        self._component = component
        self._package = PACKAGES[component]
        self._envoy = envoy
        self._config = config
        self._machine = machine
        self._place = place
        self._fetch = fetch
        self._ledger = ledger
        self._figures = figures

    @property
    def _standing(self) -> Standing:
        return self._ledger.of(self._component)

    async def _keep(self, standing: Standing) -> None:
        await asyncio.to_thread(self._ledger.write, self._component, standing)

    async def go_on(self, order: Order, wanted: WantedUpdate) -> str:
        settings, standing = self._config.updates, self._standing
        update_order.allowed(settings, self._component)
        installed = self._installed()
        manifest = None
        if wanted.source == update_order.PACKAGES:
            update_order.from_packages(order.version, self._component, settings, standing.floor)
        else:
            manifest = await asyncio.to_thread(self._judged, wanted, standing.floor)
        asked = self._request(order, Verb.PACKAGES if manifest is None else Verb.MIRROR)
        goes_on = standing.order == order and standing.state == CHANGING
        if not goes_on:
            await self._keep(replace(standing, order=order, state=FETCHING, reason=""))
            if manifest is not None and installed != order.version:
                await self._spool(order, wanted, manifest)
            if installed != order.version:
                standing = replace(standing, package=installed, choice=self._choice(), rollout=order.rollout)
            before = await self._figures()
            await self._keep(replace(standing, order=order, state=CHANGING, reason="", before=before))
        why = "" if installed == order.version and not goes_on else await self._asked(asked)
        return why or await self._serve(order)

    async def go_back(self, order: Order) -> str:
        update_order.allowed(self._config.updates, self._component)
        standing = self._standing
        if standing.rollout != order.rollout or not standing.package:
            log.info("this rollout changed nothing here", rollout=order.rollout)
            return ""
        await self._keep(replace(standing, order=order, state=CHANGING, reason=""))
        # Whatever is installed now: what was asked for before may still be under way, and this is done after it.
        why = await self._asked(self._request(order, Verb.BACK, standing.package))
        if not why and self._envoy is not None:
            why = await self._envoy.change_to(await self._envoy.choose_again(standing.choice))
        if not why:
            await self._keep(replace(self._standing, rollout="", choice=None, package=""))
        return why

    async def settle(self, order: Order, wanted: WantedUpdate) -> None:
        if wanted.source == update_order.PACKAGES:
            return  # nothing is signed that names a floor: min_package of agent.toml is one
        manifest = await asyncio.to_thread(self._judged, wanted, "")
        floor = update_order.raised(self._standing.floor, manifest)
        if floor == self._standing.floor:
            return
        await asyncio.to_thread(self._write_spool, wanted)
        why = await self._asked(self._request(order, Verb.SETTLE))
        if why:
            log.warning("the floor stays", reason=why)
            return
        await self._keep(replace(self._standing, floor=floor, rollout="", package="", choice=None))
        log.info("no version below is taken from a controller any more", package=self._package, floor=floor)

    # May it?

    def _judged(self, wanted: WantedUpdate, floor: str) -> Manifest:
        return update_order.judged(wanted, self._config.updates, floor, self._machine, keyroom.signed_by)

    def _installed(self) -> str:
        """Return the version of the package. Raises RefusedUpdateError: it is none that can be exchanged."""
        place = self._place
        if not place.code.is_relative_to(place.home):
            raise RefusedUpdateError(
                f"this agent was not installed from the package {PACKAGES[AGENT]} (its code is in {place.code}): "
                "whoever installed it brings its next version"
            )
        if self._component == AGENT:
            return place.agent_version()
        if self._config.envoy.binary is not None:
            raise RefusedUpdateError(f"agent.toml names envoy.binary: the package {PACKAGES[ENVOY]} is not what runs")
        found = packaged_envoy.package_version(place.envoy)
        if not found:
            raise RefusedUpdateError(f"the package {PACKAGES[ENVOY]} is not installed here, or is too old to say so")
        return found

    def _choice(self) -> Mapping[str, str] | None:
        return chosen_binary.choice(self._config.state_dir) if self._envoy is not None else None

    # The asking

    def _request(self, order: Order, verb: Verb, version: str = "") -> Request:
        token = update_order.token_of(order, self._component, verb)
        return Request(self._package, version or order.version, verb, token)

    async def _spool(self, order: Order, wanted: WantedUpdate, manifest: Manifest) -> None:
        kind = self._place.kind
        if kind not in manifest.packages:
            raise RefusedUpdateError(f"the manifest names no .{kind}, which this host needs")
        path = await self._fetch.file(order, manifest, kind)
        await asyncio.to_thread(os.replace, path, path.with_name(PACKAGE))
        await asyncio.to_thread(self._write_spool, wanted)

    def _write_spool(self, wanted: WantedUpdate) -> None:
        spool = self._config.state_dir / artifact_fetch.DIRECTORY
        spool.mkdir(mode=0o700, exist_ok=True)
        write_private(spool / MANIFEST, wanted.manifest)
        write_private(spool / SIGNATURE, wanted.signature)

    async def _asked(self, request: Request) -> str:
        """Ask for it unless that was done, and wait; return why it failed, "" if it did not. This agent may end in it.

        Raises:
            RefusedUpdateError: the program of root's does not do it.
        """
        result = await asyncio.to_thread(self._result, request)
        if result is None:
            try:
                await asyncio.to_thread(self._place.ask, request)
            except OSError as error:
                return str(error)
        loop = asyncio.get_running_loop()
        until = loop.time() + BEGINS_WITHIN_S
        while result is None or result.state == RUNNING:
            if result is None and loop.time() > until:
                return f"{request.unit} did not begin within {BEGINS_WITHIN_S:.0f} s"
            if result is not None and host.now_s() > result.until + BEYOND_S:
                return f"{request.unit} ended without a word"
            await asyncio.sleep(LOOK_S)
            result = await asyncio.to_thread(self._result, request)
        if result.state == record.REFUSED:
            raise RefusedUpdateError(result.reason)
        return result.reason if result.state != record.DONE else ""

    def _result(self, request: Request) -> Result | None:
        return record.told(request, self._place.results)

    # What comes of it

    async def _serve(self, order: Order) -> str:
        """Let the new package be what runs; return why it is not, and then what was there before is again."""
        if self._envoy is None:
            found = self._place.agent_version()
            return "" if found == order.version else f"this agent is {found}, and not {order.version}"
        try:
            self._check_envoy()
            why = await self._envoy.change_to(await self._envoy.choose_again(None))
        except RefusedUpdateError as error:
            why = str(error)
        standing = self._standing
        if not why or not standing.package:
            return why
        undone = await self._asked(self._request(order, Verb.BACK, standing.package))
        await self._envoy.choose_again(standing.choice)
        return f"{why}; {undone}" if undone else why

    def _check_envoy(self) -> None:
        try:
            found = packaged_envoy.read(self._place.envoy)
        except PackageDamagedError as error:
            raise FetchError(str(error)) from None
        if found is not None:
            update_order.not_below(found.version, "", self._config.updates.min_envoy, "min_envoy")
