"""What hostmesh-upgrade@.service runs: one request, from what was asked for to what became of it.

It is outside of the agent's cgroup, and lives on while packages are exchanged below it: what it needs is loaded before.
Whatever becomes of it, `pending.json` and `back/` say what is to be put back: the unit's last line does that without
it, and so does the next boot (hostmesh-upgrade-recover.service).
"""

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hostmesh_agent import update_order
from hostmesh_agent.config import DEFAULT_PATH, AgentConfig, parse
from hostmesh_agent.config_table import ConfigError
from hostmesh_agent.keys import signed_by
from hostmesh_agent.update_order import RefusedUpdateError
from hostmesh_agent.upgrader import packages, request, trusted, witness
from hostmesh_agent.upgrader.packages import PackageError, Packages
from hostmesh_agent.upgrader.record import DONE, FAILED, REFUSED, RUNNING, DamagedError, Memory, Pending, Record, Result
from hostmesh_agent.upgrader.request import MANIFEST, PACKAGE, SIGNATURE, SPOOL, BadRequestError, Request, Verb
from hostmesh_agent.upgrader.trusted import UntrustedError
from hostmesh_api.manifest import AGENT, MAX_MANIFEST_BYTES, PACKAGES, SIGNATURE_BYTES, Manifest

RECOVER: Final = "recover"
DEADLINE_S: Final = 30 * 60.0
"""The unit's TimeoutStartSec: nothing is under way for longer."""
TURN_WITHIN_S: Final = 10 * 60.0
_TURN_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Offered:
    """What the agent wrote down, before anything of it is believed."""

    component: str
    version: str
    manifest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Host:
    """Where things are, and who does them."""

    config: Path = DEFAULT_PATH
    memory: Memory = field(default_factory=Memory)
    machine: str = field(default_factory=lambda: os.uname().machine)
    packages: Callable[[str], Packages | None] = packages.here
    look: Callable[[Path], witness.Look] = witness.look
    restart: Callable[[], None] = witness.restart
    watch: Callable[..., str] = witness.watch
    now: Callable[[], float] = time.time


def main(arguments: list[str] | None = None) -> int:
    """Do what the unit's instance asks for."""
    words = sys.argv[1:] if arguments is None else arguments
    os.umask(0o022)
    host = Host()
    try:
        if words == [RECOVER]:
            recover(host)
            return 0
        (text,) = words
        return 0 if carry_out(request.parse(text), host).state == DONE else 1
    except (BadRequestError, ValueError) as error:
        sys.stderr.write(f"hostmesh-upgrade: refused: {error}\n")
        return 2


def carry_out(asked: Request, host: Host) -> Result:
    """Do it, and tell the agent what became of it."""
    memory = host.memory
    memory.prepare()
    memory.tell(asked.token, Result(RUNNING, until=host.now() + DEADLINE_S))
    try:
        with _alone(memory):
            _finish(host)
            result = Result(DONE, _Work(asked, host).run())
    except BlockingIOError:
        result = Result(REFUSED, f"another upgrade was under way for {TURN_WITHIN_S:.0f} s")
    except (RefusedUpdateError, ConfigError, UntrustedError, DamagedError) as error:
        result = Result(REFUSED, str(error))
    except (PackageError, OSError) as error:
        result = Result(FAILED, str(error))
    memory.tell(asked.token, result)
    sys.stderr.write(
        f"hostmesh-upgrade: {asked.package} {asked.version} {asked.verb}: {result.state} {result.reason}\n"
    )
    return result


def recover(host: Host) -> None:
    """Go on with what a power cut ended."""
    host.memory.prepare()
    with _alone(host.memory):
        _finish(host)


def _finish(host: Host) -> None:
    """End what a program before this one began: the new agent must come up, or the former one is put back."""
    memory = host.memory
    pending = memory.pending()
    if pending is None:
        return
    asked = Request(pending.package, pending.version, Verb.BACK, pending.token)
    work = _Work(asked, host)
    manager = work.manager()
    try:
        work.prove(manager, pending)
        result = Result(DONE)
    except (PackageError, OSError) as error:
        result = Result(FAILED, str(error))
    memory.tell(pending.token, result)


