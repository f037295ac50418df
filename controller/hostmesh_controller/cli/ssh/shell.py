"""Commands on one host, over one connection after another where the first is lost."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

from hostmesh_controller.cli.ssh.session import Answer, Doorway, LostError, Session
from hostmesh_controller.cli.ssh.steps import StepError


@dataclass(slots=True)
class Shell:
    """Runs commands on one host; the first opens a connection.

    Once `take_back` was called, only what was done is taken back: nobody ends that any more, and what loses its
    connection is run again over a new one. What takes something back can be repeated.
    """

    door: Doorway
    _session: Session | None = None
    _takes_back: bool = False
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> Session:
        """Connect, unless it is connected.

        Raises:
            StepError: see `Doorway.open`.
        """
        if self._session is None:
            self._session = self.door.open()
        return self._session

    def run(self, script: str, *, root: bool = False, text_in: str | None = None, within_s: int = 30) -> Answer:
        """Run a shell script to its end.

        Raises:
            StepError: see `Session.run`.
        """
        try:
            return self.open().run(script, root=root, text_in=text_in, within_s=within_s)
        except LostError:
            if not self._takes_back:
                raise
        self._session = None
        return self.open().run(script, root=root, text_in=text_in, within_s=within_s)

    def root(self, script: str, *, text_in: str | None = None, within_s: int = 60, cure: str = "") -> str:
        """Run as root; return what it printed.

        Raises:
            StepError: it failed; with what it said.
        """
        answer = self.run(script, root=True, text_in=text_in, within_s=within_s)
        if answer.code != 0:
            raise StepError(answer.said or f"code {answer.code}", cure)
        return answer.out

    def put(self, source: Path, target: str) -> None:
        """Copy a file to the user's own place. Raises StepError."""
        self.open().put(source, target)

    def halt(self) -> None:
        """End what runs, unless that takes something back."""
        with self._turn:
            if not self._takes_back:
                self.door.halt()

    def take_back(self) -> None:
        """End what runs, and begin to take back what was done."""
        with self._turn:
            self._takes_back = True
            self._session = None
            self.door.close()
