"""An Envoy like one that was started before: binary, bootstrap and arguments, in its own place or in the other's."""

import hashlib
from dataclasses import replace
from pathlib import Path

from hostmesh_agent import process, workdir
from hostmesh_agent.artifact import Installed
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.envoy_command import EnvoyCommand
from hostmesh_agent.next_envoy import NextEnvoy
from hostmesh_agent.places import BLUE, Instance


class Likeness:
    """Makes commands of what is written down of the two."""

    def __init__(self, config: AgentConfig, following: NextEnvoy) -> None:
        self._config = config
        self._next = following

    def command(self, instance: Instance, model: Instance) -> EnvoyCommand:
        """Return the command for `instance` as `model` was started last; what would be started now if that is lost."""
        directory, wanted = self._config.directory_of(model), self._next.command_for(instance)
        record = process.read_record(directory)
        if record is None or not Path(record.binary).exists():
            return wanted
        try:
            content = (directory / workdir.BOOTSTRAP).read_bytes()
            wanted = wanted.with_arguments(record.arguments)
            if instance is not model:
                content = self._next.moved(content, instance)
        except (OSError, ValueError, LookupError, TypeError):
            return wanted
        installed = Installed(Path(record.binary), record.version, record.sha256)
        return replace(wanted, installed=installed, bootstrap=content)

    def fingerprint(self, model: Instance) -> str:
        """Return the fingerprint of an Envoy that is started as `model` was; it is the same in both places."""
        return fingerprint(self.command(BLUE, model))


def fingerprint(command: EnvoyCommand) -> str:
    """Return the fingerprint of a command for the first of the two."""
    parts = (command.installed.sha256, command.bootstrap_sha256(), command.command_sha256())
    return hashlib.sha256("".join(parts).encode()).hexdigest()
