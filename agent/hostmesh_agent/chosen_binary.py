"""Which Envoy binary is to run: `envoy upgrade --binary` chose it last, else agent.toml names it, else a package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from hostmesh_agent import artifact, packaged_envoy
from hostmesh_agent.artifact import Installed
from hostmesh_agent.config import AgentConfig
from hostmesh_agent.state import StateError, read_private, write_private

FILE: Final = "envoy-binary.json"

log = structlog.get_logger(__name__)


def choose(state_dir: Path, binary: Path, sha256: str) -> None:
    """Take this binary from now on. Raises OSError."""
    write_private(state_dir / FILE, json.dumps({"binary": str(binary), "sha256": sha256}).encode() + b"\n")


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
    return artifact.install(Path(chosen["binary"]), str(chosen["sha256"]), config.state_dir)


def _chosen(state_dir: Path) -> Mapping[str, Any] | None:
    try:
        document = json.loads(read_private(state_dir / FILE))
        return {"binary": document["binary"], "sha256": document["sha256"]}
    except FileNotFoundError:
        return None
    except (StateError, ValueError, KeyError, TypeError, RecursionError) as error:
        # A host without the Envoy that was chosen is better than one without any.
        log.error("the choice of envoy's binary cannot be read; that of agent.toml is used", reason=str(error))
        return None
