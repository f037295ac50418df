"""Which Envoy binary is to run: `envoy upgrade --binary` chose it last, else agent.toml names it, else a package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from hostmesh_agent import artifact, packaged_envoy
from hostmesh_agent.artifact import ArtifactError, Installed
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.state import StateError, read_private, write_private

FILE: Final = "envoy-binary.json"

log = structlog.get_logger(__name__)


def choose(state_dir: Path, binary: Path, sha256: str, version: str = "") -> None:
    """Take this binary from now on; `version` is what a signature says it is. Raises OSError."""
    restore(state_dir, {"binary": str(binary), "sha256": sha256, **({"version": version} if version else {})})


def choice(state_dir: Path) -> Mapping[str, str] | None:
    """Return what was chosen, for `restore`; None: agent.toml says it."""
    return _chosen(state_dir)


def restore(state_dir: Path, choice: Mapping[str, str] | None) -> None:
    """Let a choice hold that held before. Raises OSError."""
    if choice is None:
        forget(state_dir)
    else:
        write_private(state_dir / FILE, json.dumps(dict(choice)).encode() + b"\n")


def forget(state_dir: Path) -> None:
    """Go by agent.toml again."""
    (state_dir / FILE).unlink(missing_ok=True)


def install(config: AgentConfig, home: Path = packaged_envoy.HOME) -> Installed:
    """Install what is to run and return it; `home` is where the package hostmesh-envoy is. Blocks.

    Raises:
        ArtifactError: it is not there, or not what was pinned.
    """
    chosen = _chosen(config.state_dir)
    if chosen is None:
        return artifact.install(config.envoy.binary, config.envoy.sha256, config.state_dir, home=home)
    version = chosen.get("version", "")
    try:
        return artifact.install(Path(chosen["binary"]), chosen["sha256"], config.state_dir, version=version)
    except ArtifactError as error:
        if not version:
            raise
        # It came from the controller, and nobody is there to put it back; the host's own is.
        log.error("the Envoy of a rollout is gone; that of agent.toml is used", reason=str(error))
        return artifact.install(config.envoy.binary, config.envoy.sha256, config.state_dir, home=home)


def _chosen(state_dir: Path) -> Mapping[str, str] | None:
    try:
        document = json.loads(read_private(state_dir / FILE))
        found = {"binary": str(document["binary"]), "sha256": str(document["sha256"])}
        return found | ({"version": str(document["version"])} if "version" in document else {})
    except FileNotFoundError:
        return None
    except (StateError, ValueError, KeyError, TypeError, RecursionError) as error:
        # A host without the Envoy that was chosen is better than one without any.
        log.error("the choice of envoy's binary cannot be read; that of agent.toml is used", reason=str(error))
        return None
