"""One host taken out over SSH: it leaves, its packages are purged, and the controller forgets it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from hostmesh_controller.cli.connection import Connection, part
from hostmesh_controller.cli.failure import CliError
from hostmesh_controller.cli.ssh import facts, steps
from hostmesh_controller.cli.ssh.installing import INSTALL_S
from hostmesh_controller.cli.ssh.joining import known, suppress_missing
from hostmesh_controller.cli.ssh.packages import PACKAGES, manager_of
from hostmesh_controller.cli.ssh.session import Access, Doorway
from hostmesh_controller.cli.ssh.steps import HostResult, StepError


@dataclass(slots=True)
class Leaving:
    """It can be repeated: what is done already is left out. The controller forgets last, so it can be tried again."""

    name: str
    access: Access
    connection: Connection
    tell: Callable[[str], None]
    workloads: bool = False
    halted: threading.Event = field(default_factory=threading.Event)
    _step: str = steps.CONNECT
    _door: Doorway = field(init=False)

    def __post_init__(self) -> None:
        self._door = Doorway(self.access, self.halted)

    def halt(self) -> None:
        """End what runs; what was done stays, and a repetition goes on from there."""
        self.halted.set()
        self._door.halt()

    def run(self) -> HostResult:
        door = self._door
        try:
            self._host(door)
            self._begin(steps.FORGET)
            with suppress_missing():
                self.connection.request(
                    "DELETE", f"/v1/hosts/{part(self.name)}", params={"workloads": str(self.workloads).lower()}
                )
        except (StepError, CliError) as error:
            cure = getattr(error, "cure", "")
            return HostResult(self.name, "failed", self._step, str(error).removeprefix("error: "), cure)
        finally:
            door.close()
        return HostResult(self.name, "removed")

    def _begin(self, step: str) -> None:
        if self.halted.is_set():
            raise StepError("interrupted", "repeat it")
        self._step = step
        self.tell(step)

    def _host(self, door: Doorway) -> None:
        self._begin(steps.CONNECT)
        session = door.open()
        self._begin(steps.CHECK)
        manager = manager_of(facts.read_facts(session.run(facts.ASK).out).manager)
        if manager is None:
            raise StepError("this host has neither apt nor dnf", "remove it by hand: hostmesh-agent leave --purge")
        told = session.run(facts.ASK_AS_ROOT, root=True)
        if told.code != 0:
            raise StepError(told.said, "give --sudo, or come as root")
        joined = facts.joined_as(told.out)
        if joined not in {None, "", self.name}:
            raise StepError(f"this host is {joined}, not {self.name}", "check --ssh")
        if joined != self.name:
            self._not_elsewhere("has joined nothing" if joined is None else "has a damaged state")
        self._begin(steps.LEAVE)
        left = session.run(
            "command -v hostmesh-agent >/dev/null || exit 0; hostmesh-agent leave --purge", root=True, within_s=120
        )
        if left.code != 0:
            undone = " | ".join(left.out.strip().splitlines())[-600:]
            raise StepError(f"{left.said} ({undone})", "on the host: hostmesh-agent doctor")
        self._begin(steps.PURGE)
        lines = session.run(manager.installed()).out.splitlines()
        there = [line.split(" ")[0] for line in lines if line.split(" ")[0] in PACKAGES]
        if there:
            purged = session.run(manager.purge(there), root=True, within_s=INSTALL_S)
            if purged.code != 0:
                raise StepError(purged.said, "see the host's package manager")
        # What `register --repository` wrote.
        session.run(manager.forget_repository(), root=True)

    def _not_elsewhere(self, why: str) -> None:
        """A machine that does not say that it is this host is not, while the host is connected.

        Raises:
            StepError: it is.
        """
        host = known(self.connection, self.name)
        if host is not None and host["connected"]:
            raise StepError(
                f"this machine {why}, and {self.name} is connected ({', '.join(host['addresses'])})",
                "check --ssh; if it is right, on the host: hostmesh-agent leave --purge, then repeat",
            )
