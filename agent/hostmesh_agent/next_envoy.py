"""What the next Envoy is started with: the host's own settings, the mesh's, and what EnvoyFilters patch.

A running Envoy keeps what it was started with.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import structlog

from hostmesh_agent import bootstrap, drain, host, trial, workdir
from hostmesh_agent.artifact import Installed
from hostmesh_agent.capture.floor import ipv6_enabled
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.envoy import files_limit
from hostmesh_agent.envoy_command import DRAIN_S, EnvoyCommand
from hostmesh_agent.places import BLUE, Instance
from hostmesh_agent.workdir import Account
from hostmesh_api.v1.hostmesh_pb2 import EnvoySettings

_TRIES: Final = 2
"""Starts that a patched bootstrap gets. Envoy binds its static listeners only when it runs, so that its own word before
(`trial`) is not the last one; and without an Envoy nothing that is captured gets anywhere."""

log = structlog.get_logger(__name__)


def first_command(
    config: AgentConfig, name: str, owner: Account, installed: Installed, *, as_unit: bool
) -> EnvoyCommand:
    """Return what Envoy is started with before the controller has said anything, on the host of this name."""
    max_files = files_limit()
    wanted = bootstrap.BootstrapInput(name, config.xds_socket, max_files, ipv6=ipv6_enabled(), by_group=as_unit)
    return EnvoyCommand(
        installed=installed,
        bootstrap=bootstrap.build(wanted),
        directory=config.envoy_dir,
        owner=owner,
        concurrency=config.envoy.workers(host.cpus()),
        log_level=config.envoy.log_level,
        max_files=max_files,
    )


class NextEnvoy:
    """The command of the next Envoy. `problem` says why it is not patched as EnvoyFilters want it; "" if it is."""

    def __init__(
        self,
        config: AgentConfig,
        name: str,
        command: EnvoyCommand,
        host_refuses: Callable[[Mapping[str, Any]], str] = lambda _: "",
        *,
        as_unit: bool = False,
    ) -> None:
        """`host_refuses` returns why the host's owner does not want a patch; or ""."""
        self._config = config
        self._host_refuses = host_refuses
        self._name = name
        self._as_unit = as_unit
        self._patch = self._used_patch = ""
        self._ipv6 = ipv6_enabled()
        self._plain = command.bootstrap
        self._failures = 0
        self.command = command
        self.problem = ""

    def command_for(self, instance: Instance) -> EnvoyCommand:
        """Return the command as it is for one of the two Envoys: each has its directory, and says which it is."""
        if instance is BLUE:
            return self.command
        content = bootstrap.build(replace(self._input(self._used_patch), instance=instance))
        return replace(self.command, directory=self._config.directory_of(instance), bootstrap=content)

    def moved(self, content: bytes, instance: Instance) -> bytes:
        """Return a bootstrap of either of the two as it is for one of them.

        Raises:
            ValueError, LookupError, TypeError: it is damaged.
        """
        return bootstrap.for_instance(content, instance, ipv6=self._ipv6)

    def take_binary(self, installed: Installed) -> bool:
        """Use this binary from now on; return whether the command is another one."""
        before, self.command = self.command, replace(self.command, installed=installed)
        return self.command != before

    def _input(self, patch: str) -> bootstrap.BootstrapInput:
        return bootstrap.BootstrapInput(
            self._name,
            self._config.xds_socket,
            self.command.max_files,
            patch,
            ipv6=self._ipv6,
            by_group=self._as_unit,
        )

    def take_settings(self, settings: EnvoySettings) -> bool:
        """Use the mesh's settings from now on; return whether the command is another one."""
        wanted = settings.concurrency if settings.HasField("concurrency") else None
        before = self.command
        workers = self._config.envoy.workers(host.cpus(), wanted)
        self.command = replace(before, concurrency=workers, drain_s=settings.drain_s or DRAIN_S)
        drain.note(self._config.envoy_dir, settings.termination_drain_ms)
        return self.command != before

    def take_rights(self, more: tuple[int, ...]) -> bool:
        """Give the next Envoy these capabilities beside the usual one; return whether the command is another one."""
        before, self.command = self.command, replace(self.command, more_rights=more)
        return self.command != before

    async def take_patch(self, patch: str) -> bool:
        """Patch the bootstrap if Envoy takes it; return whether the command is another one."""
        if patch == self._patch:
            return False
        self._patch, self.problem, self._failures = patch, "", 0
        try:
            command = replace(self.command, bootstrap=bootstrap.build(self._input(patch)))
            why = (self._host_refuses(json.loads(patch)) or await trial.refusal(command)) if patch else ""
        except (OSError, ValueError, workdir.WorkdirError) as error:
            why = str(error)
        if why:
            self.problem = f"Envoy's bootstrap is not as EnvoyFilters want it: {why}"
            log.error("patched bootstrap refused", reason=why)
            return False
        self.command, self._used_patch = command, patch
        return True

    def tried(self, why: str) -> None:
        """Take note of a start: `why` are the last words of an Envoy that ended before it served, "" if one serves.

        A patched bootstrap with which it ends again and again is left out until there is another patch.
        """
        self._failures = self._failures + 1 if why else 0
        if self._failures >= _TRIES and self.command.bootstrap != self._plain:
            self.command, self._used_patch = replace(self.command, bootstrap=self._plain), ""
            self.problem = f"Envoy's bootstrap is not as EnvoyFilters want it: Envoy ends when it starts: {why}"
            log.error("patched bootstrap left out", reason=why)
