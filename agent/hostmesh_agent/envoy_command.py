"""What an Envoy is started with, and in what a running one differs from that."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from hostmesh_agent import process, workdir
from hostmesh_agent.artifact import Installed
from hostmesh_agent.launch import NET_ADMIN, NET_BIND_SERVICE, NET_RAW, Spec
from hostmesh_agent.workdir import Account

DRAIN_S: Final = 45
"""Istio's default. Envoy's own would keep listeners that went away for ten minutes."""
_CAPABILITIES: Final = {NET_BIND_SERVICE: "net_bind_service", NET_ADMIN: "net_admin", NET_RAW: "net_raw"}
"""What `launch` may leave an Envoy, which cannot gain it later."""
_ARGUMENTS: Final = ("concurrency", "log_level", "max_files", "drain_s", "more_rights")
"""Fields that a record keeps: what was put back may differ in one of them alone."""


@dataclass(frozen=True, slots=True)
class EnvoyCommand:
    """What to start. `bootstrap` is the file's content; `more_rights` are capabilities beside the usual one."""

    installed: Installed
    bootstrap: bytes
    directory: Path
    owner: Account
    concurrency: int
    log_level: str
    max_files: int
    drain_s: int = DRAIN_S
    more_rights: tuple[int, ...] = ()

    def argv(self) -> list[str]:
        return [
            str(self.installed.path),
            "--config-path",
            workdir.BOOTSTRAP,
            # Its socket is abstract: any local user could end a hot-restartable Envoy.
            "--disable-hot-restart",
            "--concurrency",
            str(self.concurrency),
            "--drain-time-s",
            str(self.drain_s),
            # A connection of a chain that has changed ends with its next answer: else a new policy would hold for it
            # only when its time is over. Istio's choice, too.
            "--drain-strategy",
            "immediate",
            "--log-level",
            self.log_level,
        ]

    def spec(self, cgroup: str = "") -> Spec:
        """Return how to become this; `cgroup` is the path of where to be."""
        return Spec(
            argv=self.argv(),
            cwd=str(self.directory),
            binary=str(self.installed.path),
            uid=self.owner.uid if self.owner.switch else None,
            gid=self.owner.gid,
            max_files=self.max_files,
            record=str(self.directory / process.RECORD),
            log="",
            umask=0o077,
            facts={
                "binary": str(self.installed.path),
                "version": self.installed.version,
                "sha256": self.installed.sha256,
                "bootstrap_sha256": self.bootstrap_sha256(),
                "command_sha256": self.command_sha256(),
                "arguments": json.dumps({name: getattr(self, name) for name in _ARGUMENTS}),
            },
            cgroup=cgroup,
            capabilities=self._capabilities(),
        )

    def with_arguments(self, arguments: str) -> "EnvoyCommand":
        """Return the command with what a record says of another one's arguments; "" says nothing.

        Raises:
            ValueError, KeyError, TypeError: the record is damaged.
        """
        if not arguments:
            return self
        found = json.loads(arguments)
        return replace(
            self,
            concurrency=int(found["concurrency"]),
            log_level=str(found["log_level"]),
            max_files=int(found["max_files"]),
            drain_s=int(found["drain_s"]),
            more_rights=tuple(int(each) for each in found["more_rights"] if each in _CAPABILITIES),
        )

    def _capabilities(self) -> list[int]:
        return [NET_BIND_SERVICE, *self.more_rights]

    def bootstrap_sha256(self) -> str:
        return hashlib.sha256(self.bootstrap).hexdigest()

    def command_sha256(self) -> str:
        """Covers all that a running Envoy cannot change: arguments, user, limits."""
        parts = [*self.argv(), self.owner.uid, self.owner.gid, self.max_files]
        parts.append(",".join(_CAPABILITIES[each] for each in self._capabilities()))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def differences(self, record: process.Record) -> str:
        """Say in what a running Envoy differs from this command; empty if in nothing."""
        found = []
        if record.sha256 != self.installed.sha256:
            found.append(f"it is Envoy {record.version}, wanted is {self.installed.version}")
        if record.bootstrap_sha256 != self.bootstrap_sha256():
            found.append("its bootstrap is another")
        if record.command_sha256 != self.command_sha256():
            found.append("its arguments, user, limits or capabilities are others")
        return "; ".join(found)
