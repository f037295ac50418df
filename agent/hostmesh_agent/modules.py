"""The modules of Wasm plugins on this host's disk: fetched, verified, kept for a start without any network.

Envoy is told of a plugin when it is decided what it gets: its module, or what stands for a module that cannot be had.
Until then it keeps what it has.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent.child import PYTHON, running
from hostmesh_agent.wasm import Want, want_of, with_file, without_module
from hostmesh_agent.workdir import may_hand_to
from hostmesh_api.delta import Resource
from hostmesh_api.dialling import DialPolicy

DIRECTORY: Final = "wasm"
"""Below Envoy's working directory, and how Envoy names it."""
TIMEOUT_S: Final = 30.0
"""Of one attempt (Istio's number)."""
AT_ONCE: Final = 4
"""Modules that are fetched at the same time. Each may be 256 MiB, in memory and more than once while it is unpacked."""
ATTEMPTS: Final = 5
"""Until something else stands for the module (Istio's number); it is asked for later again."""
FIRST_PAUSE_S: Final = 0.5
LATER_S: Final = (15.0, 60.0, 300.0)
"""Pauses after it has been given up for the time being; the last one from then on."""
KEPT_S: Final = 24 * 3600.0
"""How long a module that nobody needs stays (Istio's number): a plugin may be taken back."""
SWEEP_AFTER_S: Final = 3600.0
"""From the start on: before that Envoy may not have asked for all that it uses."""
# Not imported: the agent has no TLS (see `slim`), and this needs it.
_FETCH: Final = str(Path(__file__).with_name("wasm_fetch.py"))
_EXIT_NEVER: Final = 1
_EXIT_LATER: Final = 75
"""Its exit codes."""
_INDEX: Final = "index.json"
_MODE: Final = 0o750
_CHUNK_BYTES: Final = 1 << 20

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ModuleState:
    """How it stands with the module of one plugin. `error` says why it is not there."""

    name: str
    url: str
    there: bool
    error: str
    fail_open: bool


@dataclass(slots=True)
class _Module:
    """`given` is what Envoy gets, None until that is decided."""

    resource: Resource
    want: Want
    task: "asyncio.Task[None] | None" = None
    given: Resource | None = None
    sha256: str = ""
    error: str = ""


@dataclass(slots=True)
class _Index:
    """What was last found at each address, and for which version of which configuration."""

    path: Path
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def load(self) -> None:
        try:
            document = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return
        if isinstance(document, dict):
            self.found = {url: each for url, each in document.items() if isinstance(each, dict)}

    def sha256(self, want: Want) -> str:
        """Return the sum of the module that a plugin without one may go on with, "" if it is to be asked for."""
        entry = self.found.get(want.url, {})
        if want.always and entry.get("versions", {}).get(want.name) != want.version:
            return ""
        return str(entry.get("sha256", ""))

    def put(self, want: Want, sha256: str) -> None:
        entry = self.found.setdefault(want.url, {})
        versions = {**entry.get("versions", {}), want.name: want.version}
        if entry == {"sha256": sha256, "versions": versions}:
            return
        self.found[want.url] = {"sha256": sha256, "versions": versions}
        draft = self.path.with_name(f".{_INDEX}.{os.getpid()}")
        draft.write_text(json.dumps(self.found, sort_keys=True), encoding="utf-8")
        draft.replace(self.path)


