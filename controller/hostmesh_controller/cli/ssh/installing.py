"""The packages on one host: from where they are installed, and what takes them back."""

import shlex
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hostmesh_controller.cli.ssh.packages import (
    AGENT,
    KEY_FILE,
    PACKAGES,
    PATIENCE_S,
    Manager,
    Source,
    configured,
    same_repository,
    sparing,
)
from hostmesh_controller.cli.ssh.shell import Shell
from hostmesh_controller.cli.ssh.steps import StepError, Undo

INSTALL_S: Final = 300 + PATIENCE_S
_NOT_INSTALLED: Final = "see the host's package manager, its disk and sources"
_NO_SOURCE: Final = (
    "does the host know a repository that has it? If not: --repository and --repository-key, --package or --bundle; "
    f"else {_NOT_INSTALLED}"
)


def installed(shell: Shell, manager: Manager) -> dict[str, str]:
    """Return the versions of our packages that are installed."""
    lines = shell.run(manager.installed()).out.splitlines()
    return dict(line.split(" ", 1) for line in lines if " " in line)


@dataclass(frozen=True, slots=True)
class Installing:
    """`before` is what was installed of ours: it is left as it is."""

    shell: Shell
    manager: Manager
    source: Source
    before: Mapping[str, str]
    undo: Undo

    def check(self) -> None:
        """Change nothing.

        Raises:
            StepError: it could not be installed so.
        """
        if self.source.repository:
            self._is_configured()
        if self.source.files and not self._files():
            suffix = self.manager.suffix
            raise StepError(f"no {suffix} is among the packages", "give the packages for this host's system")

    def _files(self) -> list[Path]:
        return [each for each in self.source.files if each.suffix == self.manager.suffix]

    def install(self) -> None:
        """Install the agent.

        Raises:
            StepError: it could not be; `undo` takes back what was done.
        """
        source, manager = self.source, self.manager
        if source.repository and not self._is_configured():
            self._configure()
        files = self._files()
        targets: list[str] = []
        folder = self._upload(files, targets) if files else ""
        removed = self.shell.run(manager.removed()).out.split()
        there = self.shell.run(configured(), root=True).out.splitlines()
        # Also what a failed installation leaves half done is taken back, and nothing that was there before.
        self.undo.add("the packages", lambda: self._remove(removed, there))
        try:
            self.shell.root(
                manager.install(targets),
                within_s=INSTALL_S,
                cure=_NOT_INSTALLED if source.repository or files else _NO_SOURCE,
            )
        finally:
            if folder:
                with suppress(StepError):
                    self.shell.run(f"rm -rf {shlex.quote(folder)}")
        if AGENT not in installed(self.shell, manager):
            raise StepError(f"{AGENT} is not installed after all", "are these hostmesh's packages?")

    def _texts(self) -> dict[str, str]:
        text = self.manager.repository_text(self.source.repository)
        return {KEY_FILE: self.source.repository_key, self.manager.repository_file(): text}

    def _is_configured(self) -> bool:
        """Tell whether the host knows the repository already. Raises StepError: it knows another."""
        wanted, file = self._texts(), self.manager.repository_file()
        there = {each: self.shell.run(f"cat {each}", root=True) for each in wanted}
        if all(there[each].code == 0 and same_repository(there[each].out, text) for each, text in wanted.items()):
            return True
        if any(each.code == 0 for each in there.values()):
            cure = f"leave out --repository, or remove {file} and {KEY_FILE} on the host"
            raise StepError(f"another repository of hostmesh's is configured there ({file})", cure)
        return False

    def _configure(self) -> None:
        self.undo.add("the repository", lambda: _none(self.shell.root(self.manager.forget_repository())))
        for each, text in self._texts().items():
            self.shell.root(f"umask 022; cat >{each}", text_in=text)
        self.shell.root(self.manager.note_keys())

    def _upload(self, files: list[Path], targets: list[str]) -> str:
        folder = self.shell.run("umask 022; mktemp -d /var/tmp/hostmesh-packages.XXXXXXXX").out.strip()
        if "/hostmesh-packages." not in folder:
            raise StepError("there is no room for the packages in /var/tmp", "is the disk full?")
        self.undo.add("copied packages", lambda: _none(self.shell.run(f"rm -rf {shlex.quote(folder)}")))
        for each in files:
            target = f"{folder}/{each.name}"
            self.shell.put(each, target)
            targets.append(target)
        return folder

    def _remove(self, removed: Collection[str], there: Collection[str]) -> None:
        """Remove what was not installed before. `removed` were so already, with `there` of the owner's files left."""
        ours = [name for name in PACKAGES if name not in self.before]
        as_before = [name for name in ours if name in removed]
        scripts = [self.manager.remove(as_before)] if as_before else []
        if purged := [name for name in ours if name not in removed]:
            scripts.append(self.manager.purge(purged))
        for each in scripts:
            self.shell.root(sparing(there, each), within_s=INSTALL_S)


def _none(_: object) -> None: ...