@contextmanager
def _alone(memory: Memory) -> Iterator[None]:
    """Wait until no other one is at work: what is asked for last is done last. Raises BlockingIOError."""
    until = time.monotonic() + TURN_WITHIN_S
    with (memory.directory / "lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
                time.sleep(_TURN_PAUSE_S)
        yield


class _Work:
    """One request. What is read is read again each time: whoever asks may have changed it."""

    def __init__(self, asked: Request, host: Host) -> None:
        self._asked = asked
        self._host = host
        self._memory = host.memory

    def run(self) -> str:
        """Do it; return what is worth telling, or raise why not."""
        asked, known = self._asked, self._memory.read()
        config = self._config()
        if asked.verb is Verb.SETTLE:
            return self._settle(config, known)
        update_order.allowed(config.updates, asked.component)
        manager = self.manager()
        before = manager.installed(asked.package)
        if before == asked.version:
            return "it is installed"
        if asked.verb is Verb.BACK:
            self._may_go_back(config, known)
        incoming = self._memory.incoming()
        former = self._copy_of_former(manager, before, incoming)
        path = self._bring(manager, config, known, packages.fresh(incoming / "new"))
        found = manager.is_of(path)
        if found != (asked.package, asked.version):
            raise RefusedUpdateError(f"what came is {' '.join(found)}, and not {asked.package} {asked.version}")
        kept = self._memory.keep(path, asked.package, asked.version)
        self._install(manager, config, kept, former, before)
        self._memory.incoming().rmdir()
        return ""

    # May it?

    def _config(self) -> AgentConfig:
        """Return what the owner says; no file is an owner who said nothing."""
        try:
            data = trusted.read(self._host.config)
        except FileNotFoundError:
            return AgentConfig()
        try:
            return parse(data.decode(), str(self._host.config))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._host.config}: {error}") from None

    def manager(self) -> Packages:
        found = self._host.packages(self._asked.package)
        if found is None:
            raise RefusedUpdateError(
                f"{self._asked.package} is not installed from a package on this host (neither dpkg nor rpm knows it)"
            )
        return found

    def _floor(self, known: Record) -> str:
        return known.floors.get(self._asked.package, "")

    def _may_go_back(self, config: AgentConfig, known: Record) -> None:
        asked = self._asked
        former = known.former.get(asked.package, "")
        if asked.version != former:
            raise RefusedUpdateError(f"what was there before is {former or 'not known'}, and not {asked.version}")
        update_order.not_below(asked.version, self._floor(known), config.updates.min_package, "min_package")

    def _manifest(self, config: AgentConfig, known: Record) -> Manifest:
        """Return what the owner's key has signed, of what lies in the agent's directory."""
        spool = config.state_dir / SPOOL
        offered = Offered(
            self._asked.component,
            self._asked.version,
            trusted.read_foreign(spool / MANIFEST, MAX_MANIFEST_BYTES),
            trusted.read_foreign(spool / SIGNATURE, SIGNATURE_BYTES),
        )
        return update_order.judged(offered, config.updates, self._floor(known), self._host.machine, signed_by)

    def _settle(self, config: AgentConfig, known: Record) -> str:
        manifest = self._manifest(config, known)
        floor = update_order.raised(self._floor(known), manifest)
        self._memory.write(replace(known, floors={**known.floors, self._asked.package: floor}))
        return ""

    # The files

    def _bring(self, manager: Packages, config: AgentConfig, known: Record, into: Path) -> Path:
        asked = self._asked
        if asked.verb is Verb.BACK:
            kept = self._memory.find_kept(asked.package, asked.version)
            return kept if kept is not None else manager.fetch(asked.package, asked.version, into)
        if asked.verb is Verb.PACKAGES:
            update_order.from_packages(asked.version, asked.component, config.updates, self._floor(known))
            return manager.fetch(asked.package, asked.version, into)
        manifest = self._manifest(config, known)
        file = manifest.packages.get(manager.kind)
        if file is None:
            raise RefusedUpdateError(f"the manifest names no .{manager.kind}, which this host needs")
        name = f"{asked.package}.{manager.kind}"
        return packages.copied(config.state_dir / SPOOL / PACKAGE, into, name, file.size_bytes, file.sha256)

    def _copy_of_former(self, manager: Packages, before: str, incoming: Path) -> Path:
        """Return a package of what is installed: without one there is no way back, and so none forth."""
        package = self._asked.package
        kept = self._memory.find_kept(package, before)
        if kept is not None and manager.is_of(kept) == (package, before):
            return kept
        try:
            found = manager.fetch(package, before, packages.fresh(incoming / "former"))
        except PackageError as error:
            raise RefusedUpdateError(
                f"there is no copy of {package} {before} to go back to: no repository of this host has it ({error}); "
                f"put its .{manager.kind} there as {self._memory.kept / f'{package}_{before}.{manager.kind}'}"
            ) from None
        return self._memory.keep(found, package, before)

    # The change

    def _install(self, manager: Packages, config: AgentConfig, path: Path, former: Path, before: str) -> None:
        asked = self._asked
        seen = self._host.look(config.control_socket)
        back = asked.verb is Verb.BACK
        pending = Pending(asked.package, asked.version, before, asked.token, connected=seen.connected, back=back)
        self._memory.begin(pending, former)
        try:
            manager.install(path)
            if manager.installed(asked.package) != asked.version:
                raise PackageError(f"{asked.package} {asked.version} is not installed whole")
        except PackageError as error:
            self._put_back(manager, pending, f"it was not installed: {error}")
        if asked.component == AGENT:
            self._host.restart()
        # Envoy is the agent's to judge, and what was there before has shown what it is.
        if asked.component == AGENT and not back:
            self.prove(manager, pending, seen.invocation)
        else:
            self._conclude(pending)

    def prove(self, manager: Packages, pending: Pending, invocation: str = "") -> None:
        """Wait for the new agent; put the former one back if it does not come up. Raises PackageError then."""
        control = self._config().control_socket
        why = self._host.watch(pending.version, control, connected=pending.connected, before=invocation)
        if why:
            self._put_back(manager, pending, f"the agent did not come up: {why}")
        self._conclude(pending)

    def _conclude(self, pending: Pending) -> None:
        known = self._memory.read()
        former = {**known.former, pending.package: pending.before}
        if pending.back:
            del former[pending.package]
        self._memory.write(replace(known, former=former))
        self._memory.forget_kept(pending.package, (pending.version, pending.before))
        self._memory.end()

    def _put_back(self, manager: Packages, pending: Pending, why: str) -> None:
        """Install what was there before, and raise PackageError with why that was to be done."""
        former = next(self._memory.back.iterdir())
        try:
            manager.put_back(former)
        except PackageError as error:
            # The next boot tries again.
            raise PackageError(f"{why}; {pending.before} could not be put back: {error}") from error
        self._memory.end()
        if pending.package == PACKAGES[AGENT]:
            self._host.restart()
        raise PackageError(f"{why}; {pending.before} was put back")


if __name__ == "__main__":
    sys.exit(main())