class Modules:
    """Answers for each plugin what Envoy gets.

    Args:
        directory: of the modules.
        group: Envoy's, which may read them.
        decided: called with a plugin's name when Envoy is to be told something else.
        policy: which addresses may be asked for modules.
    """

    def __init__(
        self, directory: Path, group: int, decided: Callable[[str], None], policy: DialPolicy | None = None
    ) -> None:
        self._directory = directory
        self._group = group
        self._decided = decided
        self._policy = policy or DialPolicy()
        self._modules: dict[str, _Module] = {}
        self._index = _Index(directory / _INDEX)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._ready = False
        self._since = 0.0

    def given(self, resource: Resource) -> Resource | None:
        """Return what Envoy gets for a configuration; None until that is decided."""
        known = self._modules.get(resource.name)
        if known is not None and known.resource.version == resource.version:
            return known.given
        want = want_of(resource)
        if want is None:
            return resource
        self.forget(resource.name)
        if not self._since:
            self._since = asyncio.get_running_loop().time()
        module = self._modules[resource.name] = _Module(resource, want)
        module.task = asyncio.get_running_loop().create_task(self._get(module), name=f"wasm {resource.name}")
        return None

    def refused(self, resource: Resource, why: str) -> None:
        """Take to what stands for a plugin whose module is here and which Envoy would not have."""
        want = want_of(resource)
        if want is None:
            return
        self.forget(resource.name)
        error = f"Envoy refuses it: {why}"
        self._modules[resource.name] = _Module(resource, want, given=without_module(resource), error=error)
        log.warning("wasm module refused by envoy", plugin=want.name, url=want.url, reason=why)
        self._decided(want.name)

    def forget(self, name: str) -> None:
        """Stop caring for a plugin that is gone."""
        module = self._modules.pop(name, None)
        if module is not None and module.task is not None:
            module.task.cancel()

    def states(self) -> list[ModuleState]:
        return [
            ModuleState(name, each.want.url, bool(each.sha256), each.error, each.want.fail_open)
            for name, each in sorted(self._modules.items())
        ]

    def close(self) -> None:
        for name in list(self._modules):
            self.forget(name)

    async def _get(self, module: _Module) -> None:
        """Look for a module until it is there."""
        try:
            await asyncio.to_thread(self._prepare)
            tried = later = 0
            while not await self._attempt(module):
                tried += 1
                if tried >= ATTEMPTS:
                    self._give_up(module, module.error)
                if module.given is None:
                    await asyncio.sleep(FIRST_PAUSE_S * 2 ** (tried - 1))
                else:
                    await asyncio.sleep(LATER_S[min(later, len(LATER_S) - 1)])
                    later += 1
        except Exception as error:
            # Mostly the disk, and then the owner of the host must act. Whatever it is: Envoy waits for an answer.
            log.error("wasm module cannot be kept", plugin=module.want.name, reason=str(error), exc_info=error)
            self._give_up(module, str(error) or type(error).__name__)

    async def _attempt(self, module: _Module) -> bool:
        want = module.want
        kept = want.sha256 or self._index.sha256(want)
        is_file = want.url.startswith("file://")
        if kept and not (is_file and not want.sha256) and await self._has(kept):
            self._take(module, kept)
            return True
        code, told = await self._fetch(want)
        if code == 0:
            self._take(module, told)
            return True
        if kept and await self._has(kept):
            # The file that it was made from is gone; what was verified is still here.
            self._take(module, kept)
            return True
        module.error = told
        log.warning("wasm module cannot be fetched", plugin=want.name, url=want.url, reason=told)
        if code == _EXIT_NEVER:
            self._give_up(module, told)
        return False

    def _take(self, module: _Module, sha256: str) -> None:
        self._index.put(module.want, sha256)
        module.sha256, module.error = sha256, ""
        module.given = with_file(module.resource, f"{DIRECTORY}/{sha256}.wasm", sha256)
        log.info("wasm module", plugin=module.want.name, sha256=sha256)
        if asyncio.get_running_loop().time() - self._since >= SWEEP_AFTER_S:
            self._sweep()
        self._decided(module.want.name)

    def _give_up(self, module: _Module, why: str) -> None:
        module.error = why
        if module.given is None:
            module.given = without_module(module.resource)
            self._decided(module.want.name)

    async def _has(self, sha256: str) -> bool:
        there: bool = await asyncio.to_thread(self._is_there, sha256)
        return there

    async def _fetch(self, want: Want) -> tuple[int, str]:
        """Return the exit code of `wasm_fetch` and what it says."""
        where = (str(self._directory), str(self._group), want.sha256, want.url)
        fetch = (*PYTHON, _FETCH, *where, *self._policy.as_arguments())
        try:
            async with (
                self._turns,
                asyncio.timeout(TIMEOUT_S),
                running(*fetch, stdout=asyncio.subprocess.PIPE) as process,
            ):
                out, _ = await process.communicate()
        except TimeoutError:
            return _EXIT_LATER, f"not within {TIMEOUT_S:.0f} s"
        code = process.returncode
        return _EXIT_LATER if code is None else code, out.decode(errors="replace").strip()[:500]

    def _prepare(self) -> None:
        if self._ready:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if may_hand_to(self._group):
            os.chown(self._directory, -1, self._group)
        self._directory.chmod(_MODE)
        self._index.load()
        self._ready = True

    def _is_there(self, sha256: str) -> bool:
        """Tell whether a module is on disk, as it should be: after a power cut it may not be."""
        digest = hashlib.sha256()
        try:
            with (self._directory / f"{sha256}.wasm").open("rb") as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError:
            return False
        return digest.hexdigest() == sha256

    def _sweep(self) -> None:
        used = {each.sha256 for each in self._modules.values()}
        before = time.time() - KEPT_S
        for path in self._directory.glob("*.wasm"):
            if path.stem not in used and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
